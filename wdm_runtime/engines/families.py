"""The families of engines, and in which order `auto` asks them.

A family is one entry of `FAMILIES`, and one or more lines of `AUTO_ORDER`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from wdm_runtime.cache import cache_folder
from wdm_runtime.engines.engine import Engine
from wdm_runtime.engines.openvino import OpenVinoEngine
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.ort import OrtCpuEngine
from wdm_runtime.engines.ort_cuda import OrtCudaEngine
from wdm_runtime.engines.ort_cuda import precisions as ort_cuda_precisions
from wdm_runtime.engines.ort_cuda_step import OrtCudaStep
from wdm_runtime.engines.plan_cache import PlanCache
from wdm_runtime.engines.step import HostStep, StepEngine
from wdm_runtime.engines.tensorrt import TensorRtEngine
from wdm_runtime.engines.tensorrt import precisions as tensorrt_precisions
from wdm_runtime.engines.tensorrt_step import TensorRtStep
from wdm_runtime.errors import OutputError
from wdm_runtime.manifest import GraphEntry

_Opened = TypeVar("_Opened")


@dataclass(frozen=True)
class Family:
    """Engines of one library.

    ``probe`` gives the precisions that work on this machine, best first, or raises what is missing
    and how to get it; ``open`` takes a graph, its entry, a precision and options; ``graphs`` says
    of which precision the graph has to be for each precision it computes in; ``any_size`` whether
    it takes graphs with more free sizes than the batch; ``open_step`` takes a fused step's graph in
    the precisions ``step_precisions``, and ``step_pays`` says whether that is faster than the loop
    in NumPy; ``on_gpu`` says where it runs; ``lacks`` why, where the probe leaves out a precision.
    """

    probe: Callable[[], tuple[str, ...]]
    open: Callable[[bytes, GraphEntry, str, EngineOptions], Engine]
    graphs: Mapping[str, str]
    open_step: Callable[[bytes, GraphEntry, str, EngineOptions], StepEngine]
    any_size: bool = True
    step_pays: bool = False
    step_precisions: tuple[str, ...] = ("fp32", "fp16", "bf16")
    on_gpu: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)


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


def _plans_folder() -> Path | None:
    try:
        return cache_folder() / "plans"
    except OutputError:  # who builds a plan is told
        return None


def _tensorrt(kind: str, lacks: Mapping[str, str] | None = None) -> Family:
    def with_plan(
        engine: Callable[[bytes, GraphEntry, str, str, PlanCache, EngineOptions], _Opened],
    ) -> Callable[[bytes, GraphEntry, str, EngineOptions], _Opened]:
        def open_plan(
            graph: bytes, entry: GraphEntry, precision: str, options: EngineOptions
        ) -> _Opened:
            cache = PlanCache(_plans_folder(), options.note)
            return engine(graph, entry, precision, kind, cache, options)

        return open_plan

    return Family(
        functools.partial(tensorrt_precisions, kind),
        with_plan(TensorRtEngine),
        {"fp16": "fp16", "fp32": "fp32"},
        with_plan(TensorRtStep),
        any_size=False,
        step_pays=True,  # a step copies one tile instead of three; not measured on a GPU yet
        on_gpu=True,
        lacks=lacks or {},
    )


FAMILIES = {
    "ort-cpu": Family(
        OrtCpuEngine.precisions,
        _open_on_cpu(OrtCpuEngine),
        {"fp32": "fp32", "fp16": "fp16"},
        _open_on_cpu(lambda *arguments: HostStep(OrtCpuEngine(*arguments))),
    ),
    "openvino": Family(
        OpenVinoEngine.precisions,
        _open_on_cpu(OpenVinoEngine),
        {"bf16": "fp32", "fp16": "fp32", "fp32": "fp32"},  # it converts the weights itself
        _open_openvino_step,
        step_precisions=_OPENVINO_STEPS,
    ),
    "ort-cuda": Family(
        ort_cuda_precisions,
        OrtCudaEngine,
        {"fp16": "fp16", "fp32": "fp32"},
        OrtCudaStep,
        any_size=False,
        step_pays=True,  # a step copies one tile instead of three; not measured on a GPU yet
        on_gpu=True,
        lacks={"fp16": "onnxruntime-gpu before 1.25 has no kernel for its Resize"},
    ),
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt(
        "tensorrt-rtx", {"fp32": "it has no kernels in fp32 for compute capability 7.5"}
    ),
}
# The fastest first. In fp32 the two for CPUs take about the same time, and ONNX Runtime loads
# faster and takes less memory. On a CPU, fp16 is for those who ask for it.
AUTO_ORDER = (
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
