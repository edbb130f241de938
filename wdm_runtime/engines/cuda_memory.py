"""CUDA memory, copies, streams and graphs through cuda-bindings, with every status checked."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.engines.engine import REPORT
from wdm_runtime.engines.probe import Gpu
from wdm_runtime.errors import EngineError, MissingDependencyError

_REMEDIES = {
    "cudaErrorMemoryAllocation": "Lower --batch, or close other programs on the GPU.",
    "cudaErrorInsufficientDriver": (
        "Update the NVIDIA driver, or, where nvidia-smi shows CUDA 12, run: pip install "
        "'cuda-bindings>=12.9,<13'"
    ),
}
_OTHER_REMEDY = f"Choose --engine ort-cpu, or {REPORT}."


@dataclass(frozen=True)
class Staged:
    """A tensor on the GPU and the page-locked host array it is copied from or to.

    ``host`` is written again by every copy from the GPU, and is gone once its `Device` is closed:
    whoever gives it away gives a copy.
    """

    host: npt.NDArray[Any]
    address: int


class Device:
    """The first GPU: one stream, and all that was allocated for it until `close`.

    Parameters
    ----------
    runtime
        What `cuda_runtime` gave.
    note
        Told what cannot be released; nobody can do anything about it but report it.

    Raises
    ------
    EngineError
        In each method: a status that is not success.
    """

    def __init__(self, runtime: Any, note: Callable[[str], None]) -> None:
        self._runtime, self._note = runtime, note
        with ExitStack() as owned:
            # Work on the default stream cannot be captured.
            flags = self._runtime.cudaStreamNonBlocking
            self._stream = self._call("cudaStreamCreateWithFlags", flags)
            owned.callback(self._release, "cudaStreamDestroy", self._stream)
            self._owned = owned.pop_all()

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Staged:
        """A tensor of zeros on the host and room for it on the GPU."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pinned = self._call("cudaHostAlloc", count, self._runtime.cudaHostAllocDefault)
        self._owned.callback(self._release, "cudaFreeHost", pinned)
        address = self._call("cudaMalloc", count)
        self._owned.callback(self._release, "cudaFree", address)
        raw = (ctypes.c_uint8 * count).from_address(int(pinned))
        host = np.frombuffer(memoryview(raw), dtype=dtype).reshape(shape)
        host.fill(0)
        return Staged(host, int(address))

    def upload(self, tensor: Staged) -> None:
        """Queue the copy from the host to the GPU."""
        self._copy(tensor.address, tensor.host.ctypes.data, tensor, "cudaMemcpyHostToDevice")

    def download(self, tensor: Staged) -> None:
        """Queue the copy from the GPU to the host."""
        self._copy(tensor.host.ctypes.data, tensor.address, tensor, "cudaMemcpyDeviceToHost")

    def copy(self, target: Staged, source: Staged) -> None:
        """Queue the copy of one tensor on the GPU to another; nothing goes to the host."""
        self._copy(target.address, source.address, source, "cudaMemcpyDeviceToDevice")

    def _copy(self, target: int, source: int, tensor: Staged, kind: str) -> None:
        direction = getattr(self._runtime.cudaMemcpyKind, kind)
        self._call("cudaMemcpyAsync", target, source, tensor.host.nbytes, direction, self._stream)

    def synchronize(self) -> None:
        """Wait for all that was queued."""
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        """Record what ``queue`` queues as a CUDA graph, and return what replays it.

        After an error the stream is as before, and the work can be queued directly.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            queue()
            graph = self._call("cudaStreamEndCapture", self._stream)
            try:
                replay = self._call("cudaGraphInstantiate", graph, 0)
            finally:
                self._release("cudaGraphDestroy", graph)
        except BaseException:
            self._abandon_capture()
            raise
        self._owned.callback(self._release, "cudaGraphExecDestroy", replay)
        return partial(self._call, "cudaGraphLaunch", replay, self._stream)

    def _abandon_capture(self) -> None:
        """End a capture that failed; its statuses only repeat the failure."""
        _, graph = self._runtime.cudaStreamEndCapture(self._stream)
        if graph:
            self._runtime.cudaGraphDestroy(graph)
        # CUDA keeps the last error, which TensorRT would take for one of its next call.
        self._runtime.cudaGetLastError()

    def close(self) -> None:
        """Free everything, the latest first; host arrays are gone after this."""
        self._owned.close()

    def _call(self, function: str, *arguments: Any) -> Any:
        return _call(self._runtime, function, *arguments)

    def _release(self, function: str, handle: Any) -> None:
        try:
            self._call(function, handle)
        except EngineError as error:  # one that fails must not keep the others
            self._note(str(error))


def _call(runtime: Any, function: str, *arguments: Any) -> Any:
    status, *results = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        raise EngineError(
            f"CUDA's {function} gave {status.name}; expected cudaSuccess. "
            f"{_REMEDIES.get(status.name, _OTHER_REMEDY)}"
        )
    return results[0] if results else None


def cuda_runtime(gpu: Gpu) -> Any:
    """cuda-bindings' runtime module, with CUDA started on the first GPU.

    Raises
    ------
    EngineError
        CUDA does not start.
    MissingDependencyError
        It is not installed.
    """
    module = "cuda.bindings.runtime"
    try:
        runtime = importlib.import_module(module)
    except ImportError as error:
        # Not by an extra: whatever brought TensorRT, JetPack or pip, the driver decides which.
        install = f"pip install {gpu.bindings}"
        raise MissingDependencyError(
            f"Running on an NVIDIA GPU needs the Python package '{module}', which cannot be "
            f"imported ({error}). Install it with: {install}",
            "gpu",
            "cuda-bindings",
            install,
        ) from error
    _call(runtime, "cudaSetDevice", 0)  # starts it: a refusal is met before anything is built
    return runtime
