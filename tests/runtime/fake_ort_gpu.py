"""onnxruntime-gpu on a GPU that does not exist: the real ONNX Runtime behind its CUDA provider.

Session options, run options, graphs and numbers are those of the ONNX Runtime that is installed,
whose Python interface is the same with and without CUDA. Only what a GPU would do is made up:
tensors on it, which NumPy cannot see, and CUDA graphs, which read and write where they were
recorded. Methods must have the parameters of the real ones, and an option of the CUDA provider the
name of a real one.
"""

from __future__ import annotations

import inspect
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime as real

VERSION = "1.31.1"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# Of the CUDA provider's options, as onnxruntime-gpu 1.31.1 gives them back from a session's
# `get_provider_options`, those that this project sets.
PROVIDER_OPTIONS = {"device_id", "use_tf32", "enable_cuda_graph"}
NO_FALLBACK = "session.disable_cpu_ep_fallback"
FELL_BACK = (
    "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the "
    "default CPU EP, but fallback to CPU EP has been explicitly disabled by the user."
)
NO_MEMORY = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: CUDA failure 2: "
    "out of memory"
)
NODES_ELSEWHERE = (
    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested"
)
# What ONNX Runtime's page on the CUDA provider says of CUDA graphs. The real one does not refuse:
# it keeps a stream and memory for each thread.
OTHER_THREAD = (
    "Run() may not be invoked on the same InferenceSession object from multiple threads while "
    "using CUDA Graphs"
)


def like(original):
    """A class decorator: methods take what those of the real class take."""

    def check(cls):
        for name, value in vars(cls).items():
            if callable(value) and not name.startswith("_"):
                ours, theirs = (
                    list(inspect.signature(f).parameters) for f in (value, getattr(original, name))
                )
                theirs = theirs if theirs[:1] == ["self"] else ["cls", *theirs]
                assert ours[1:] == theirs[1 : len(ours)], (cls, name, ours, theirs)
        return cls

    return check


def fake_onnxruntime_gpu():
    """A module; its ``behaviour`` makes it misbehave, ``log`` and ``copied`` tell what was done."""
    ort = ModuleType("onnxruntime")
    ort.__version__ = VERSION
    ort.behaviour, ort.log, ort.copied, ort.sessions = {}, [], [], []
    ort.RunOptions = real.RunOptions
    ort.get_available_providers = lambda: ["TensorrtExecutionProvider", CUDA, CPU]
    ort.preload_dlls = lambda: (print("Failed to load libcufft.so.12"), ort.log.append("preload"))

    class SessionOptions(real.SessionOptions):
        """The real ones, but for what a session without CUDA would refuse."""

        def __init__(self):
            super().__init__()
            self.own = {}

        def add_session_config_entry(self, key, value):
            if key == NO_FALLBACK:
                self.own[key] = value
            else:
                super().add_session_config_entry(key, value)

    @like(real.OrtValue)
    class OrtValue:
        @classmethod
        def ortvalue_from_shape_and_type(cls, shape, element_type, device_type="cpu", device_id=0):
            assert (device_type, device_id) == ("cuda", 0)
            if ort.behaviour.get("no memory for tensors"):
                raise RuntimeError(NO_MEMORY)
            value = cls()
            value._data = np.full(shape, 0xFF, element_type)
            value._data.view(np.uint8)[...] = 0xFF  # NaN until something is written
            return value

        def update_inplace(self, data):
            assert data.shape == self._data.shape and data.dtype == self._data.dtype
            ort.copied.append(("to", data.nbytes))
            self._data[...] = data

        def numpy(self):
            ort.copied.append(("from", self._data.nbytes))
            return self._data.copy()

    @like(real.IOBinding)
    class IOBinding:
        def __init__(self):
            self._inputs, self._outputs = {}, {}

        def bind_ortvalue_input(self, name, ortvalue):
            self._inputs[name] = ortvalue

        def bind_ortvalue_output(self, name, ortvalue):
            self._outputs[name] = ortvalue

    @like(real.InferenceSession)
    class InferenceSession:
        def __init__(self, path_or_bytes, sess_options=None, providers=None, **kwargs):
            ((name, self._options),) = providers
            assert name == CUDA and set(self._options) <= PROVIDER_OPTIONS
            assert all(isinstance(value, str) for value in self._options.values())
            assert not kwargs.get("enable_fallback", 1), "would try the CPU, and print"
            self._graph = self._options.get("enable_cuda_graph") == "1"
            if ort.behaviour.get("does not load") or (
                self._graph and ort.behaviour.get("graph does not load")
            ):
                raise RuntimeError(ort.behaviour.get("does not load") or NODES_ELSEWHERE)
            if ort.behaviour.get("on the cpu") and sess_options.own.get(NO_FALLBACK) == "1":
                raise RuntimeError(FELL_BACK)
            self._real = real.InferenceSession(path_or_bytes, sess_options, providers=[CPU])
            self._recorded = {}  # by the number of the graph
            self._thread = threading.get_ident()
            ort.sessions.append(self)

        def get_inputs(self):
            return self._real.get_inputs()

        def get_outputs(self):
            return self._real.get_outputs()

        def get_providers(self):
            return [CUDA, CPU]  # the CPU's is always added

        def get_provider_graph_assignment_info(self):
            parts = self._real.get_provider_graph_assignment_info()
            assert parts, "the session was not asked to record it"
            elsewhere = ort.behaviour.get("one node on the cpu")
            return [SimpleNamespace(ep_name=CUDA) for _ in parts] + (
                [SimpleNamespace(ep_name=CPU)] if elsewhere else []
            )

        def io_binding(self):
            return IOBinding()

        def run_with_iobinding(self, iobinding, run_options=None):
            if self._graph and threading.get_ident() != self._thread:
                raise RuntimeError(OTHER_THREAD)
            number = run_options.get_run_config_entry("gpu_graph_id")
            how = "plain"
            if self._graph and number != "-1":
                how = "replay" if number in self._recorded else "record"
                if how == "record":
                    if ort.behaviour.get("does not record"):
                        raise RuntimeError("operation not permitted when stream is capturing")
                    stale = ort.behaviour.get("records nothing")
                    bound = iobinding._inputs, iobinding._outputs
                    self._recorded[number] = ({}, {}) if stale else bound
                inputs, outputs = self._recorded[number]
            else:
                inputs, outputs = iobinding._inputs, iobinding._outputs
            ort.log.append(how)
            if ort.behaviour.get("fails"):
                raise RuntimeError(ort.behaviour["fails"])
            feeds = {name: value._data for name, value in inputs.items()}
            for name, value in outputs.items():
                alter = ort.behaviour.get("answer", lambda _, values: values)
                value._data[...] = alter(feeds, self._real.run([name], feeds)[0])

    for cls in (SessionOptions, OrtValue, IOBinding, InferenceSession):
        setattr(ort, cls.__name__, cls)
    return ort
