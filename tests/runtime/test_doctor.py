"""`wdm-run doctor` says what works here, what does not and why."""

import json
import sys
from pathlib import Path

import pytest
from fake_cuda import cudaError_t
from gpu_box import GPU, WHEEL, Box, OrtBox

from wdm_runtime import doctor
from wdm_runtime.doctor import diagnose
from wdm_runtime.engines import ENGINES, ort_cuda, ort_libraries, probe, select, tensorrt
from wdm_runtime.engines.ort_libraries import Library, Provider, described
from wdm_runtime.engines.probe import Gpu
from wdm_runtime.errors import EngineError, MissingDependencyError

MODELS = Path(__file__).resolve().parents[2] / "models"


def test_it_agrees_with_what_a_run_would_take(run):
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0 and found["auto"] == select().why
    engines = {engine["kind"]: engine for engine in found["engines"]}
    assert set(engines) == set(ENGINES) - {"auto"}
    for kind, engine in engines.items():
        if engine["precisions"]:
            assert select(kind).precision in engine["precisions"] and engine["problem"] is None
        else:
            with pytest.raises(Exception, match=r"\w") as caught:
                select(kind)
            assert engine["problem"] in str(caught.value)


def test_the_table_names_every_engine_and_the_missing_driver(run, monkeypatch):
    def none():
        raise EngineError("no NVIDIA driver here. Install the driver.")

    monkeypatch.setattr(doctor, "probe_gpu", none)
    code, out, _ = run("doctor")
    assert code == 0 and "no NVIDIA driver here" in " ".join(out.split())
    assert all(kind in out for kind in set(ENGINES) - {"auto"})


def test_a_gpu_box_is_described(tiny, tmp_path, monkeypatch, run):
    Box("10.16", tiny, tmp_path, monkeypatch)
    monkeypatch.setattr(doctor, "probe_gpu", lambda: GPU)
    found = diagnose()
    assert found.gpu == GPU and found.gpu_problem is None
    engines = {engine.kind: engine for engine in found.engines}
    assert engines["tensorrt"].precisions == ("fp16", "fp32")
    assert "tensorrt in fp16" in found.auto
    out = run("doctor")[1]
    assert "Fake RTX, compute capability 8.6, 8.0 GiB" in out and "CUDA up to 13.0" in out


def test_no_engine_at_all_is_an_exit_code_with_the_reasons(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    code, out, _ = run("doctor")
    if any(engine.precisions for engine in diagnose().engines):
        pytest.skip("an engine works here that needs neither package")
    assert code == EngineError.exit_code and "no engine works here" in out


def test_a_provider_that_cannot_load_is_advised_on(monkeypatch):
    monkeypatch.setattr(doctor, "probe_gpu", lambda: GPU)
    missing = Library("libcublasLt.so.13", False)
    provider = Provider("libonnxruntime_providers_cuda.so", (missing, Library("libc.so.6", True)))
    monkeypatch.setattr(doctor, "providers", lambda: (provider,))
    (advice,) = [text for text in diagnose().advice if "providers_cuda" in text]
    assert "libcublasLt.so.13" in advice and "libc.so.6" not in advice


def test_a_damaged_provider_is_told_and_ends_neither_doctor_nor_auto(tiny, tmp_path, monkeypatch):
    OrtBox(tiny, monkeypatch)  # its GPU has ort-cuda looked at
    monkeypatch.setattr(ort_cuda, "providers", ort_libraries.providers)
    capi = tmp_path / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (capi / ort_libraries.CUDA_PROVIDER).write_bytes(b"\x7fELF")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = diagnose()
    assert found.auto and "ort-cuda in" not in found.auto and found.providers == ()
    assert any("cannot be read as a shared library" in text for text in found.advice)


def test_bindings_newer_than_the_driver_are_advised_on(monkeypatch):
    monkeypatch.setattr(doctor, "probe_gpu", lambda: GPU)
    monkeypatch.setattr(doctor, "_packages", lambda: {"cuda-bindings": "14.1.0"})
    assert any("pip install 'cuda-bindings>=12.9,<14'" in text for text in diagnose().advice)
    monkeypatch.setattr(doctor, "_packages", lambda: {"cuda-bindings": "13.0.1"})
    assert not any("cuda-bindings" in text for text in diagnose().advice)


def test_a_cuda_that_does_not_start_is_found_without_a_run(tiny, tmp_path, monkeypatch):
    """Of doctor and of auto: modules that import may be of no use."""
    box = Box("10.16", tiny, tmp_path, monkeypatch)
    box.cuda.faults["cudaSetDevice"] = cudaError_t.cudaErrorInsufficientDriver
    found = diagnose()
    (engine,) = (engine for engine in found.engines if engine.kind == "tensorrt")
    assert engine.precisions == () and "cudaErrorInsufficientDriver" in engine.problem
    assert "tensorrt in" not in found.auto


@pytest.mark.parametrize(("wheel", "advised"), [(12, True), (13, False), (None, True)])
def test_older_bindings_are_advised_only_where_tensorrt_fits_the_driver(
    tiny, tmp_path, monkeypatch, wheel, advised
):
    """Without them a TensorRT for a newer CUDA is refused; with them it would be started."""
    box = Box("rtx-1.7", tiny, tmp_path, monkeypatch)
    gpu = Gpu("Old", (8, 6), 8 << 30, (12, 8))
    box.set_gpu(gpu)
    box.set_wheel(wheel)
    monkeypatch.setattr(doctor, "probe_gpu", lambda: gpu)
    monkeypatch.setattr(doctor, "_packages", lambda: {"cuda-bindings": "13.0.1"})
    found = diagnose()
    pin = "'cuda-bindings>=12.9,<13'"
    assert any(pin in text for text in found.advice) is advised
    (rtx,) = (engine for engine in found.engines if engine.kind == "tensorrt-rtx")
    if not advised:
        assert f"pip install tensorrt-rtx-cu12 {pin}" in rtx.problem


def test_jetson_is_told_of_its_own_module(tmp_path, monkeypatch):
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3\nmore\n")
    monkeypatch.setattr(probe, "_JETSON_RELEASE", release)
    monkeypatch.setattr(doctor, "probe_gpu", lambda: GPU)
    found = diagnose()
    assert found.jetson == "# R36 (release), REVISION: 4.3"
    assert any("--system-site-packages" in text for text in found.advice)
    monkeypatch.setattr(tensorrt, "probe_gpu", lambda: GPU)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="needs JetPack's") as caught:
        select("tensorrt")
    assert "pip install" not in str(caught.value) and "pip install" not in caught.value.install


@pytest.fixture
def wheel(monkeypatch):
    """A GPU, and the providers of the real onnxruntime-gpu, of which ``missing`` is not found."""

    def use(*missing, gpu=GPU):
        monkeypatch.setattr(ort_libraries, "_found", lambda name: not name.startswith(missing))
        listed = tuple(described(*item) for item in WHEEL["needed"].items())
        monkeypatch.setattr(doctor, "providers", lambda: listed)
        monkeypatch.setattr(doctor, "probe_gpu", lambda: gpu)
        return diagnose().advice

    return use


def test_every_library_of_the_real_wheel_has_a_pin_or_is_the_systems(wheel, run):
    wheel()
    pins = {n.name: n.install for part in diagnose().providers for n in part.needs}
    assert {name for name, pin in pins.items() if pin is None} == {
        *("libdl.so.2", "librt.so.1", "libpthread.so.0", "libstdc++.so.6", "libm.so.6"),
        *("libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2"),
    }
    assert pins["libnvinfer.so.10"] == pins["libnvonnxparser.so.10"] == "tensorrt-cu13>=10.13,<11"
    assert pins["libcuda.so.1"] == "the NVIDIA driver"
    # The wheel's own extras name the same distributions, and the same major versions.
    names = {pin.partition(">=")[0]: pin for pin in pins.values() if pin and ">=" in pin}
    extras = [text.split("~=") for texts in WHEEL["extras"].values() for text in texts]
    for name, version in extras:
        major = int(version.partition(".")[0])
        assert names.get(name, f"{name}>={major},<{major + 1}") == f"{name}>={major},<{major + 1}"
    assert {"nvidia-cuda-runtime", "nvidia-curand", "nvidia-cudnn-cu13"} <= names.keys()
    out = " ".join(run("doctor")[1].split())
    assert "libnvinfer.so.10 -> tensorrt-cu13>=10.13,<11" in out and "libpthread" not in out


def test_the_gpu_extra_brings_what_the_real_wheel_needs(wheel):
    tomllib = pytest.importorskip("tomllib")
    text = (MODELS.parent / "pyproject.toml").read_text()
    extra = " ".join(tomllib.loads(text)["project"]["optional-dependencies"]["gpu"])
    wheel()
    (tensorrt,) = {n.install for p in diagnose().providers for n in p.needs if "nvinfer" in n.name}
    assert tensorrt in extra and "onnxruntime-gpu[cuda,cudnn]" in extra


def test_a_missing_tensorrt_names_the_pin_and_that_no_engine_needs_it(wheel):
    (advice,) = wheel("libnvinfer", "libnvonnxparser")
    assert "libonnxruntime_providers_tensorrt.so needs libnvinfer.so.10" in advice
    assert "No engine here needs it" in advice
    assert advice.endswith("pip install 'tensorrt-cu13>=10.13,<11'")


def test_a_missing_cudnn_is_met_though_the_file_does_not_list_it(wheel):
    assert "libcudnn.so.9" not in WHEEL["needed"]["libonnxruntime_providers_cuda.so"]
    advice = [text for text in wheel("libcudnn") if "providers_cuda" in text]
    assert len(advice) == 1 and "pip install 'nvidia-cudnn-cu13>=9,<10'" in advice[0]


def test_a_driver_older_than_the_wheels_cuda_is_advised_on(wheel):
    advice = wheel(gpu=Gpu("Old", (8, 6), 8 << 30, (12, 6)))
    assert any("is for CUDA 13, and the driver runs up to CUDA 12.6" in text for text in advice)
    assert not any("cannot be found" in text for text in advice)


def test_libraries_of_pips_own_folders_are_found(tmp_path, monkeypatch):
    # The loader does not search them; ONNX Runtime and TensorRT load them from there. What a search
    # loads stays, and is taken by all that ask for the name: the system's copy, not the wheel's.
    looked = []
    monkeypatch.setattr(ort_libraries, "library_loads", lambda name: bool(looked.append(name)))
    name = "libcublasLt.so.98"
    assert not ort_libraries._found(name)
    folder = tmp_path / "nvidia" / "cu98" / "lib"
    folder.mkdir(parents=True)
    (folder / name).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    looked.clear()
    assert ort_libraries._found(name) and looked == []
    assert not ort_libraries._found("libcublasLt.so.99") and looked == ["libcublasLt.so.99"]


def test_one_cause_is_told_once(run, monkeypatch):
    code, out, _ = run("doctor")
    text = " ".join(out.split())
    if "GPU none." not in text:
        pytest.skip("there is a GPU")
    assert code == 0 and text.count("There is no NVIDIA driver") == 1
    assert text.count("no, for the same reason as GPU") == 3
    assert {"tensorrt", "tensorrt-rtx", "ort-cuda"} <= set(ENGINES)


def test_ort_cuda_and_its_problem_are_in_the_diagnosis(tiny, monkeypatch):
    box = OrtBox(tiny, monkeypatch)
    engines = {engine.kind: engine for engine in diagnose().engines}
    assert engines["ort-cuda"].precisions == ("fp16", "fp32")
    box.provide(found=lambda name: "curand" not in name)
    engines = {engine.kind: engine for engine in diagnose().engines}
    assert "pip install 'nvidia-curand>=10,<11'" in engines["ort-cuda"].problem
