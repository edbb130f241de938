"""A machine with an NVIDIA GPU that does not exist: fakes of the driver, CUDA and TensorRT."""

import importlib.metadata
import json
import sys
from pathlib import Path

from fake_cuda import FakeCuda
from fake_ort_gpu import fake_onnxruntime_gpu
from fake_tensorrt import fake_tensorrt

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


class Box:
    """A machine with a GPU, a TensorRT module and the tiny bundle."""

    def __init__(self, version, tiny, tmp_path, monkeypatch):
        self.kind = "tensorrt-rtx" if version.startswith("rtx") else "tensorrt"
        self.cuda, self.notes, self.patch = FakeCuda(), [], monkeypatch
        self.trt = fake_tensorrt(version, self.cuda, self.kind.replace("-", "_"))
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
        entry, graph = self.bundle.manifest.graphs[role], self.bundle.graph(role)
        return TensorRtEngine(graph, entry, role[-4:], self.kind, self.cache, options)

    def open_step(self, precision="fp32", **options):
        options = EngineOptions(note=self.notes.append, **options)
        graph, entry = step_graph(self.bundle, precision)
        return TensorRtStep(graph, entry, precision, self.kind, self.cache, options)

    def reference(self, feeds, role="score_fp32"):
        entry, graph = self.bundle.manifest.graphs[role], self.bundle.graph(role)
        return open_engine(graph, entry, "ort-cpu").run(feeds)


class OrtBox:
    """A machine with a GPU, onnxruntime-gpu with all its libraries, and the tiny bundle."""

    def __init__(self, tiny, monkeypatch):
        self.ort, self.notes, self.patch = fake_onnxruntime_gpu(), [], monkeypatch
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
        entry, graph = self.bundle.manifest.graphs[role], self.bundle.graph(role)
        return ort_cuda.OrtCudaEngine(graph, entry, role[-4:], self.options(**options))

    def open_step(self, precision="fp32", **options):
        graph, entry = step_graph(self.bundle, precision)
        return OrtCudaStep(graph, entry, precision, self.options(**options))

    def reference(self, feeds, role="score_fp32"):
        entry, graph = self.bundle.manifest.graphs[role], self.bundle.graph(role)
        return open_engine(graph, entry, "ort-cpu").run(feeds)
