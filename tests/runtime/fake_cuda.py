"""A GPU of NumPy arrays behind the functions of `cuda.bindings.runtime`.

Names, parameters and results are those of cuda-bindings 12.9 and 13.5 (a test compares them with
whichever is installed). Copies and kernels only queue: nothing happens before the stream is
synchronised, and while a stream captures they are recorded instead. Allocating or waiting breaks a
capture, as it does on a GPU.
"""

from __future__ import annotations

import ctypes
import functools
from enum import IntEnum

import numpy as np

FIRST_ADDRESS = 0x7F00_0000_0000  # nothing of this process lives there: touching it is an error
_FORBIDDEN_IN_CAPTURE = {"cudaMalloc", "cudaHostAlloc", "cudaFree", "cudaStreamSynchronize"}


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


def entry_point(function):
    """Count a call, let it fail if a test says so, and give its results as a tuple."""
    name = function.__name__

    @functools.wraps(function)
    def call(self, *arguments):
        self.calls.append(name)
        if name in self.faults:
            status = self.faults[name]
            if name == "cudaStreamEndCapture":
                self.capturing = None  # even a capture that fails is over
        elif name in _FORBIDDEN_IN_CAPTURE and self.capturing is not None:
            self.capture_broken = True
            status = cudaError_t.cudaErrorStreamCaptureUnsupported
        else:
            results = function(self, *arguments)
            status = results[0]
            if status == cudaError_t.cudaSuccess:
                return results
        self.last_error = status
        return (status,) if name in self.no_result else (status, None)

    return call


class FakeCuda:
    """Goes into `sys.modules` as ``cuda.bindings.runtime``."""

    cudaError_t = cudaError_t
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0
    cudaMemcpyKind = IntEnum(
        "cudaMemcpyKind",
        {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2, "cudaMemcpyDeviceToDevice": 3},
    )
    cudaStreamCaptureMode = IntEnum(
        "cudaStreamCaptureMode", {"cudaStreamCaptureModeThreadLocal": 1}
    )
    no_result = frozenset(
        {"cudaSetDevice", "cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaStreamSynchronize"}
        | {"cudaStreamBeginCapture", "cudaGraphLaunch", "cudaGraphDestroy", "cudaGraphExecDestroy"}
        | {"cudaMemcpyAsync"}
    )

    def __init__(self):
        self.calls, self.faults = [], {}
        self.copied = []  # (kind, bytes) of every copy that was carried out, replayed ones too
        self.memory, self.pinned, self.streams, self.graphs, self.replays = {}, {}, {}, {}, {}
        self.capturing, self.capture_broken = None, False
        self.last_error = cudaError_t.cudaSuccess
        self._next = FIRST_ADDRESS

    @property
    def live(self):
        """What has not been given back."""
        kinds = (self.memory, self.pinned, self.streams, self.graphs, self.replays)
        return sum(map(len, kinds))

    def queue(self, stream, work):
        """Queue a kernel, or record it if the stream captures."""
        (self.streams[int(stream)] if self.capturing is None else self.capturing).append(work)

    def _handle(self):
        self._next += 0x10_0000_0000
        return self._next

    @entry_point
    def cudaSetDevice(self, device):
        return (cudaError_t.cudaSuccess,)

    def cudaGetLastError(self):
        status, self.last_error = self.last_error, cudaError_t.cudaSuccess
        return (status,)

    @entry_point
    def cudaStreamCreateWithFlags(self, flags):
        handle = self._handle()
        self.streams[handle] = []
        return cudaError_t.cudaSuccess, handle

    @entry_point
    def cudaStreamDestroy(self, stream):
        del self.streams[int(stream)]
        return (cudaError_t.cudaSuccess,)

    @entry_point
    def cudaStreamSynchronize(self, stream):
        queued = self.streams[int(stream)]
        while queued:
            queued.pop(0)()
        return (cudaError_t.cudaSuccess,)

    @entry_point
    def cudaMalloc(self, size):
        handle = self._handle()
        self.memory[handle] = np.full(size, 0xFF, np.uint8)  # NaN until something is written
        return cudaError_t.cudaSuccess, handle

    @entry_point
    def cudaFree(self, devPtr):
        del self.memory[int(devPtr)]
        return (cudaError_t.cudaSuccess,)

    @entry_point
    def cudaHostAlloc(self, size, flags):
        buffer = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(buffer)
        self.pinned[address] = buffer
        return cudaError_t.cudaSuccess, address

    @entry_point
    def cudaFreeHost(self, ptr):
        del self.pinned[int(ptr)]
        return (cudaError_t.cudaSuccess,)

    @entry_point
    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        direction = self.cudaMemcpyKind(kind).name.removeprefix("cudaMemcpy")
        sides = {"Host": self.pinned, "Device": self.memory}
        source_side, target_side = (sides[side] for side in direction.split("To"))
        if src not in source_side or dst not in target_side:
            return (cudaError_t.cudaErrorInvalidValue,)
        if not count == len(source_side[src]) == len(target_side[dst]):
            return (cudaError_t.cudaErrorInvalidValue,)

        def copy():
            source, target = source_side[src], target_side[dst]
            np.frombuffer(target, np.uint8)[:] = np.frombuffer(source, np.uint8)
            self.copied.append((direction, count))

        self.queue(stream, copy)
        return (cudaError_t.cudaSuccess,)

    @entry_point
    def cudaStreamBeginCapture(self, stream, mode):
        assert self.capturing is None and not self.streams[int(stream)], "not idle"
        self.capturing, self.capture_broken = [], False
        return (cudaError_t.cudaSuccess,)

    @entry_point
    def cudaStreamEndCapture(self, stream):
        recorded, self.capturing = self.capturing, None
        if recorded is None or self.capture_broken:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        handle = self._handle()
        self.graphs[handle] = recorded
        return cudaError_t.cudaSuccess, handle

    @entry_point
    def cudaGraphInstantiate(self, graph, flags):
        handle = self._handle()
        self.replays[handle] = list(self.graphs[graph])
        return cudaError_t.cudaSuccess, handle

    @entry_point
    def cudaGraphLaunch(self, graphExec, stream):
        for work in self.replays[graphExec]:
            self.queue(stream, work)
        return (cudaError_t.cudaSuccess,)

    @entry_point
    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return (cudaError_t.cudaSuccess,)

    @entry_point
    def cudaGraphExecDestroy(self, graphExec):
        del self.replays[graphExec]
        return (cudaError_t.cudaSuccess,)
