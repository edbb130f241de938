"""`wdm-run selftest` passes an engine that does what the bundle says and no other."""

import io
import json
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from conftest import Touch
from gpu_box import Box

from wdm_runtime import selftest
from wdm_runtime.bench.turns import choices_of
from wdm_runtime.bundle import Bundle, sha256
from wdm_runtime.engines.families import FAMILIES
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.ort import OrtCpuEngine
from wdm_runtime.engines.step import HostStep
from wdm_runtime.engines.tensorrt import TensorRtEngine
from wdm_runtime.errors import BundleError, EngineError, ParityError
from wdm_runtime.golden import read_golden
from wdm_runtime.manifest import GOLDEN_NAME, MANIFEST_NAME, FileEntry


def rewrite_golden(folder, data):
    """Replace the golden file and make the manifest agree; None takes it out."""
    manifest = Bundle.open(folder).manifest
    files = [entry for entry in manifest.files if entry.file != GOLDEN_NAME]
    if data is not None:
        (folder / GOLDEN_NAME).write_bytes(data)
        files.append(FileEntry(GOLDEN_NAME, sha256(data), len(data)))
    (folder / MANIFEST_NAME).write_text(replace(manifest, files=tuple(files)).to_json())
    return Bundle.open(folder)


def golden_bytes(golden, **changes):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{**golden.__dict__, **changes})
    return buffer.getvalue()


def test_the_cpu_passes_and_the_report_says_so(run, tiny, tmp_path):
    code, out, error = run("selftest", "--bundle", tiny, "--engine", "ort-cpu", "-o", "report.json")
    assert code == 0, error
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] and report["bundle_sha256"] == Bundle.open(tiny).sha256
    assert {"packages", "engines", "python"} <= set(report["machine"])
    for check in report["checks"]:
        assert check["engine"] == "ort-cpu" and 0 <= check["difference"] <= check["tolerance"]
        assert 0 < check["p50_ms"] <= check["p95_ms"]
        assert 0 <= check["fused_difference"] <= 1e-6
        assert f"passed ort-cpu in {check['precision']}" in out


def test_one_engine_by_name_asks_no_other_whether_it_works(tiny, monkeypatch):
    """A GPU's driver takes seconds to say, and a broken one may not come back."""

    def asked():
        raise AssertionError("asked")

    for kind, family in FAMILIES.items():
        if kind != "ort-cpu":
            monkeypatch.setitem(FAMILIES, kind, replace(family, probe=asked))
    options = EngineOptions(threads=1)
    checks = list(selftest.selftest(Bundle.open(tiny), "ort-cpu", options))
    choices, problems = choices_of("ort-cpu")
    assert [check.precision for check in checks] == [choice.precision for choice in choices]
    assert checks and not problems


def test_precisions_without_a_fused_step_pass_without(run, tiny, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed (openvino)")
    code, out, error = run("selftest", "--bundle", tiny, "--engine", "openvino", "-o", "r.json")
    assert code == 0, error + out
    fused = {
        check["precision"]: check["fused_difference"]
        for check in json.loads((tmp_path / "r.json").read_text())["checks"]
    }
    assert fused.pop("fp32") <= 1e-4 and set(fused.values()) <= {None}


def test_a_fused_step_that_does_other_than_the_loop_fails(run, tiny, monkeypatch):
    right = HostStep.step
    monkeypatch.setattr(HostStep, "step", lambda s, t, scalars, noise: right(s, t, scalars, None))
    code, out, _ = run("selftest", "--bundle", tiny, "--engine", "ort-cpu", "-o", "r.json")
    assert code == ParityError.exit_code and "itself in fused steps" in out


def test_a_network_with_other_weights_fails(run, tiny_copy, tmp_path):
    golden = read_golden(Bundle.open(tiny_copy))
    rewrite_golden(tiny_copy, golden_bytes(golden, v=golden.v * np.float32(1.01)))
    code, out, error = run("selftest", "--bundle", tiny_copy, "--engine", "ort-cpu", "-o", "r.json")
    assert code == ParityError.exit_code and "checks failed (ort-cpu in fp32" in error
    assert "FAILED ort-cpu in fp32" in out and "golden outputs" in out
    assert not json.loads((tmp_path / "r.json").read_text())["passed"]


def test_an_engine_that_mixes_tiles_of_a_batch_fails(tiny, monkeypatch):
    run = OrtCpuEngine.run

    def mixed(self, feeds):
        answer = run(self, feeds)
        return answer + 0.1 * answer[::-1] if len(answer) > 1 else answer

    monkeypatch.setattr(OrtCpuEngine, "run", mixed)
    checks = list(selftest.selftest(Bundle.open(tiny), "ort-cpu", EngineOptions()))
    assert checks and all("itself in a batch" in check.problem for check in checks)


def test_a_gpus_plan_of_a_batch_is_what_is_checked(tiny, tmp_path, monkeypatch):
    """One launch of several tiles: with a plan for one they would go one by one."""
    box = Box("10.16", tiny, tmp_path, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = TensorRtEngine.run

    def mixed(self, feeds):
        answer = run(self, feeds)
        return answer + 0.1 * answer[::-1] if self.batch > 1 else answer

    monkeypatch.setattr(TensorRtEngine, "run", mixed)
    checks = list(selftest.selftest(box.bundle, box.kind, EngineOptions()))
    assert checks and all("itself in a batch" in check.problem for check in checks)


def test_no_room_for_a_batch_keeps_what_was_found_of_a_tile(tiny, tmp_path, monkeypatch):
    box = Box("10.16", tiny, tmp_path, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = selftest.open_graph

    def no_room(bundle, role, kind, precision, options):
        if options.batch:
            raise EngineError("out of memory")
        return opened(bundle, role, kind, precision, options)

    monkeypatch.setattr(selftest, "open_graph", no_room)
    checks = list(selftest.selftest(box.bundle, box.kind, EngineOptions()))
    for check in checks:
        assert check.problem == "A batch of 3: out of memory" and not check.passed
        assert check.difference < check.tolerance and check.p50_ms > 0 and check.device


def test_nan_does_not_pass(tiny, monkeypatch):
    run = OrtCpuEngine.run
    monkeypatch.setattr(OrtCpuEngine, "run", lambda self, feeds: run(self, feeds) * np.nan)
    checks = list(selftest.selftest(Bundle.open(tiny), "ort-cpu", EngineOptions()))
    assert checks and not any(check.passed for check in checks)


def test_a_gpu_is_timed_with_and_without_its_graph(tiny, tmp_path, monkeypatch):
    box = Box("11.4", tiny, tmp_path, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checks = list(selftest.selftest(box.bundle, box.kind, EngineOptions()))
    assert [check.precision for check in checks] == ["fp16", "fp32"]
    for check in checks:
        assert check.passed, check.problem
        assert check.cuda_graph is True and check.plain_ms > 0
    assert box.cuda.live == 0


def test_an_engine_that_cannot_be_had_is_an_error(run, tiny):
    code, _, error = run("selftest", "--bundle", tiny, "--engine", "tensorrt")
    assert (code != 0 and "TensorRT" in error) or "NVIDIA" in error


def test_an_unknown_engine_is_an_error(tiny):
    with pytest.raises(EngineError, match="got 'abacus'"):
        list(selftest.selftest(Bundle.open(tiny), "abacus", EngineOptions()))


def test_a_bundle_without_golden_file_is_refused(tiny_copy):
    with pytest.raises(BundleError, match=r"has no file 'golden\.npz'.*Export the bundle again"):
        read_golden(rewrite_golden(tiny_copy, None))


@pytest.mark.parametrize(
    "change", [{"x": np.zeros((1, 2, 3, 4))}, {"v": np.zeros((1, 16, 16, 16))}]
)
def test_a_golden_file_of_another_network_is_refused(tiny_copy, change):
    golden = read_golden(Bundle.open(tiny_copy))
    with pytest.raises(BundleError, match=r"has shapes .* expected"):
        read_golden(rewrite_golden(tiny_copy, golden_bytes(golden, **change)))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04nothing", b"\x80\x04."])
def test_a_damaged_golden_file_is_refused(tiny_copy, damage):
    with pytest.raises(BundleError, match="is no golden file"):
        read_golden(rewrite_golden(tiny_copy, damage))


def test_a_golden_file_of_pickles_is_refused_unread(tiny_copy):
    """An array of objects is a pickle, and a pickle is a program."""
    golden = read_golden(Bundle.open(tiny_copy))
    buffer = io.BytesIO()
    objects = np.array([Touch(tiny_copy / "ran")], dtype=object)
    np.savez(buffer, x=objects, condition=golden.condition, t=golden.t, v=golden.v)
    with pytest.raises(BundleError, match="is no golden file"):
        read_golden(rewrite_golden(tiny_copy, buffer.getvalue()))
    assert not (tiny_copy / "ran").exists()
    with np.load(io.BytesIO(buffer.getvalue()), allow_pickle=True) as file:
        file["x"]  # what a reader that allows pickles does
    assert (tiny_copy / "ran").exists()


@pytest.mark.parametrize(("claimed", "held"), [(10**7, 10**7), (10**15, 10**7), (10**15, 9)])
def test_a_golden_file_that_unpacks_to_more_is_refused(tiny_copy, claimed, held):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (claimed,)}
        )
        archive.writestr("x.npy", header.getvalue() + bytes(4 * held))
    bundle = rewrite_golden(tiny_copy, buffer.getvalue())
    tracemalloc.start()
    with pytest.raises(BundleError, match="is no golden file"):
        read_golden(bundle)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # of 40 MB
