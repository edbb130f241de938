"""`wdm-run doctor` says what works here, what does not and why."""

import json
import sys

import pytest
from gpu_box import GPU, Box

from wdm_runtime import doctor
from wdm_runtime.doctor import Library, Provider, diagnose
from wdm_runtime.engines import ENGINES, select
from wdm_runtime.errors import EngineError


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
    monkeypatch.setattr(doctor, "_providers", lambda: (provider,))
    (advice,) = [text for text in diagnose().advice if "providers_cuda" in text]
    assert "libcublasLt.so.13" in advice and "libc.so.6" not in advice


def test_bindings_newer_than_the_driver_are_advised_on(monkeypatch):
    monkeypatch.setattr(doctor, "probe_gpu", lambda: GPU)
    monkeypatch.setattr(doctor, "_packages", lambda: {"cuda-bindings": "14.1.0"})
    assert any("pip install 'cuda-bindings<14'" in text for text in diagnose().advice)
    monkeypatch.setattr(doctor, "_packages", lambda: {"cuda-bindings": "13.0.1"})
    assert not any("cuda-bindings" in text for text in diagnose().advice)


def test_jetson_is_told_of_its_own_module(tmp_path, monkeypatch):
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3\nmore\n")
    monkeypatch.setattr(doctor, "_JETSON_RELEASE", release)
    monkeypatch.setattr(doctor, "probe_gpu", lambda: GPU)
    found = diagnose()
    assert found.jetson == "# R36 (release), REVISION: 4.3"
    assert any("--system-site-packages" in text for text in found.advice)
