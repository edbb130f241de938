"""Engines run one ONNX graph. `select` says which one, `open_engine` is the only way to get it.

`open_graph` is the same for a graph that lies in a bundle.
"""

from __future__ import annotations

from contextlib import ExitStack, closing

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines.choice import (
    AUTO,
    ENGINES,
    PRECISIONS,
    Choice,
    Finding,
    check_known,
    select,
    survey,
)
from wdm_runtime.engines.engine import Engine
from wdm_runtime.engines.families import FAMILIES
from wdm_runtime.engines.numpy_transform import NumpyTransform
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.probe import Gpu, probe_gpu
from wdm_runtime.engines.step import StepEngine, step_graph
from wdm_runtime.errors import EngineError
from wdm_runtime.manifest import GraphEntry
from wdm_runtime.onnx_gate import check_graph

__all__ = [
    "AUTO",
    "ENGINES",
    "PRECISIONS",
    "Choice",
    "Engine",
    "Finding",
    "gpu_of",
    "has_step",
    "open_engine",
    "open_graph",
    "open_step",
    "open_transforms",
    "select",
    "step_pays",
    "survey",
]


def open_engine(
    graph: bytes,
    entry: GraphEntry,
    kind: str,
    precision: str = "fp32",
    options: EngineOptions | None = None,
) -> Engine:
    """Load a graph.

    Parameters
    ----------
    graph
        The bytes of an ONNX file, already checked against its hash. What they hold is checked
        here, whichever engine is to have them.
    entry
        The manifest's word on the graph's tensors; the loaded graph must agree.
    kind, precision
        An engine and what it computes in, as in a `Choice`.
    options
        How it is opened.

    Raises
    ------
    EngineError
        The engine does not load the graph, or its tensors are not what the manifest says.
    MissingDependencyError
        The engine is not installed.
    BundleError
        The graph is one that `check_graph` refuses.
    """
    check_known(kind, tuple(FAMILIES), "--engine")
    check_known(precision, tuple(FAMILIES[kind].graphs), "--precision")
    check_graph(graph, entry.file)
    return FAMILIES[kind].open(graph, entry, precision, options or EngineOptions())


def open_graph(
    bundle: Bundle,
    role: str,
    kind: str,
    precision: str = "fp32",
    options: EngineOptions | None = None,
) -> Engine:
    """Load a bundle's graph by its role; the rest as for `open_engine`.

    Raises
    ------
    BundleError
        The bundle has no such graph, or the file is missing or altered.
    EngineError, MissingDependencyError
        As for `open_engine`.
    """
    graph = bundle.graph(role)  # first of all: a bundle may be without
    return open_engine(graph, bundle.manifest.graphs[role], kind, precision, options)


def open_transforms(bundle: Bundle, kind: str, options: EngineOptions) -> tuple[Engine, Engine]:
    """The wavelet transform and its inverse beside an engine of a kind: of fields of any size.

    Raises
    ------
    EngineError, MissingDependencyError
        As for `open_engine`.
    """

    def transform(role: str) -> Engine:
        if not FAMILIES[kind].any_size:
            return NumpyTransform(role, bundle.manifest.wavelet)
        return open_graph(bundle, role, kind, options=options)

    with ExitStack() as opened:
        forward = opened.enter_context(closing(transform("dwt")))
        backward = transform("idwt")
        opened.pop_all()  # nothing failed: they are the caller's
    return forward, backward


def gpu_of(kind: str) -> Gpu | None:
    """The GPU that an engine runs on; None for one on the CPU.

    Raises
    ------
    EngineError
        There is none.
    """
    return probe_gpu() if FAMILIES[kind].on_gpu else None


def step_pays(kind: str) -> bool:
    """Whether an engine's fused step is faster than its score graph and the loop in NumPy."""
    return FAMILIES[kind].step_pays


def has_step(kind: str, precision: str) -> bool:
    """Whether `open_step` knows how to open an engine's fused step in a precision."""
    return precision in FAMILIES[kind].step_precisions


def open_step(bundle: Bundle, choice: Choice, options: EngineOptions) -> StepEngine:
    """The fused step of a bundle, on the engine of a choice.

    Raises
    ------
    BundleError
        The bundle has none.
    EngineError, MissingDependencyError
        The engine has none in this precision, or as for `open_engine`.
    """
    precisions = FAMILIES[choice.kind].step_precisions
    if choice.precision not in precisions:
        raise EngineError(
            f"Engine '{choice.kind}' would do the sampler's update in {choice.precision}; expected "
            f"{' or '.join(precisions)}. Choose --precision fp32, or leave out --fused-step."
        )
    graph, entry = step_graph(bundle, choice.graph)
    check_graph(graph, entry.file)
    return FAMILIES[choice.kind].open_step(graph, entry, choice.precision, options)
