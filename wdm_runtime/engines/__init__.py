"""Engines run one ONNX graph. `open_engine` is the only way to get one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wdm_runtime.bundle import GraphEntry
from wdm_runtime.errors import EngineError, install_line

ENGINES = ("auto", "ort-cpu")
PRECISIONS = ("auto", "fp32", "fp16")


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

    def run(self, feeds: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The graph's single output for the inputs by name."""
        ...

    def close(self) -> None:
        """Free the graph; later calls of `run` are errors."""
        ...


def available_threads() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose(engine: str, precision: str) -> tuple[str, str]:
    """Resolve ``auto``: the engine's name and the precision of the graph it gets.

    Raises
    ------
    EngineError
        A name is unknown, no engine is installed, or two packages exclude each other.
    """
    for value, known, option in (
        (engine, ENGINES, "--engine"),
        (precision, PRECISIONS, "--precision"),
    ):
        if value not in known:
            raise EngineError(
                f"{option} got '{value}'; expected one of {', '.join(known)}. Choose one of them."
            )
    _check_onnxruntime()
    # A CPU has no fp16 arithmetic: an fp16 graph would only add conversions.
    return "ort-cpu", "fp32" if precision == "auto" else precision


def open_engine(graph: bytes, entry: GraphEntry, kind: str, threads: int | None = None) -> Engine:
    """Load a graph.

    Parameters
    ----------
    graph
        The bytes of an ONNX file, already checked against its hash.
    entry
        The manifest's word on the graph's tensors; the loaded graph must agree.
    kind
        An engine's name as `choose` returned it.
    threads
        CPU threads; by default all this process may use.

    Raises
    ------
    EngineError
        The engine does not load the graph, or its tensors are not what the manifest says.
    """
    from wdm_runtime.engines.ort import OrtCpuEngine

    if kind != OrtCpuEngine.kind:
        raise EngineError(
            f"Engine '{kind}' is unknown; expected {OrtCpuEngine.kind}. Choose it with --engine."
        )
    return OrtCpuEngine(graph, entry, threads or available_threads())


def _check_onnxruntime() -> None:
    import importlib.metadata  # 20 ms, which an import of the package should not cost

    installed = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            installed.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if not installed:
        raise EngineError(
            "No engine is installed; expected onnxruntime or onnxruntime-gpu. "
            f"Install one with: {install_line('cpu')}"
        )
    if len(installed) > 1:
        raise EngineError(
            f"Found both {' and '.join(installed)}, which overwrite each other's files; expected "
            "one of them. Keep one with: pip uninstall -y onnxruntime onnxruntime-gpu && "
            f"{install_line('cpu')}"
        )
