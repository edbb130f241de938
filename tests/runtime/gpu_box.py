"""A machine with an NVIDIA GPU that does not exist: fakes of the driver, CUDA and TensorRT."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest
from fake_cuda import FakeCuda
from fake_ort_gpu import fake_onnxruntime_gpu
from fake_tensorrt import VERSIONS, fake_tensorrt

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import open_engine, ort, ort_cuda, ort_libraries
from wdm_runtime.engines import tensorrt as engine_module
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.ort_cuda_step import OrtCudaStep
from wdm_runtime.engines.plan_cache import PlanCache
from wdm_runtime.engines.probe import Gpu
from wdm_runtime.engines.step import step_graph
from wdm_runtime.engines.tensorrt import TensorRtEngine
from wdm_runtime.engines.tensorrt_step import TensorRtStep

# What the libraries of the real wheel list under NEEDED, and the extras of its metadata.
WHEEL = json.loads((Path(__file__).parent / "onnxruntime_gpu.json").read_text())
GPU = Gpu("Fake RTX", (8, 6), 8 << 30, (13, 0))


class _Machine:
    """What every box has: the tiny bundle, and what its graphs give on the CPU."""

    bundle: Bundle

    def graph(self, role):
        return self.bundle.graph(role), self.bundle.manifest.graphs[role]

    def reference(self, feeds, role="score_fp32"):
        return open_engine(*self.graph(role), "ort-cpu").run(feeds)


class Box(_Machine):
    """A machine with a GPU, a TensorRT module and the tiny bundle."""

    def __init__(self, version, tiny, tmp_path, monkeypatch):
        self.kind = "tensorrt-rtx" if version.startswith("rtx") else "tensorrt"
        self.cuda, self.notes, self.patch = FakeCuda(), [], monkeypatch
        self.trt = fake_tensorrt(version, self.cuda, self.kind.replace("-", "_"))
        self.behaviour = self.trt.behaviour
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda)
        monkeypatch.setitem(sys.modules, self.trt.__name__, self.trt)
        self._installed = importlib.metadata.version
        self.set_gpu(GPU)
        self.set_wheel(13)
        self.bundle = Bundle.open(tiny)
        self.cache = PlanCache(tmp_path / "plans", self.notes.append)

    def set_gpu(self, gpu):
        self.patch.setattr(engine_module, "probe_gpu", lambda: gpu)

    def set_wheel(self, cuda):
        """The CUDA of the wheel that brought TensorRT; None for one that pip did not install."""

        def version(name):
            if not name.startswith(f"{self.kind}-cu"):
                return self._installed(name)
            if name != f"{self.kind}-cu{cuda}":
                raise importlib.metadata.PackageNotFoundError(name)
            return self.trt.__version__

        self.patch.setattr(importlib.metadata, "version", version)

    def open(self, role="score_fp32", **options):
        options = EngineOptions(note=self.notes.append, **options)
        return TensorRtEngine(*self.graph(role), role[-4:], self.kind, self.cache, options)

    def open_step(self, precision="fp32", **options):
        options = EngineOptions(note=self.notes.append, **options)
        graph, entry = step_graph(self.bundle, precision)
        return TensorRtStep(graph, entry, precision, self.kind, self.cache, options)


class OrtBox(_Machine):
    """A machine with a GPU, onnxruntime-gpu with all its libraries, and the tiny bundle."""

    def __init__(self, tiny, monkeypatch):
        self.ort, self.notes, self.patch = fake_onnxruntime_gpu(), [], monkeypatch
        self.behaviour = self.ort.behaviour
        self.real = sys.modules["onnxruntime"]
        monkeypatch.setattr(ort_cuda, "load_onnxruntime", self._load)
        self.set_gpu(GPU)
        self.provide(found=lambda name: True)
        self.bundle = Bundle.open(tiny)

    def _load(self, kind, extra):
        found = sys.modules["onnxruntime"]
        return self.ort if found is self.real else ort.load_onnxruntime(kind, extra)

    def set_gpu(self, gpu):
        self.patch.setattr(ort_cuda, "probe_gpu", lambda: gpu)
        self.patch.setattr(engine_module, "probe_gpu", lambda: gpu)

    def provide(self, found):
        """The providers of the real wheel, with the libraries found that ``found`` says."""
        self.patch.setattr(ort_libraries, "_found", found)
        listed = tuple(ort_libraries.described(*item) for item in WHEEL["needed"].items())
        self.patch.setattr(
            ort_cuda, "providers", lambda name: tuple(p for p in listed if p.file == name)
        )

    def options(self, **options):
        return EngineOptions(note=self.notes.append, **options)

    def open(self, role="score_fp32", **options):
        return ort_cuda.OrtCudaEngine(*self.graph(role), role[-4:], self.options(**options))

    def open_step(self, precision="fp32", **options):
        graph, entry = step_graph(self.bundle, precision)
        return OrtCudaStep(graph, entry, precision, self.options(**options))


# Fixtures; tests give them the names they use: box, box10 = every_tensorrt, tensorrt10.


@pytest.fixture(params=VERSIONS)
def every_tensorrt(request, tiny, tmp_path, monkeypatch):
    return Box(request.param, tiny, tmp_path, monkeypatch)


@pytest.fixture
def tensorrt10(tiny, tmp_path, monkeypatch):
    return Box("10.16", tiny, tmp_path, monkeypatch)


@pytest.fixture
def onnxruntime_gpu(tiny, monkeypatch):
    return OrtBox(tiny, monkeypatch)


@pytest.fixture(params=[*VERSIONS, "ort-cuda"])
def every_engine(request, tiny, tmp_path, monkeypatch):
    if request.param == "ort-cuda":
        return OrtBox(tiny, monkeypatch)
    return Box(request.param, tiny, tmp_path, monkeypatch)
