"""Engines run one ONNX graph. `select` says which one, `open_engine` is the only way to get it.

A family of engines is one entry of `_FAMILIES`, and one or more lines of `_AUTO_ORDER`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from wdm_runtime.bundle import Bundle
from wdm_runtime.cache import cache_folder
from wdm_runtime.engines.numpy_transform import NumpyTransform
from wdm_runtime.engines.openvino import OpenVinoEngine
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.ort import OrtCpuEngine
from wdm_runtime.engines.ort_cuda import OrtCudaEngine
from wdm_runtime.engines.ort_cuda import precisions as ort_cuda_precisions
from wdm_runtime.engines.ort_cuda_step import OrtCudaStep
from wdm_runtime.engines.plan_cache import PlanCache
from wdm_runtime.engines.probe import Gpu, probe_gpu
from wdm_runtime.engines.step import HostStep, StepEngine, step_graph
from wdm_runtime.engines.tensorrt import TensorRtEngine
from wdm_runtime.engines.tensorrt import precisions as tensorrt_precisions
from wdm_runtime.engines.tensorrt_step import TensorRtStep
from wdm_runtime.errors import EngineError, MissingDependencyError, NoDeviceError
from wdm_runtime.manifest import GraphEntry, TensorSpec
from wdm_runtime.onnx_gate import check_graph

AUTO = "auto"

_Opened = TypeVar("_Opened")


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
    and how to get it; ``open`` takes a graph, its entry, a precision and options; ``graphs`` says
    of which precision the graph has to be for each precision it computes in; ``any_size`` whether
    it takes graphs with more free sizes than the batch; ``open_step`` takes a fused step's graph in
    the precisions ``step_precisions``, and ``step_pays`` says whether that is faster than the loop
    in NumPy; ``on_gpu`` says where it runs.
    """

    probe: Callable[[], tuple[str, ...]]
    open: Callable[[bytes, GraphEntry, str, EngineOptions], Engine]
    graphs: Mapping[str, str]
    open_step: Callable[[bytes, GraphEntry, str, EngineOptions], StepEngine]
    any_size: bool = True
    step_pays: bool = False
    step_precisions: tuple[str, ...] = ("fp32", "fp16", "bf16")
    on_gpu: bool = False


@dataclass(frozen=True)
class Choice:
    """An engine and a precision that work here.

    ``graph`` is the precision of the graph it takes, and ``why`` one line for the user.
    """

    kind: str
    precision: str
    graph: str
    why: str


def _open_on_cpu(
    engine: Callable[[bytes, GraphEntry, str, int], _Opened],
) -> Callable[[bytes, GraphEntry, str, EngineOptions], _Opened]:
    return lambda graph, entry, precision, options: engine(
        graph, entry, precision, options.cpu_threads
    )


# Its precision is of a whole graph: in another the state would be rounded too.
_OPENVINO_STEPS = ("fp32",)


def _open_openvino_step(
    graph: bytes, entry: GraphEntry, precision: str, options: EngineOptions
) -> StepEngine:
    return HostStep(OpenVinoEngine(graph, entry, precision, options.cpu_threads))


def _tensorrt(kind: str) -> _Family:
    def with_plan(
        engine: Callable[[bytes, GraphEntry, str, str, PlanCache, EngineOptions], _Opened],
    ) -> Callable[[bytes, GraphEntry, str, EngineOptions], _Opened]:
        def open_plan(
            graph: bytes, entry: GraphEntry, precision: str, options: EngineOptions
        ) -> _Opened:
            cache = PlanCache(cache_folder() / "plans", options.note)
            return engine(graph, entry, precision, kind, cache, options)

        return open_plan

    return _Family(
        functools.partial(tensorrt_precisions, kind),
        with_plan(TensorRtEngine),
        {"fp16": "fp16", "fp32": "fp32"},
        with_plan(TensorRtStep),
        any_size=False,
        step_pays=True,  # a step copies one tile instead of three; not measured on a GPU yet
        on_gpu=True,
    )


_FAMILIES = {
    "ort-cpu": _Family(
        OrtCpuEngine.precisions,
        _open_on_cpu(OrtCpuEngine),
        {"fp32": "fp32", "fp16": "fp16"},
        _open_on_cpu(lambda *arguments: HostStep(OrtCpuEngine(*arguments))),
    ),
    "openvino": _Family(
        OpenVinoEngine.precisions,
        _open_on_cpu(OpenVinoEngine),
        {"bf16": "fp32", "fp16": "fp32", "fp32": "fp32"},  # it converts the weights itself
        _open_openvino_step,
        step_precisions=_OPENVINO_STEPS,
    ),
    "ort-cuda": _Family(
        ort_cuda_precisions,
        OrtCudaEngine,
        {"fp16": "fp16", "fp32": "fp32"},
        OrtCudaStep,
        any_size=False,
        step_pays=True,  # a step copies one tile instead of three; not measured on a GPU yet
        on_gpu=True,
    ),
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
}
# The fastest first. In fp32 the two for CPUs take about the same time, and ONNX Runtime loads
# faster and takes less memory. On a CPU, fp16 is for those who ask for it.
_AUTO_ORDER = (
    ("tensorrt", "fp16"),
    ("tensorrt-rtx", "fp16"),
    ("ort-cuda", "fp16"),
    ("openvino", "bf16"),
    ("tensorrt", "fp32"),
    ("tensorrt-rtx", "fp32"),
    ("ort-cuda", "fp32"),
    ("ort-cpu", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "fp16"),
    ("ort-cpu", "fp16"),
)
ENGINES = (AUTO, *_FAMILIES)
PRECISIONS = (AUTO, "fp32", "fp16", "bf16")


def select(
    engine: str = AUTO,
    precision: str = AUTO,
    rejected: Mapping[tuple[str, str], str] | None = None,
) -> Choice:
    """Find an engine that works here.

    Parameters
    ----------
    engine
        One of `ENGINES`; ``"auto"`` takes the fastest that works.
    precision
        One of `PRECISIONS`; ``"auto"`` takes the engine's best.
    rejected
        Engines and precisions that ``"auto"`` passes over, and why.

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
        return _best(precision, rejected or {})
    works = _FAMILIES[engine].probe()
    if precision != AUTO and precision not in works:
        raise EngineError(
            f"--precision got '{precision}'; engine '{engine}' does {', '.join(works)} on this "
            "machine. Choose one of them, or --precision auto."
        )
    chosen = works[0] if precision == AUTO else precision
    return _choice(engine, chosen, "as asked for.")


def _one_line(text: str) -> str:
    """Libraries' messages may have several."""
    return " ".join(text.split())


def _best(precision: str, rejected: Mapping[tuple[str, str], str]) -> Choice:
    """The first of the order that works, and what came before it and does not."""
    works: dict[str, tuple[str, ...]] = {}
    missing: dict[str, str] = {}
    for kind, candidate in _AUTO_ORDER:
        if precision not in (AUTO, candidate):
            continue
        if (kind, candidate) in rejected:
            missing.setdefault(kind, _one_line(rejected[kind, candidate]))  # the first says most
            continue
        if kind not in works:
            try:
                works[kind] = _FAMILIES[kind].probe()
            except NoDeviceError:
                works[kind], missing[kind] = (), ""  # nobody expects it: not worth a word
            except MissingDependencyError as error:
                works[kind] = ()
                itself = error.package.replace("_", "-") == kind
                what = "is not installed" if itself else f"lacks {error.package}"
                missing[kind] = f"{kind} {what} ({error.install})."
            except EngineError as error:
                works[kind] = ()
                missing[kind] = _one_line(str(error))
        if candidate in works[kind]:
            best = "the fastest that works here" if precision == AUTO else f"fastest in {candidate}"
            return _choice(kind, candidate, " ".join([f"{best}.", *filter(None, missing.values())]))
        missing.setdefault(kind, f"{kind} does not compute in {candidate} on this machine.")
    wanted, remedy = (
        ("", "") if precision == AUTO else (f" in {precision}", " Or choose another --precision.")
    )
    reasons = " ".join(filter(None, missing.values()))
    raise EngineError(f"No engine works here{wanted}. {reasons}{remedy}")


@dataclass(frozen=True)
class Finding:
    """An engine with the precisions that work here, best first, or what is in the way."""

    kind: str
    precisions: tuple[str, ...]
    problem: str | None


def survey() -> tuple[Finding, ...]:
    """Every engine, asked as `select` asks it."""

    def ask(kind: str) -> Finding:
        try:
            return Finding(kind, _FAMILIES[kind].probe(), None)
        except (EngineError, MissingDependencyError) as error:
            return Finding(kind, (), str(error))

    return tuple(ask(kind) for kind in _FAMILIES)


def _choice(kind: str, precision: str, reason: str) -> Choice:
    graph = _FAMILIES[kind].graphs[precision]
    return Choice(kind, precision, graph, f"engine: {kind} in {precision}, {reason}")


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
    _check_known(kind, tuple(_FAMILIES), "--engine")
    _check_known(precision, tuple(_FAMILIES[kind].graphs), "--precision")
    check_graph(graph, entry.file)
    return _FAMILIES[kind].open(graph, entry, precision, options or EngineOptions())


def open_transforms(bundle: Bundle, kind: str, options: EngineOptions) -> tuple[Engine, Engine]:
    """The wavelet transform and its inverse beside an engine of a kind: of fields of any size.

    Raises
    ------
    EngineError, MissingDependencyError
        As for `open_engine`.
    """
    entries = bundle.manifest.graphs

    def transform(role: str) -> Engine:
        if not _FAMILIES[kind].any_size:
            return NumpyTransform(role, entries[role], bundle.manifest.wavelet)
        return open_engine(bundle.graph(role), entries[role], kind, "fp32", options)

    return transform("dwt"), transform("idwt")


def gpu_of(kind: str) -> Gpu | None:
    """The GPU that an engine runs on; None for one on the CPU.

    Raises
    ------
    EngineError
        There is none.
    """
    return probe_gpu() if _FAMILIES[kind].on_gpu else None


def step_pays(kind: str) -> bool:
    """Whether an engine's fused step is faster than its score graph and the loop in NumPy."""
    return _FAMILIES[kind].step_pays


def has_step(kind: str, precision: str) -> bool:
    """Whether `open_step` knows how to open an engine's fused step in a precision."""
    return precision in _FAMILIES[kind].step_precisions


def open_step(bundle: Bundle, choice: Choice, options: EngineOptions) -> StepEngine:
    """The fused step of a bundle, on the engine of a choice.

    Raises
    ------
    BundleError
        The bundle has none.
    EngineError, MissingDependencyError
        The engine has none in this precision, or as for `open_engine`.
    """
    precisions = _FAMILIES[choice.kind].step_precisions
    if choice.precision not in precisions:
        raise EngineError(
            f"Engine '{choice.kind}' would do the sampler's update in {choice.precision}; expected "
            f"{' or '.join(precisions)}. Choose --precision fp32, or leave out --fused-step."
        )
    graph, entry = step_graph(bundle, choice.graph)
    check_graph(graph, entry.file)
    return _FAMILIES[choice.kind].open_step(graph, entry, choice.precision, options)


def _check_known(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise EngineError(
            f"{what} got '{value}'; expected one of {', '.join(known)}. Choose one of them."
        )
