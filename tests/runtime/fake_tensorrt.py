"""TensorRT modules that build "plans" of ONNX bytes and run them with ONNX Runtime on a `FakeCuda`.

`tensorrt_api.json` lists classes, members, parameters and enums as read from the real bindings of
TensorRT 10.16, TensorRT 11.4 and TensorRT-RTX 1.7. A member that the real class of a version does
not have is taken away here, one with other parameters is an error, and attributes that the real
class does not have cannot be set. So a wrong name or argument fails as it would there.
"""

from __future__ import annotations

import inspect
import json
from enum import IntEnum
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime

API = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
VERSIONS = tuple(API)
_MAGIC = b"fake plan "
NO_CUDA = "CUDA initialization failure with error: 35"


class Crash(BaseException):
    """What would end the process, which no code can catch."""


def parameters(function):
    """As the table writes them: without self, and with = where there is a default."""
    found = list(inspect.signature(function).parameters.values())[1:]
    return [p.name + ("=" if p.default is not p.empty else "") for p in found]


def conform(members):
    """A class decorator: leave only what the real class has, and check its parameters."""

    def check(cls):
        for name, value in list(vars(cls).items()):
            if name.startswith("_") and name != "__init__":
                continue
            if name not in members:
                delattr(cls, name)
            elif callable(value) and members[name] and name != "__init__":
                assert parameters(value) in members[name], (cls, name, members[name])

        def set_attribute(self, name, value):
            if not name.startswith("_") and members.get(name, ()) is not None:
                raise AttributeError(f"{cls.__name__} has no attribute {name} to set")
            object.__setattr__(self, name, value)

        cls.__setattr__ = set_attribute
        return cls

    return check


def fake_tensorrt(api_version, cuda, name="tensorrt"):  # one scope: the classes need each other
    """A module; ``behaviour`` in it lets a test make it misbehave."""
    api = API[api_version]
    trt = ModuleType(name)
    trt.__version__ = api["version"]
    trt.behaviour = {}
    trt.built = []
    for enum, values in api["enums"].items():
        if enum != "Severity":
            setattr(trt, enum, IntEnum(enum, values))
    severity = IntEnum("Severity", api["enums"]["Severity"])
    types = {"tensor(float)": trt.DataType.FLOAT, "tensor(float16)": trt.DataType.HALF}

    def real(cls):
        setattr(trt, cls.__name__, conform(api["classes"][cls.__name__])(cls))
        return cls

    @real
    class ILogger:
        Severity = severity

        def __init__(self):
            self._ready = True

    @real
    class IProgressMonitor:
        def __init__(self):
            self._ready = True

    # Subclasses set attributes of their own, as they may on the real ones.
    del ILogger.__setattr__, IProgressMonitor.__setattr__

    class Memory:
        def __init__(self, data):
            self._data = data

        def __bytes__(self):
            return self._data

    @real
    class ITensor:
        def __init__(self, network, argument, is_input):
            self._network, self._input = network, is_input
            self._name, self._dtype = argument.name, types[argument.type]
            self._shape = tuple(d if isinstance(d, int) else -1 for d in argument.shape)

        name = property(lambda self: self._name)
        dtype = property(lambda self: self._dtype)

        def _get_shape(self):
            batch = self._network._inputs[0]._shape[0]
            return self._shape if self._input else (batch, *self._shape[1:])

        def _set_shape(self, shape):
            assert self._input, "only the shapes of inputs may be set"
            self._shape = tuple(shape)

        shape = property(_get_shape, _set_shape)

    @real
    class INetworkDefinition:
        num_inputs = property(lambda self: len(self._inputs))
        num_outputs = property(lambda self: len(self._outputs))

        def get_input(self, index):
            return self._inputs[index]

        def get_output(self, index):
            return self._outputs[index]

    @real
    class ParserError:
        def desc(self):
            return "not an ONNX file"

    @real
    class OnnxParser:
        def __init__(self, network, logger):
            assert logger._ready
            self._network, self._errors = network, []

        num_errors = property(lambda self: len(self._errors))

        def parse(self, model, path=None):
            try:
                session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            except Exception:
                self._errors.append(ParserError())
                return False
            network = self._network
            network._graph = model
            network._inputs = [ITensor(network, a, True) for a in session.get_inputs()]
            network._outputs = [ITensor(network, a, False) for a in session.get_outputs()]
            return True

        def get_error(self, index):
            return self._errors[index]

    @real
    class ITimingCache:
        def serialize(self):
            return Memory(b"timings")

    @real
    class IBuilderConfig:
        def __init__(self):
            self._flags = {trt.BuilderFlag.TF32}
            self._monitor = self._target = self._timings = None
            self._targets = 0

        def _set_monitor(self, monitor):
            assert monitor._ready
            self._monitor = monitor

        progress_monitor = property(lambda self: self._monitor, _set_monitor)
        num_compute_capabilities = property(
            lambda self: self._targets, lambda self, value: setattr(self, "_targets", value)
        )

        def set_flag(self, flag):
            self._flags.add(trt.BuilderFlag(flag))

        def clear_flag(self, flag):
            self._flags.discard(trt.BuilderFlag(flag))

        def set_compute_capability(self, compute_capability, index):
            self._target = trt.ComputeCapability(compute_capability)
            return index < self._targets

        def create_timing_cache(self, serialized_timing_cache):
            self._timings = bytes(serialized_timing_cache)
            return ITimingCache()

        def set_timing_cache(self, cache, ignore_mismatch):
            return isinstance(cache, ITimingCache) and not ignore_mismatch

        def get_timing_cache(self):
            return ITimingCache()

    @real
    class Builder:
        def __init__(self, logger):
            assert logger._ready
            if trt.behaviour.get("no cuda"):
                logger.log(severity.ERROR, NO_CUDA)
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._log = logger

        def create_network(self, flags=0):
            assert flags == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            return INetworkDefinition()

        def create_builder_config(self):
            return IBuilderConfig()

        def build_serialized_network(self, network, config):
            shapes = {t.name: list(t.shape) for t in network._inputs + network._outputs}
            monitor, fails = config._monitor, trt.behaviour.get("build")
            if monitor:
                monitor.phase_start("Building engine", None, 2)
                for step in range(2):
                    if not monitor.step_complete("Building engine", step):
                        return None
                monitor.phase_finish("Building engine")
            if fails or any(-1 in shape for shape in shapes.values()):
                self._log.log(severity.ERROR, fails or "no optimization profile")
                return None
            trt.built.append(config)
            user_allocation = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
            capturable = user_allocation is None or user_allocation in config._flags
            head = {"version": trt.__version__, "shapes": shapes, "capturable": capturable}
            return Memory(_MAGIC + json.dumps(head).encode() + b"\n" + network._graph)

    @real
    class Runtime:
        def __init__(self, logger):
            assert logger._ready
            if trt.behaviour.get("no cuda"):
                raise Crash("the real one tells its log alone; its use and its end are a SIGSEGV")
            self._log = logger

        def deserialize_cuda_engine(self, serialized_engine):
            head, _, graph = serialized_engine.partition(b"\n")
            if not head.startswith(_MAGIC) or trt.behaviour.get("deserialize"):
                self._log.log(severity.ERROR, "Serialization assertion failed")
                return None
            return ICudaEngine(json.loads(head[len(_MAGIC) :]), graph)

    if "IRuntimeCache" in api["classes"]:

        @real
        class IRuntimeCache:
            def deserialize(self, blob):
                trt.behaviour["kernels"] = bytes(blob)
                return True

            def serialize(self):
                return Memory(b"kernels")

    @real
    class IRuntimeConfig:
        def create_runtime_cache(self):
            return trt.IRuntimeCache()

        def set_runtime_cache(self, cache=None):
            return True

    @real
    class ICudaEngine:
        def __init__(self, head, graph):
            self._shapes, self._capturable = head["shapes"], head["capturable"]
            self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
            self._inputs = {a.name: a for a in self._session.get_inputs()}
            self._tensors = {**self._inputs, **{a.name: a for a in self._session.get_outputs()}}

        num_io_tensors = property(lambda self: len(self._tensors))

        def get_tensor_name(self, index):
            return list(self._tensors)[index]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.INPUT if name in self._inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return types[self._tensors[name].type]

        def get_tensor_shape(self, name):
            return self._shapes[name]

        def create_runtime_config(self):
            return IRuntimeConfig()

        def create_execution_context(self, runtime_config=None):
            return None if trt.behaviour.get("no_memory") else IExecutionContext(self)

    @real
    class IExecutionContext:
        def __init__(self, engine):
            self._engine, self._addresses, self._warm = engine, {}, False

        def set_tensor_address(self, name, memory):
            self._addresses[name] = memory
            return name in self._engine._tensors and memory in cuda.memory

        def is_stream_capturable(self, stream):
            assert stream in cuda.streams
            return self._engine._capturable and not trt.behaviour.get("not capturable")

        def execute_async_v3(self, stream_handle):
            if trt.behaviour.get("execute") or set(self._addresses) != set(self._engine._tensors):
                return False
            allocates = not self._engine._capturable
            if allocates or not self._warm or trt.behaviour.get("never_warm"):
                if cuda.capturing is not None:  # the first run allocates and waits
                    cuda.capture_broken = True
                    cuda.last_error = cuda.cudaError_t.cudaErrorStreamCaptureUnsupported
                    return False
                self._warm = True
            cuda.queue(stream_handle, self._kernels)
            return True

        def _view(self, name):
            memory = cuda.memory[self._addresses[name]].view(np.float32)
            return memory.reshape(self._engine._shapes[name])

        def _kernels(self):
            feeds = {name: self._view(name) for name in self._engine._inputs}
            for argument in self._engine._session.get_outputs():
                result = self._engine._session.run([argument.name], feeds)[0]
                alter = trt.behaviour.get("answer", lambda _, values: values)
                self._view(argument.name)[...] = alter(feeds, result)

    return trt
