"""What ONNX Runtime's CUDA provider needs is looked at first: package, driver, libraries."""

import importlib.metadata
import subprocess
import sys

import pytest
from gpu_box import GPU, WHEEL, onnxruntime_gpu

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import open_engine, ort_cuda, ort_libraries, select
from wdm_runtime.engines.ort_cuda import precisions
from wdm_runtime.engines.ort_libraries import CUDA_PROVIDER, described
from wdm_runtime.engines.probe import Gpu
from wdm_runtime.errors import EngineError, MissingDependencyError, NoDeviceError

box = onnxruntime_gpu


def test_no_driver_is_met_before_anything_is_imported():
    code = (
        "import sys\n"
        "from wdm_runtime.engines import ort_cuda\n"
        "from wdm_runtime.engines.probe import probe_gpu\n"
        "from wdm_runtime.errors import NoDeviceError\n"
        "ort_cuda.probe_gpu = lambda: probe_gpu('libnone.so.1')\n"
        "try: ort_cuda.precisions()\n"
        "except NoDeviceError as error: assert 'no NVIDIA driver' in str(error)\n"
        "else: raise SystemExit('expected an error')\n"
        "assert 'onnxruntime' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_for_cpus_names_the_one_for_gpus(box):
    box.ort.get_available_providers = lambda: ["CPUExecutionProvider"]
    with pytest.raises(EngineError, match=r"without CUDAExecutionProvider") as caught:
        select("ort-cuda")
    assert "pip uninstall -y onnxruntime && pip install '.[gpu]' in the clone" in str(caught.value)


def test_missing_libraries_are_named_with_what_brings_them(box):
    box.provide(found=lambda name: name != "libcudnn.so.9")
    with pytest.raises(EngineError, match=r"not libcudnn.so.9, which") as caught:
        select("ort-cuda")
    assert "pip install 'nvidia-cudnn-cu13>=9,<10'" in str(caught.value)
    with pytest.raises(EngineError, match=r"libcudnn\.so\.9"):
        box.open()
    assert box.ort.sessions == []


def test_only_what_the_cuda_provider_needs_is_looked_for(box, tmp_path, monkeypatch):
    """A library that was looked for stays loaded, and tensorrt's own wheel would be given it."""
    capi = tmp_path / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    for file in WHEEL["needed"]:
        (capi / file).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(ort_libraries, "needed_libraries", lambda file: WHEEL["needed"][file.name])
    monkeypatch.setattr(ort_cuda, "providers", ort_libraries.providers)
    looked = set()
    monkeypatch.setattr(ort_libraries, "_found", lambda name: not looked.add(name))
    assert precisions() == ("fp16", "fp32")
    assert looked == {*WHEEL["needed"][CUDA_PROVIDER], "libcudnn.so.9"}


def test_a_driver_older_than_the_provider_is_an_error(box):
    box.set_gpu(Gpu("Old", (8, 6), 8 << 30, (12, 8)))
    with pytest.raises(
        EngineError, match=r"for CUDA 13.*up to CUDA 12.8.*Update the NVIDIA driver"
    ):
        select("ort-cuda")


def test_nothing_installed_names_its_extra(box, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"'\.\[gpu\]' in the clone"):
        select("ort-cuda")

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(
        MissingDependencyError, match=r"'ort-cuda' is not .*'\.\[gpu\]' in the clone"
    ):
        select("ort-cuda")


def test_auto_takes_it_where_tensorrt_is_not(box, monkeypatch):
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    chosen = select()
    assert (chosen.kind, chosen.precision, chosen.graph) == ("ort-cuda", "fp16", "fp16")
    assert "tensorrt is not installed (pip install '.[gpu]' in the clone)" in chosen.why
    assert "tensorrt-rtx is not installed (pip install '.[rtx]' in the clone)" in chosen.why
    assert select("auto", "fp32").kind == "ort-cuda"


def test_what_preloading_prints_stays_out_of_the_output(box, capsys):
    box.open()
    assert "preload" in box.ort.log and capsys.readouterr().out == ""


def test_the_real_package_without_a_gpu_never_runs_on_the_cpu(tiny, monkeypatch):
    """All that this project can run of onnxruntime-gpu itself."""
    try:
        importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("onnxruntime-gpu is not installed")
    try:
        select("ort-cuda")
        pytest.skip("there is a GPU")
    except EngineError as error:
        assert isinstance(error, NoDeviceError) or "CUDA" in str(error)
    monkeypatch.setattr(ort_cuda, "probe_gpu", lambda: GPU)
    monkeypatch.setattr(ort_cuda, "_check_libraries", lambda *_: None)
    bundle = Bundle.open(tiny)
    with pytest.raises(EngineError, match="fallback to CPU EP has been explicitly disabled"):
        open_engine(bundle.graph("score_fp32"), bundle.manifest.graphs["score_fp32"], "ort-cuda")


def test_libraries_are_described_as_the_providers_list_them():
    provider = described(CUDA_PROVIDER, ("libcublas.so.12", "libcuda.so.1", "libm.so.6"))
    assert provider.cuda == 12
    installs = {library.name: library.install for library in provider.needs}
    assert installs == {
        "libcublas.so.12": "nvidia-cublas-cu12>=12,<13",
        "libcuda.so.1": "the NVIDIA driver",
        "libm.so.6": None,
        "libcudnn.so.9": "nvidia-cudnn-cu12>=9,<10",
    }
