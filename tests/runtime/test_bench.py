"""`wdm-run bench` measures both sides alike, says what it could not do, and survives ctrl-C."""

import json
import sys
import time

import numpy as np
import pytest
from conftest import edit_manifest

from wdm_runtime.bench import processes, runner, turns
from wdm_runtime.bench.models import PIXEL, models_of, one_tile, tile_field
from wdm_runtime.bench.report import Steps, median_ratio
from wdm_runtime.bundle import Bundle
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines import select
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.ort import OrtCpuEngine
from wdm_runtime.errors import (
    BundleError,
    EngineError,
    InputError,
    MissingDependencyError,
    OutputError,
)
from wdm_runtime.io import child
from wdm_runtime.presets import Preset
from wdm_runtime.samplers import SAMPLERS

ONE = ("--engines", "ort-cpu/fp32", "--calls", 2)


@pytest.fixture
def measured(run, tiny, tmp_path):
    """The report of `wdm-run bench` with the tiny bundle, and what it printed."""

    def call(*arguments, code=0):
        got, out, error = run("bench", "--bundle", tiny, "--json", "bench.json", *arguments)
        assert got == code, error
        return json.loads((tmp_path / "bench.json").read_text()), out

    return call


def test_it_measures_what_it_says(measured, tiny):
    report, out = measured(*ONE, "--against", tiny)
    assert report["complete"] and report["bundle_sha256"] == Bundle.open(tiny).sha256
    (opening,) = report["openings"]
    assert 0 < opening["open_s"] < opening["cold_start_s"]
    assert 0 < opening["loaded_mib"] <= opening["peak_mib"]
    own = [row for row in report["steps"] if row["model"] == "tiny"]
    assert [row["batch"] for row in own] == [1, 2, 4, 8]
    for row in report["steps"]:
        assert row["calls"] == 2 and 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["tile_ms"] == pytest.approx(row["p50_ms"] / row["batch"], abs=1e-3)
    others = {PIXEL, str(tiny)}
    assert {row["model"] for row in report["end_to_end"]} == {"tiny", *others}
    assert {row["model"] for row in report["ratios"]} == others
    for row in report["end_to_end"]:
        step = next(
            s["p50_ms"] for s in report["steps"] if (s["model"], s["batch"]) == (row["model"], 1)
        )
        assert row["p50_s"] > 1e-3 * step  # eight of them, and what is around
    assert report["verdict"].startswith("WDM-2 against the pixel model of the same widths")
    assert "8 steps, second-order" in report["verdict"]
    assert " ".join(report["verdict"].split()) in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100


def test_a_slower_model_is_the_slower_one(measured, monkeypatch):
    """The ratio is the other's time over ours, a step and end to end."""
    run = OrtCpuEngine.run

    def slow(self, feeds):
        if feeds.get("x", np.empty(0)).shape[1:2] == (1,):  # the pixel model's single channel
            time.sleep(0.05)
        return run(self, feeds)

    monkeypatch.setattr(OrtCpuEngine, "run", slow)
    report, _ = measured(*ONE)
    (ratio,) = report["ratios"]
    assert ratio["step"] > 3 and ratio["end_to_end"] > 3


def test_an_engine_that_fails_is_listed_with_its_reason(measured, monkeypatch):
    run = OrtCpuEngine.run

    def fails(self, feeds):
        if len(feeds.get("x", ())) == 4:
            raise EngineError("out of memory")
        return run(self, feeds)

    monkeypatch.setattr(OrtCpuEngine, "run", fails)
    report, out = measured(*ONE)
    (problem,) = report["problems"]
    assert "batch 4" in problem["what"] and problem["reason"] == "out of memory"
    assert "out of memory" in out
    batches = {row["batch"] for row in report["steps"] if row["model"] == "tiny"}
    assert batches == {1, 2, 8} and report["complete"]


def test_what_does_not_work_here_is_listed(measured):
    report, out = measured("--calls", 1)
    kinds = {problem["what"] for problem in report["problems"]}
    measured_kinds = {row["engine"] for row in report["openings"]}
    assert "tensorrt" in kinds | measured_kinds and "ort-cpu" in measured_kinds
    for problem in report["problems"]:
        assert problem["what"] in out


def test_interrupted_it_shows_what_it_has(measured, monkeypatch):
    run, calls = OrtCpuEngine.run, []

    def interrupted(self, feeds):
        calls.append(None)
        if len(calls) > 14:  # in the second round
            raise KeyboardInterrupt
        return run(self, feeds)

    monkeypatch.setattr(OrtCpuEngine, "run", interrupted)
    report, out = measured(*ONE, code=130)
    assert not report["complete"] and "Interrupted" in out
    assert report["steps"] and not report["end_to_end"]


def test_a_process_that_dies_is_listed(tiny, monkeypatch):
    monkeypatch.setattr(child.sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="ended with status 1"):
        processes.measure_opening(tiny, select("ort-cpu"), 1)


def test_no_module_of_the_current_folder_is_run(tiny, tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("raise SystemExit('a file of somebody else')")
    monkeypatch.chdir(tmp_path)
    assert processes.measure_opening(tiny, select("ort-cpu"), 1).open_s > 0


def test_another_bundle_that_is_damaged_costs_no_measurement(measured, tiny_copy):
    graph = tiny_copy / "score_fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    report, _ = measured(*ONE, "--against", tiny_copy)
    assert report["complete"] and report["steps"] and report["end_to_end"]
    assert any(str(tiny_copy) in problem["what"] for problem in report["problems"])


def test_an_engine_that_fails_while_its_energy_is_read_costs_no_measurement(measured, monkeypatch):
    class Fails:
        device = "CPU package-0"

        def joules(self, work):
            raise EngineError("out of memory")

    monkeypatch.setattr(runner, "meters", lambda gpu: [Fails()])
    report, _ = measured(*ONE)
    assert report["complete"] and report["steps"]
    assert [problem["reason"] for problem in report["problems"]] == ["out of memory"]
    (ratio,) = report["ratios"]
    assert ratio["step"] > 0 and ratio["end_to_end"] > 0 and report["verdict"]


def test_energy_is_of_a_step(measured, monkeypatch):
    class Counts:
        device = "CPU package-0"

        def joules(self, work):
            work()
            return 7.0 * work.done

    monkeypatch.setattr(runner, "meters", lambda gpu: [Counts()] if gpu is None else [])
    monkeypatch.setattr(turns, "_METERED_S", 0.01)
    report, _ = measured(*ONE)
    (opening,) = report["openings"]
    assert opening["joules"] == {"CPU package-0": 7.0}


def test_a_damaged_bundle_in_a_process_is_an_error_with_its_own_words(tiny_copy):
    edit_manifest(tiny_copy, schema_version=99)
    with pytest.raises(EngineError, match="schema version is 99"):
        processes.measure_opening(tiny_copy, select("ort-cpu"), 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_tile_is_what_a_downscaler_gives(tiny, sampler):
    bundle, options = Bundle.open(tiny), EngineOptions(threads=1)
    choice = select("ort-cpu", "fp32")
    model = models_of(bundle, [])[0]
    score, transforms = model.open_score(choice, options), model.open_transforms(choice, options)
    got = one_tile(model.manifest, score, transforms, Preset(sampler, 3))
    with Downscaler.open(bundle, "ort-cpu", "fp32", options) as downscaler:
        (sample,) = downscaler.downscale(tile_field(bundle.manifest), sampler=sampler, steps=3)
    np.testing.assert_array_equal(got, sample.rate_mm_h)


def test_the_pixel_member_is_a_whole_one(tiny):
    """Same calls of the network, as many cells, and block means that are the input's."""
    bundle, options = Bundle.open(tiny), EngineOptions(threads=1)
    choice = select("ort-cpu", "fp32")
    pixel = models_of(bundle, [])[1]
    score, shapes = pixel.open_score(choice, options), []
    run = score.run
    score.run = lambda feeds: (shapes.append(feeds["x"].shape), run(feeds))[1]
    transforms = pixel.open_transforms(choice, options)
    rate = one_tile(pixel.manifest, score, transforms, Preset("second-order", 5))
    assert shapes == [(1, 1, 64, 64)] * 5
    coarse = tile_field(pixel.manifest).frame(0)
    assert rate.shape == (60, 60) and np.isfinite(rate).all()
    blocks = rate.reshape(6, 10, 6, 10).mean(axis=(1, 3))
    np.testing.assert_allclose(blocks, coarse, atol=1e-4)


def test_the_pixel_models_noise_is_white(tiny):
    from wdm_runtime.bench.models import _PixelNoise

    source = _PixelNoise(0, "2022-06-15T12:00:00", 0)
    drawn = source.draw(0, 1, (0, 300), (0, 290))
    assert drawn.shape == (1, 300, 290)
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.01
    for axis in (1, 2):
        assert abs((drawn * np.roll(drawn, 1, axis)).mean()) < 0.02
    assert not np.array_equal(drawn, source.draw(1, 1, (0, 300), (0, 290)))


def test_bundles_of_other_work_are_refused(tiny, tiny_copy):
    edit_manifest(tiny_copy, tile_px=128)
    with pytest.raises(BundleError, match="128"):
        models_of(Bundle.open(tiny), [Bundle.open(tiny_copy)])


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("--engines", "abacus"), EngineError, "abacus"),
        (("--engines", "ort-cpu/fp64"), EngineError, "fp64"),
        (("--engines", "tensorrt"), EngineError, "tensorrt"),
        (("--calls", 0), InputError, "--calls"),
        (("--chart", "chart.bmp"), OutputError, "chart.bmp: has suffix '.bmp'; expected one of"),
        (("--chart", "chart.pgf"), OutputError, "chart.pgf: has suffix '.pgf'; expected one of"),
        (("--chart", "nowhere/chart.png"), OutputError, "nowhere"),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_is_measured(
    run, tiny, monkeypatch, arguments, kind, words
):
    monkeypatch.setattr(runner.Bench, "measure", lambda self: pytest.fail("it measures"))
    if words == "tensorrt":
        monkeypatch.setattr("wdm_runtime.engines.tensorrt.probe_gpu", _no_gpu)
    code, _, error = run("bench", "--bundle", tiny, *arguments)
    assert code == kind.exit_code and words in error


def _no_gpu():
    raise EngineError("no GPU for tensorrt")


def test_a_chart_without_matplotlib_names_the_extra(run, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, error = run("bench", "--bundle", tiny, "--chart", "chart.png")
    assert (
        code == MissingDependencyError.exit_code and "pip install '.[plot]' in the clone" in error
    )


@pytest.mark.parametrize("suffix", [".jpg", ".pdf", ".svg"])
def test_the_chart_is_drawn(measured, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    measured(*ONE, "--chart", f"chart{suffix}")
    start = {".jpg": b"\xff\xd8", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert (tmp_path / f"chart{suffix}").read_bytes().startswith(start)


def test_percentiles_and_ratios():
    steps = Steps.of("m", "e", "p", 4, [0.1, 0.2, 0.3])
    assert (steps.p50_ms, steps.tile_ms, steps.calls) == (200.0, 50.0, 3)
    assert median_ratio({0: 2.0, 1: 9.0, 2: 4.0}, {0: 1.0, 2: 1.0, 3: 5.0}) == 3.0
    assert median_ratio({0: 2.0}, {1: 1.0}) is None
