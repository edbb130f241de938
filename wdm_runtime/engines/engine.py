"""What every engine is: a loaded graph that answers calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import EngineError
from wdm_runtime.manifest import TensorSpec

# How remedies end: the file names the GPU, the libraries and what each engine computes.
REPORT = "report this with the file of 'wdm-run selftest -o FILE'"


class Engine(Protocol):
    """A loaded graph. Arrays returned by `run` belong to the caller and are never written again."""

    @property
    def kind(self) -> str:
        """The engine's name, one of `ENGINES`."""
        ...

    @property
    def device(self) -> str:
        """What it runs on, in words."""
        ...

    @property
    def version(self) -> str:
        """Library and version."""
        ...

    @property
    def precision(self) -> str:
        """What it computes in, one of `PRECISIONS`."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The tensors `run` takes."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors of the graph, of which `run` returns the first."""
        ...

    def run(self, feeds: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The graph's single output for the inputs by name."""
        ...

    def close(self) -> None:
        """Free the graph; later calls of `run` are errors."""
        ...


def check_tensors(
    file: str, engine: str, got: Sequence[object], expected: Sequence[object]
) -> None:
    """What an engine made of a graph's tensors must be what the manifest says.

    Parameters
    ----------
    file, engine
        The graph's file, and who loaded it.
    got, expected
        Name, data type and shape of each tensor.

    Raises
    ------
    EngineError
        They differ.
    """
    if got != expected:
        raise EngineError(
            f"{file}: {engine} has tensors {got}; the manifest says {expected}. Export the bundle "
            "again."
        )
