"""ONNX Runtime on an NVIDIA GPU, through its CUDA provider and nothing else.

ONNX Runtime itself falls back to the CPU without an error where CUDA does not load, so everything
it needs is looked at first, the fallback is forbidden, and where each node went is looked at after.
Nothing here has run on a GPU of this project's own: an engine proves itself when it is opened.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

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
from wdm_runtime.engines.ort import (
    check_distribution,
    check_placement,
    described,
    load_onnxruntime,
    session_options,
)
from wdm_runtime.engines.ort_libraries import CUDA_PROVIDER, Provider, providers
from wdm_runtime.engines.probe import Gpu, probe_gpu
from wdm_runtime.errors import EngineError, install_line
from wdm_runtime.manifest import GraphEntry, TensorSpec

Array = npt.NDArray[np.float32]
_KIND = "ort-cuda"
_PROVIDER = "CUDAExecutionProvider"
_NO_FALLBACK = "session.disable_cpu_ep_fallback"
_GRAPH_OF_RUN, _PLAINLY = "gpu_graph_id", "-1"
# Graphs in fp16 have Resize of opset 19, for which the CUDA provider had no kernel before
# (onnxruntime's pull request 27415).
_LOADS_FP16 = (1, 25)
_REMEDY = f"Lower --batch, free GPU memory, choose --engine ort-cpu, or {REPORT}."


def precisions() -> tuple[str, ...]:
    """What works on this machine, best first.

    Raises
    ------
    EngineError
        There is no driver or GPU, or no CUDA provider, or a library of it is missing or newer than
        the driver.
    """
    gpu = probe_gpu()
    check_distribution(_KIND, "gpu")
    ort = _load(gpu)
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    return ("fp16", "fp32") if version >= _LOADS_FP16 else ("fp32",)


def _load(gpu: Gpu) -> Any:
    """ONNX Runtime with all that its CUDA provider needs in the process."""
    ort = load_onnxruntime(_KIND, "gpu")
    provider = next(iter(providers(CUDA_PROVIDER)), None)  # the others' libraries stay unloaded
    if _PROVIDER not in ort.get_available_providers() or provider is None:
        raise EngineError(
            f"Engine '{_KIND}' found onnxruntime {ort.__version__} without {_PROVIDER}; expected "
            "onnxruntime-gpu, which installs the same files. Replace it with: pip uninstall -y "
            f"onnxruntime && {install_line('gpu')}"
        )
    _check_libraries(provider, gpu, f"onnxruntime-gpu {ort.__version__}")
    if hasattr(ort, "preload_dlls"):  # since 1.21: CUDA and cuDNN where their wheels put them
        with contextlib.redirect_stdout(io.StringIO()):  # prints what is wrong with optional ones
            ort.preload_dlls()
    return ort


def _check_libraries(provider: Provider, gpu: Gpu, version: str) -> None:
    if provider.cuda is not None and provider.cuda > gpu.cuda[0]:
        raise EngineError(
            f"Engine '{_KIND}' found {version} for CUDA {provider.cuda}, and a driver that runs up "
            f"to CUDA {gpu.cuda[0]}.{gpu.cuda[1]}; expected a driver as new. Update the NVIDIA "
            f"driver, or install an onnxruntime-gpu for CUDA {gpu.cuda[0]}."
        )
    if provider.missing:
        names = ", ".join(library.name for library in provider.missing)
        raise EngineError(
            f"Engine '{_KIND}' found {version}, but not {names}, which its CUDA provider needs. "
            f"{provider.remedy}"
        )


class CudaSession(ABC):
    """A graph in ONNX Runtime's CUDA provider, with fixed buffers: one call at a time, others wait.

    ONNX Runtime takes no session with a CUDA graph from more than one thread, and keeps a stream
    and memory for each thread that runs one: all that is done with a session is done on a thread of
    its own, which `close` ends.

    What is bound to which buffer, and copied when, is for subclasses to say.

    Parameters
    ----------
    graph, entry
        The bytes of an ONNX file and what the manifest says of its tensors.
    precision
        The graph's, which is the engine's; fp32 is without TF32.
    options
        How it is run.

    Raises
    ------
    EngineError
        There is no GPU; the provider or one of its libraries is missing; the graph does not load,
        is not all on the GPU, or gives wrong answers.
    """

    kind = _KIND

    def __init__(
        self, graph: bytes, entry: GraphEntry, precision: str, options: EngineOptions
    ) -> None:
        gpu = probe_gpu()
        self._ort = _load(gpu)
        self.precision, self.batch = precision, options.batch or 1
        self.device, self.version = str(gpu), f"onnxruntime-gpu {self._ort.__version__}"
        self.inputs, self.outputs = entry.inputs, entry.outputs
        self._file, self._lock = entry.file, threading.Lock()
        self._session: Any = None
        self._bindings: list[Any] = []
        self._tensors: dict[str, Any] = {}
        self._thread, self._process = ThreadPoolExecutor(1, "ort-cuda"), os.getpid()
        # A short last launch is filled up here, and every array made what the graph takes.
        self._host = {s.name: np.zeros(fixed_shape(s, self.batch), s.dtype) for s in self.inputs}
        self.replays = False
        try:
            problem = self._thread.submit(self._open_best, graph, options.cuda_graph).result()
        except BaseException:
            self._thread.shutdown()
            raise
        if problem:  # and no more than that: an error would have been raised
            options.note(f"{self._file}: runs without a CUDA graph. {problem}")

    @abstractmethod
    def _bind(self) -> None:
        """Make the tensors on the GPU and the bindings to them.

        Once: a CUDA graph reads and writes where it was recorded, one for each binding.
        """

    @abstractmethod
    def _answer(self, feeds: Mapping[str, Array]) -> Array:
        """What comes of inputs of a whole batch, by way of every binding."""

    def close(self) -> None:
        """Free the GPU's memory; a later call is an error."""
        if self._process != os.getpid():  # a fork has neither the thread nor what is to be freed
            return
        with self._lock:
            if self._session is None:
                return
            try:
                self._thread.submit(self._release).result()
            except RuntimeError:  # the interpreter ends, and has ended the thread
                self._release()
            self._thread.shutdown()

    def _alone(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Do a piece of work on the thread: one at a time, and none after `close`."""
        if self._process != os.getpid():  # waiting for the thread, which a fork has not, never ends
            raise EngineError(
                f"{self._file}: this engine was opened in process {self._process}; expected one of "
                f"process {os.getpid()}'s own, as CUDA does. Open engines after the fork."
            )
        with self._lock:
            if self._session is None:
                raise EngineError(
                    f"{self._file}: this engine was closed; expected an open one. Open another."
                )
            try:
                done = self._thread.submit(self._do, work, *arguments)
            except RuntimeError as error:  # the interpreter ends, and has ended the thread
                raise self._error("cannot be run any more in", error) from error
            return done.result()

    def _do(self, work: Callable[..., Result], *arguments: Any) -> Result:
        try:
            return work(*arguments)
        except EngineError:
            raise
        except Exception as error:  # ONNX Runtime's share no base class below Exception
            raise self._error("failed in", error) from error

    def _release(self) -> None:
        self._session, self._bindings = None, []
        self._tensors = {}

    def _open_best(self, graph: bytes, cuda_graph: bool) -> str | None:
        """Open with a CUDA graph where asked for and possible; what is in the way of one."""
        problem = self._open_replaying(graph) if cuda_graph else None
        if not self.replays:
            self._open(graph, cuda_graph=False)
            self._check_answers()
        return problem

    def _open_replaying(self, graph: bytes) -> str | None:
        """Open with a CUDA graph, if it gives the same answers as the kernels launched singly.

        Else what is in the way, in words: an error would keep the session that it came from.

        The first run on these buffers records it, after some that warm up; later ones replay it.
        """
        try:
            self._open(graph, cuda_graph=True)
            plain = self._check_answers()
            self.replays = True
            if not same_answers(self._check_answers(), plain):
                raise self._error("gives other values with a CUDA graph in")
        except EngineError as error:
            self.replays = False
            self._release()  # what failed to record is no state to go on from
            return str(error)
        return None

    def _open(self, graph: bytes, cuda_graph: bool) -> None:
        options = session_options(self._ort)
        options.add_session_config_entry(_NO_FALLBACK, "1")
        # With the batch fixed no shape is left to compute, which ONNX Runtime does on the CPU.
        for name in {n for spec in self.inputs for n in spec.shape if isinstance(n, str)}:
            options.add_free_dimension_override_by_name(name, self.batch)
        cuda = {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": str(int(cuda_graph))}
        try:
            self._session = self._ort.InferenceSession(
                graph, options, providers=[(_PROVIDER, cuda)], enable_fallback=0
            )
            self._bind()
        except Exception as error:  # its exceptions share no base class below Exception
            raise self._error("does not load", error) from error
        check_placement(self._session, self._file, _PROVIDER)
        for specs, found in (
            (self.inputs, self._session.get_inputs()),
            (self.outputs, self._session.get_outputs()),
        ):
            expected = fixed_specs(specs, self.batch)
            check_tensors(self._file, self.version, described(found), expected)

    def _tensor(self, spec: TensorSpec) -> Any:
        """Room for a tensor on the GPU."""
        return self._ort.OrtValue.ortvalue_from_shape_and_type(
            fixed_shape(spec, self.batch), np.dtype(spec.dtype).type, "cuda", 0
        )

    def _binding(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
        """The graph's tensors by name at their places on the GPU."""
        binding = self._session.io_binding()
        for spec in self.inputs:
            binding.bind_ortvalue_input(spec.name, inputs[spec.name])
        for spec in self.outputs:
            binding.bind_ortvalue_output(spec.name, outputs[spec.name])
        return binding

    def _launch(self, number: int = 0) -> None:
        """Run with one of the bindings, and wait for the end."""
        options = self._ort.RunOptions()
        graph = str(number + 1) if self.replays else _PLAINLY
        options.add_run_config_entry(_GRAPH_OF_RUN, graph)
        self._session.run_with_iobinding(self._bindings[number], options)

    def _check_answers(self) -> Array:
        answer = partial(self._do, self._answer)
        return check_answers(answer, self.inputs, self.batch, self._error)

    def _error(self, what: str, cause: Exception | None = None) -> EngineError:
        reason = "" if cause is None else f" ({cause})"
        return EngineError(f"{self.version} {what} {self._file}{reason}. {_REMEDY}")


class OrtCudaEngine(CudaSession):
    """A score graph; see `CudaSession`."""

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """The graph's output for the inputs by name; any number of tiles."""
        return self._alone(self._answer, feeds)

    def _bind(self) -> None:
        specs = (*self.inputs, *self.outputs)
        self._tensors = {spec.name: self._tensor(spec) for spec in specs}
        self._bindings = [self._binding(self._tensors, self._tensors)]

    def _answer(self, feeds: Mapping[str, Array]) -> Array:
        output = self.outputs[0]

        def launch() -> Array:
            for name, host in self._host.items():
                self._tensors[name].update_inplace(host)
            self._launch()
            answer: Array = self._tensors[output.name].numpy()
            return answer

        return run_in_launches(
            feeds, self.inputs, output, self.batch, self.version, self._host, launch
        )
