"""A machine with an NVIDIA GPU that does not exist: fakes of the driver, CUDA and TensorRT."""

import sys

from fake_cuda import FakeCuda
from fake_tensorrt import fake_tensorrt

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import open_engine
from wdm_runtime.engines import tensorrt as engine_module
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.plan_cache import PlanCache
from wdm_runtime.engines.probe import Gpu
from wdm_runtime.engines.tensorrt import TensorRtEngine

GPU = Gpu("Fake RTX", (8, 6), 8 << 30, (13, 0))


class Box:
    """A machine with a GPU, a TensorRT module and the tiny bundle."""

    def __init__(self, version, tiny, tmp_path, monkeypatch):
        self.kind = "tensorrt-rtx" if version.startswith("rtx") else "tensorrt"
        self.cuda, self.notes, self.patch = FakeCuda(), [], monkeypatch
        self.trt = fake_tensorrt(version, self.cuda, self.kind.replace("-", "_"))
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda)
        monkeypatch.setitem(sys.modules, self.trt.__name__, self.trt)
        self.set_gpu(GPU)
        self.bundle = Bundle.open(tiny)
        self.cache = PlanCache(tmp_path / "plans", self.notes.append)

    def set_gpu(self, gpu):
        self.patch.setattr(engine_module, "probe_gpu", lambda: gpu)

    def open(self, role="score_fp32", **options):
        options = EngineOptions(note=self.notes.append, **options)
        entry, graph = self.bundle.manifest.graphs[role], self.bundle.graph(role)
        return TensorRtEngine(graph, entry, role[-4:], self.kind, self.cache, options)

    def reference(self, feeds, role="score_fp32"):
        entry, graph = self.bundle.manifest.graphs[role], self.bundle.graph(role)
        return open_engine(graph, entry, "ort-cpu").run(feeds)
