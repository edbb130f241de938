"""Engines run one ONNX graph. `select` says which one, `open_engine` is the only way to get it.

A family of engines is one entry of `_FAMILIES`, and one or more lines of `_AUTO_ORDER`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wdm_runtime.bundle import GraphEntry, TensorSpec
from wdm_runtime.engines.openvino import OpenVinoEngine
from wdm_runtime.engines.ort import OrtCpuEngine
from wdm_runtime.errors import EngineError, MissingDependencyError, install_line

AUTO = "auto"


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


@dataclass(frozen=True)
class _Family:
    """Engines of one library.

    ``probe`` gives the precisions that work on this machine, best first, or raises what is missing
    and how to get it; ``open`` takes a graph, its entry, a precision and CPU threads; ``graphs``
    says of which precision the graph has to be for each precision it computes in.
    """

    probe: Callable[[], tuple[str, ...]]
    open: Callable[[bytes, GraphEntry, str, int], Engine]
    graphs: Mapping[str, str]


@dataclass(frozen=True)
class Choice:
    """An engine and a precision that work here.

    ``graph`` is the precision of the graph it takes, and ``why`` one line for the user.
    """

    kind: str
    precision: str
    graph: str
    why: str


def available_threads() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _probe_ort_cpu() -> tuple[str, ...]:
    _check_onnxruntime()
    return OrtCpuEngine.precisions()


_FAMILIES = {
    "ort-cpu": _Family(_probe_ort_cpu, OrtCpuEngine, {"fp32": "fp32", "fp16": "fp16"}),
    "openvino": _Family(
        OpenVinoEngine.precisions,
        OpenVinoEngine,
        {"bf16": "fp32", "fp16": "fp32", "fp32": "fp32"},  # it converts the weights itself
    ),
}
# The fastest first. In fp32 the two take about the same time, and ONNX Runtime loads faster and
# takes less memory. On a CPU, fp16 is for those who ask for it.
_AUTO_ORDER = (
    ("openvino", "bf16"),
    ("ort-cpu", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "fp16"),
    ("ort-cpu", "fp16"),
)
ENGINES = (AUTO, *_FAMILIES)
PRECISIONS = (AUTO, "fp32", "fp16", "bf16")


def select(engine: str = AUTO, precision: str = AUTO) -> Choice:
    """Find an engine that works here.

    Parameters
    ----------
    engine
        One of `ENGINES`; ``"auto"`` takes the fastest that works.
    precision
        One of `PRECISIONS`; ``"auto"`` takes the engine's best.

    Raises
    ------
    EngineError
        A name is unknown, or what was asked for by name cannot be had; never another instead.
    MissingDependencyError
        The engine that was asked for is not installed.
    """
    _check_known(engine, ENGINES, "--engine")
    _check_known(precision, PRECISIONS, "--precision")
    if engine == AUTO:
        return _best(precision)
    works = _FAMILIES[engine].probe()
    if precision != AUTO and precision not in works:
        raise EngineError(
            f"--precision got '{precision}'; engine '{engine}' does {', '.join(works)} on this "
            "machine. Choose one of them, or --precision auto."
        )
    chosen = works[0] if precision == AUTO else precision
    return _choice(engine, chosen, "as asked for.")


def _best(precision: str) -> Choice:
    """The first of the order that works, and what came before it and does not."""
    works: dict[str, tuple[str, ...]] = {}
    missing: dict[str, str] = {}
    for kind, candidate in _AUTO_ORDER:
        if precision not in (AUTO, candidate):
            continue
        if kind not in works:
            try:
                works[kind] = _FAMILIES[kind].probe()
            except MissingDependencyError as error:
                works[kind] = ()
                missing[kind] = f"{kind} is not installed ({install_line(error.extra)})."
            except EngineError as error:
                works[kind] = ()
                missing[kind] = str(error)
        if candidate in works[kind]:
            reason = (
                "the fastest that works here" if precision == AUTO else f"fastest in {candidate}"
            )
            return _choice(kind, candidate, " ".join([f"{reason}.", *missing.values()]))
        missing.setdefault(kind, f"{kind} does not compute in {candidate} on this machine.")
    wanted, remedy = (
        ("", "") if precision == AUTO else (f" in {precision}", " Or choose another --precision.")
    )
    raise EngineError(f"No engine works here{wanted}. {' '.join(missing.values())}{remedy}")


def _choice(kind: str, precision: str, reason: str) -> Choice:
    graph = _FAMILIES[kind].graphs[precision]
    return Choice(kind, precision, graph, f"engine: {kind} in {precision}, {reason}")


def open_engine(
    graph: bytes,
    entry: GraphEntry,
    kind: str,
    threads: int | None = None,
    precision: str = "fp32",
) -> Engine:
    """Load a graph.

    Parameters
    ----------
    graph
        The bytes of an ONNX file, already checked against its hash.
    entry
        The manifest's word on the graph's tensors; the loaded graph must agree.
    kind
        An engine's name as in a `Choice`.
    threads
        CPU threads; by default all this process may use.
    precision
        What to compute in, as in a `Choice`.

    Raises
    ------
    EngineError
        The engine does not load the graph, or its tensors are not what the manifest says.
    MissingDependencyError
        The engine is not installed.
    """
    _check_known(kind, tuple(_FAMILIES), "--engine")
    _check_known(precision, tuple(_FAMILIES[kind].graphs), "--precision")
    return _FAMILIES[kind].open(graph, entry, precision, threads or available_threads())


def _check_known(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise EngineError(
            f"{what} got '{value}'; expected one of {', '.join(known)}. Choose one of them."
        )


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
            "Engine 'ort-cpu' is not installed; expected onnxruntime or onnxruntime-gpu. "
            f"Install one with: {install_line('cpu')}"
        )
    if len(installed) > 1:
        raise EngineError(
            f"Found both {' and '.join(installed)}, which overwrite each other's files; expected "
            "one of them. Keep one with: pip uninstall -y onnxruntime onnxruntime-gpu && "
            f"{install_line('cpu')}"
        )
