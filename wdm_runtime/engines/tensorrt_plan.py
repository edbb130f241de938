"""From an ONNX graph to a plan: the parser and the builder of TensorRT 10, 11 or TensorRT-RTX.

One code path for all three: what differs is tested for by name, never by version. Networks are
strongly typed, so that the graph alone decides the precision, and their shapes are fixed, so that
kernels are chosen for them and addresses never change.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

from wdm_runtime.bundle import sha256
from wdm_runtime.engines.engine import REPORT, check_tensors
from wdm_runtime.engines.fixed_batch import fixed_specs
from wdm_runtime.engines.options import Progress
from wdm_runtime.engines.plan_cache import Key, PlanCache
from wdm_runtime.engines.probe import Gpu
from wdm_runtime.engines.tensorrt_module import dtype_name, logger, start, version_of
from wdm_runtime.errors import EngineError
from wdm_runtime.manifest import GraphEntry, TensorSpec

_KEY_VERSION = 2  # goes up with every change of what this module asks of the builder
_FLAGS = "strongly typed, no TF32, user allocation where there is such a flag"


def plan_key(trt: Any, kind: str, graph: bytes, batch: int, gpu: Gpu) -> dict[str, str | int]:
    """Everything that another plan would be built for.

    The driver is no part of it: plans outlive its updates (`runtime_cache_key` has it).
    """
    return {
        "what": "plan",
        "key_version": _KEY_VERSION,
        "engine": kind,
        "version": trt.__version__,
        "graph": sha256(graph),
        "batch": batch,
        "flags": _FLAGS,
        "gpu": str(gpu),
        "platform": f"{sys.platform} {platform.machine()}",
    }


def runtime_cache_key(plan: Key, gpu: Gpu) -> dict[str, str | int]:
    """Of the kernels that TensorRT-RTX compiles when a plan first runs."""
    return {**plan, "what": "kernels", "driver_cuda": "{}.{}".format(*gpu.cuda)}


def timing_key(plan: Key) -> dict[str, str | int]:
    """Of the kernel timings that plans of all graphs and batches share."""
    shared = {name: value for name, value in plan.items() if name not in ("graph", "batch")}
    return {**shared, "what": "timings"}


def build_plan(
    trt: Any,
    graph: bytes,
    entry: GraphEntry,
    batch: int,
    capability: tuple[int, int],
    timings: tuple[PlanCache, Key] | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Build a plan. Native TensorRT needs the GPU for this, TensorRT-RTX only its capability.

    Parameters
    ----------
    trt
        The module: ``tensorrt`` or ``tensorrt_rtx``.
    graph, entry
        The bytes of an ONNX file and its tensors; ``entry.file`` names it in messages.
    batch
        The size of every free first dimension.
    capability
        The GPU's compute capability.
    timings
        Where kernel timings are kept, which make the next build shorter.
    progress
        Called from the builder; an exception it raises ends the build.

    Raises
    ------
    EngineError
        The graph cannot be parsed or built, or not for this GPU.
    """
    log = logger(trt)
    log.take()
    builder = start(trt, trt.Builder)
    network = _parse(trt, builder, graph, entry, batch)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is to be fp32; half precision is in the graph
    if "REQUIRE_USER_ALLOCATION" in trt.BuilderFlag.__members__:
        # TensorRT-RTX's plans may else allocate while they run, which a capture forbids.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if hasattr(config, "set_compute_capability"):  # TensorRT-RTX: any GPU, and no timings
        _set_target(trt, config, capability)
        timings = None
    if timings:
        known = config.create_timing_cache(timings[0].read(timings[1]) or b"")
        if known is None or not config.set_timing_cache(known, False):
            timings = None
    if progress:
        config.progress_monitor = monitor = _monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    if progress and monitor.error:
        raise monitor.error
    if plan is None:
        raise EngineError(
            f"{version_of(trt)} does not build {entry.file} for batch {batch} "
            f"({log.take()}). Lower --batch, choose --engine ort-cpu, or {REPORT}."
        )
    if timings:
        timings[0].write(timings[1], bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _parse(trt: Any, builder: Any, graph: bytes, entry: GraphEntry, batch: int) -> Any:
    """The graph as a network of fixed shapes, its tensors compared with the manifest."""
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger(trt))
    if not parser.parse(graph):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(
            f"{version_of(trt)} does not parse {entry.file} ({reasons or logger(trt).take()}). "
            "Export the bundle again with a lower opset, or choose --engine ort-cpu."
        )
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    for tensor in inputs:
        first, *others = tuple(tensor.shape)
        if first == -1:
            tensor.shape = (batch, *others)
    _compare(trt, inputs, entry.file, entry.inputs, batch)  # shapes of outputs follow from them
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    _compare(trt, outputs, entry.file, entry.outputs, batch)
    return network


def _compare(
    trt: Any, tensors: list[Any], file: str, specs: tuple[TensorSpec, ...], batch: int
) -> None:
    found = [(t.name, dtype_name(t.dtype), tuple(t.shape)) for t in tensors]
    check_tensors(file, version_of(trt), found, fixed_specs(specs, batch))


def check_target(trt: Any, capability: tuple[int, int]) -> str:
    """TensorRT-RTX's name of a compute capability; any of another module's.

    Raises
    ------
    EngineError
        It has no kernels for it.
    """
    wanted = "SM{}{}".format(*capability)
    if not hasattr(trt, "ComputeCapability"):
        return wanted
    known = [member for member in trt.ComputeCapability.__members__ if member.startswith("SM")]
    if wanted not in known:
        raise EngineError(
            f"{version_of(trt)} does not build for compute capability {wanted}; expected one of "
            f"{', '.join(known)}. Choose --engine tensorrt or --engine ort-cpu."
        )
    return wanted


def has_fp32(trt: Any, capability: tuple[int, int]) -> bool:
    """Whether fp32 graphs build: TensorRT-RTX has no such matrix products for one GPU it serves."""
    return not hasattr(trt, "ComputeCapability") or capability != (7, 5)


def _set_target(trt: Any, config: Any, capability: tuple[int, int]) -> None:
    """TensorRT-RTX compiles for the named GPU alone, instead of for all since 8.0."""
    wanted = check_target(trt, capability)
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(trt.ComputeCapability.__members__[wanted], 0):
        raise EngineError(
            f"{version_of(trt)} refuses compute capability {wanted} ({logger(trt).take()}). Choose "
            "--engine tensorrt or --engine ort-cpu."
        )


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            # An exception may not cross the builder's own frames: stop it, and raise afterwards.
            try:
                progress(phase_name, step + 1, self._steps.get(phase_name, 0))
            except BaseException as error:
                self.error = error
            return self.error is None

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
