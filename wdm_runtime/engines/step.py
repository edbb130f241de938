"""The fused step: score network and sampler's update in one graph, the state kept by the engine.

It advances tiles, so it serves where one tile is all there is of a state. The state of a larger
domain is blended across tiles at every step, which no graph of one tile can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wdm_runtime.bundle import Bundle, sha256
from wdm_runtime.manifest import STEP_ROLE, GraphEntry

Array = npt.NDArray[np.float32]


class StepEngine(Protocol):
    """Holds the states of a batch of tiles and advances them; see `wdm_runtime.samplers.Step`."""

    def load(self, x: Array, condition: Array) -> None:
        """Begin with states x under a condition, both (n, c, h, w)."""
        ...

    def step(self, t: float, scalars: Array, noise: Array | None) -> None:
        """Queue one step.

        ``scalars`` (6,) are `Step.scalars`; ``noise`` (n, c, h, w) is read before the call
        returns, None says that its scalar is 0.
        """
        ...

    def read(self) -> Array:
        """The last denoised estimate (n, c, h, w), the caller's own, after all queued steps."""
        ...

    def close(self) -> None:
        """Free the graph."""
        ...


class AllOutputs(Protocol):
    """What `HostStep` needs of an engine: every output of its graph."""

    def run_all(self, feeds: Mapping[str, Array]) -> tuple[Array, ...]:
        """All outputs in the graph's order."""
        ...

    def close(self) -> None:
        """Free the graph."""
        ...


def step_graph(bundle: Bundle, precision: str) -> tuple[bytes, GraphEntry]:
    """A bundle's score graph of a precision with the sampler's update after it.

    The update is stored as the continuation of a score graph: by protobuf's definition, two
    messages one after the other are one message with the lists of both.

    Raises
    ------
    BundleError
        The bundle has no such graphs, or a file is missing or altered.
    """
    data = bundle.graph(f"score_{precision}") + bundle.graph(STEP_ROLE)
    score, tail = (bundle.manifest.graphs[role] for role in (f"score_{precision}", STEP_ROLE))
    return data, GraphEntry(
        f"{score.file} with {tail.file}",
        sha256(data),
        len(data),
        score.inputs + tail.inputs,
        score.outputs + tail.outputs,
    )


class HostStep:
    """The fused step on any engine that gives all outputs: the state comes back at every step."""

    def __init__(self, engine: AllOutputs) -> None:
        self._engine = engine

    def load(self, x: Array, condition: Array) -> None:
        """As `StepEngine.load`."""
        self._condition, self._x, self._denoised = condition, x, np.zeros_like(x)

    def step(self, t: float, scalars: Array, noise: Array | None) -> None:
        """As `StepEngine.step`."""
        feeds = {
            "x": self._x,
            "condition": self._condition,
            "t": np.array([t], dtype=np.float32),
            "previous": self._denoised,
            "noise": np.zeros_like(self._x) if noise is None else noise,
            "scalars": scalars,
        }
        _, self._x, self._denoised = self._engine.run_all(feeds)

    def read(self) -> Array:
        """As `StepEngine.read`."""
        return self._denoised

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()
