"""TensorRT 10 and 11, and TensorRT-RTX: one class on the parts they share.

Nothing here has run on a GPU of this project's own; see the README for what is tested instead. So
an engine proves itself when it is opened: its answers have to be finite, to follow each input, and
to be the same with the CUDA graph as without.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.engines.cuda_memory import Device, Staged, cuda_runtime
from wdm_runtime.engines.engine import REPORT, check_tensors
from wdm_runtime.engines.fixed_batch import (
    Result,
    check_answers,
    fixed_shape,
    fixed_specs,
    run_in_launches,
    same_answers,
)
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.plan_cache import PlanCache
from wdm_runtime.engines.probe import Gpu, probe_gpu
from wdm_runtime.engines.tensorrt_module import (
    check_driver,
    dtype_name,
    load_module,
    logger,
    start,
    version_of,
)
from wdm_runtime.engines.tensorrt_plan import (
    build_plan,
    check_target,
    has_fp32,
    plan_key,
    runtime_cache_key,
    timing_key,
)
from wdm_runtime.errors import EngineError
from wdm_runtime.manifest import GraphEntry

Array = npt.NDArray[np.float32]
_REMEDY = f"Choose --engine ort-cpu, or {REPORT}."


def precisions(kind: str) -> tuple[str, ...]:
    """What works on this machine, best first.

    Raises
    ------
    EngineError
        There is no driver or GPU, CUDA does not start, or the TensorRT found is older than 10, for
        a newer CUDA than the driver's, or without kernels for this GPU.
    MissingDependencyError
        TensorRT or cuda-bindings is not installed.
    """
    gpu, trt, _ = _parts(kind)
    return ("fp16", "fp32") if has_fp32(trt, gpu.capability) else ("fp16",)


def _parts(kind: str) -> tuple[Gpu, Any, Any]:
    """The GPU, and the modules of TensorRT and of CUDA, which has started on it."""
    gpu = probe_gpu()
    trt = load_module(kind)  # first: without it nobody asks for what it would run on
    check_target(trt, gpu.capability)
    check_driver(kind, gpu)
    return gpu, trt, cuda_runtime(gpu)


class LoadedPlan(ABC):
    """A plan on the first GPU, with fixed buffers: one call at a time, others wait.

    What is copied when is for subclasses to say.

    Parameters
    ----------
    graph, entry
        The bytes of an ONNX file and what the manifest says of its tensors.
    precision
        The graph's, which is the engine's.
    kind
        ``"tensorrt"`` or ``"tensorrt-rtx"``.
    cache
        Where plans are kept.
    options
        How the plan is got and run.

    Raises
    ------
    EngineError
        There is no GPU; the plan cannot be built, read or run, or gives wrong answers.
    MissingDependencyError
        TensorRT or cuda-bindings is not installed.
    """

    def __init__(
        self,
        graph: bytes,
        entry: GraphEntry,
        precision: str,
        kind: str,
        cache: PlanCache,
        options: EngineOptions,
    ) -> None:
        self._gpu, self._trt, runtime = _parts(kind)
        self.kind, self.precision, self.batch = kind, precision, options.batch or 1
        self.device, self.version = str(self._gpu), version_of(self._trt)
        self.inputs, self.outputs = entry.inputs, entry.outputs
        self._file, self._cache, self._options = entry.file, cache, options
        self._lock = threading.Lock()
        self._runtime: Any = None
        self._kernels: Any = None  # TensorRT-RTX only
        self._known_kernels: bytes | None = None
        self._key = plan_key(self._trt, kind, graph, self.batch, self._gpu)
        with ExitStack() as owned:
            self._device = Device(runtime, options.note)
            owned.callback(self._device.close)
            self._load(graph, entry, owned)
            self._allocate()
            self._launch = self._queue
            answer = self._check_answers()
            self._keep_kernels()
            if options.cuda_graph:
                self._use_cuda_graph(answer)
            self._owned: ExitStack | None = owned.pop_all()

    @property
    def replays(self) -> bool:
        """Whether a call is one launch of a CUDA graph."""
        return self._launch != self._queue

    @abstractmethod
    def _queue(self) -> None:
        """Queue what one launch does. It may be captured, so it neither allocates nor waits."""

    @abstractmethod
    def _answer(self, feeds: Mapping[str, Array]) -> Array:
        """All that one launch makes of a whole batch of inputs."""

    def _alone(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Do a piece of work: one at a time, and none after `close`."""
        with self._lock:
            if self._owned is None:
                raise EngineError(
                    f"{self._file}: this engine was closed; expected an open one. Open another."
                )
            return work(*arguments)

    def close(self) -> None:
        """Free the GPU's memory; later calls are errors."""
        with self._lock:
            if self._owned is not None:
                owned, self._owned = self._owned, None
                owned.close()

    def _load(self, graph: bytes, entry: GraphEntry, owned: ExitStack) -> None:
        """The plan from the cache or the builder, as an engine with a context to run it."""
        self._log = logger(self._trt)
        engine = self._kept()
        if engine is None:
            engine = self._built(graph, entry)
        self._compare(engine, entry)
        self._context = self._create_context(engine)
        # Each needs the one before it for as long as it lives, and all of them CUDA.
        self._objects = [self._runtime, engine, self._context]
        owned.callback(self._drop_objects)

    def _drop_objects(self) -> None:
        self._context = self._kernels = self._runtime = None
        while self._objects:
            self._objects.pop()

    def _deserialized(self, plan: bytes) -> Any:
        """The engine of a plan; None of one that does not load.

        There is no runtime before there is a plan: where TensorRT does not start, its builder is an
        error, but a runtime may be had and end the process when it goes.
        """
        if self._runtime is None:
            self._runtime = start(self._trt, self._trt.Runtime)
        return self._runtime.deserialize_cuda_engine(plan)

    def _kept(self) -> Any:
        """The engine of the plan in the cache; None without one that loads."""
        plan = self._cache.read(self._key)
        engine = None if plan is None else self._deserialized(plan)
        if plan is not None and engine is None:
            if not self._options.build:
                raise self._error("does not load its plan of", "Build it again without --no-build.")
            self._options.note(
                f"{self.version} does not load its plan of {self._file} ({self._log.take()}); it "
                "is built again."
            )
            self._cache.remove(self._key)
        return engine

    def _built(self, graph: bytes, entry: GraphEntry) -> Any:
        """The engine of a plan that is built and, once it has loaded, kept."""
        options = self._options
        if self._cache.folder is None:
            nowhere = "there is no cache folder. Set XDG_CACHE_HOME"
            if not options.build:
                raise EngineError(
                    f"There is no plan of {self._file}; expected one: {nowhere}, or leave out "
                    "--no-build."
                )
            options.note(f"The plan of {self._file} is not kept: {nowhere}.")
        if not options.build:
            raise EngineError(
                f"There is no plan of {self._file} for {self.version}, {self.device} and batch "
                f"{self.batch} in {self._cache.folder}; expected one. Run 'wdm-run "
                "build-engine', or leave out --no-build."
            )
        with self._cache.only_one(self._key):
            engine = self._kept()
            if engine is None:  # else another process built it while this one waited
                plan = build_plan(
                    self._trt,
                    graph,
                    entry,
                    self.batch,
                    self._gpu.capability,
                    (self._cache, timing_key(self._key)),
                    options.progress,
                )
                engine = self._deserialized(plan)
                if engine is None:
                    raise self._error("does not load the plan it has just built of", _REMEDY)
                self._cache.write(self._key, plan)
        return engine

    def _compare(self, engine: Any, entry: GraphEntry) -> None:
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = self._trt.TensorIOMode
        for specs, mode in ((entry.inputs, modes.INPUT), (entry.outputs, modes.OUTPUT)):
            found = [
                (n, dtype_name(engine.get_tensor_dtype(n)), tuple(engine.get_tensor_shape(n)))
                for n in names
                if engine.get_tensor_mode(n) == mode
            ]
            expected = fixed_specs(specs, self.batch)
            check_tensors(entry.file, self.version, found, expected)

    def _create_context(self, engine: Any) -> Any:
        if not hasattr(self._trt, "IRuntimeCache"):
            context = engine.create_execution_context()
        else:  # TensorRT-RTX compiles kernels when a plan first runs: keep them for the next start
            config = engine.create_runtime_config()
            self._kernels = config.create_runtime_cache()
            self._known_kernels = self._cache.read(runtime_cache_key(self._key, self._gpu))
            if self._known_kernels is not None:
                self._kernels.deserialize(self._known_kernels)  # refused: it compiles them again
            config.set_runtime_cache(self._kernels)
            context = engine.create_execution_context(config)
        if context is None:
            raise self._error("has no memory to run", "Lower --batch, or free GPU memory.")
        return context

    def _keep_kernels(self) -> None:
        made = self._kernels.serialize() if self._kernels else None
        if made is not None and bytes(made) != self._known_kernels:
            self._cache.write(runtime_cache_key(self._key, self._gpu), bytes(made))

    def _allocate(self) -> None:
        self._tensors: dict[str, Staged] = {}
        for spec in (*self.inputs, *self.outputs):
            staged = self._device.allocate(fixed_shape(spec, self.batch), spec.dtype)
            if not self._context.set_tensor_address(spec.name, staged.address):
                raise self._error(f"refuses the address of '{spec.name}' in", _REMEDY)
            self._tensors[spec.name] = staged

    def _execute(self) -> None:
        """Queue the graph's kernels."""
        if not self._context.execute_async_v3(self._device.stream):
            raise self._error("failed in", "Lower --batch, or choose --engine ort-cpu.")

    def _use_cuda_graph(self, answer: Array) -> None:
        """Replay a CUDA graph if it gives the same answers, else go on launching kernels.

        TensorRT may allocate and synchronize in the first run, which a capture forbids: the check
        that gave ``answer`` was that run.
        """
        capturable = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX only
        try:
            if capturable and not capturable(self._device.stream):
                raise self._error("cannot be captured in a CUDA graph with", _REMEDY)
            self._launch = self._device.capture(self._queue)
            if not same_answers(self._check_answers(), answer):
                raise self._error("gives other values with a CUDA graph in", _REMEDY)
        except EngineError as error:
            self._launch = self._queue
            self._options.note(f"{self._file}: runs without a CUDA graph. {error}")
            self._check_answers()  # what failed may have taken the GPU with it

    def _check_answers(self) -> Array:
        return check_answers(
            self._answer, self.inputs, self.batch, lambda what: self._error(what, _REMEDY)
        )

    def _error(self, what: str, remedy: str) -> EngineError:
        return EngineError(f"{self.version} {what} {self._file} ({self._log.take()}). {remedy}")


class TensorRtEngine(LoadedPlan):
    """A graph whose inputs come from the host at every call, and whose output goes back."""

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """The graph's output for the inputs by name; any number of tiles."""
        return self._alone(self._answer, feeds)

    def _answer(self, feeds: Mapping[str, Array]) -> Array:
        output = self.outputs[0]
        host = {name: staged.host for name, staged in self._tensors.items()}

        def launch() -> Array:
            self._launch()
            self._device.synchronize()
            return host[output.name]

        return run_in_launches(feeds, self.inputs, output, self.batch, self.version, host, launch)

    def _queue(self) -> None:
        """Queue copies to the GPU, the graph's kernels and the copy back."""
        for spec in self.inputs:
            self._device.upload(self._tensors[spec.name])
        self._execute()
        for spec in self.outputs:
            self._device.download(self._tensors[spec.name])
