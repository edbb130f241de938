"""What a run reports: its latency beside the pixel model's, and its own time and memory."""

import json
import os
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone

import netCDF4
import numpy as np
import pytest
from conftest import SAMPLE
from netcdf_files import add, coordinates

from wdm_runtime import Downscaler
from wdm_runtime.cache import private_folder
from wdm_runtime.errors import OutputError
from wdm_runtime.machine import peak_rss_mib

REPORT_KEYS = {
    *("engine", "device", "precision", "sampler", "steps", "members", "frames", "tiles_total"),
    *("noise_scale", "time_grid", "untiled_share", "missing_share"),
    *("step_latency_ms", "outside_engine_fraction", "wall_s", "probe_s", "peak_rss_mib"),
    *("km2_per_s", "pixel_step_latency_ms"),
    *("score_step_latency_ms", "pixel_measured"),
    *("speedup_vs_pixel", "fp32_reruns", "fused_steps", "suspect_members"),
    *("fp32_redrawn_members", "bundle", "bundle_sha256", "versions"),
}


def test_report_and_probe(infer, tmp_path):
    code, out, _ = infer("--report", "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert code == 0 and set(report) == REPORT_KEYS
    step = report["step_latency_ms"]
    assert 0 < step["p50"] <= step["p95"] <= step["p99"]
    assert 0 <= report["outside_engine_fraction"] < 1
    assert report["tiles_total"] % 3 == 0 and report["tiles_total"] > 0
    assert report["pixel_step_latency_ms"] > 0 and report["probe_s"] > 0
    assert report["speedup_vs_pixel"] > 0 and "pixel model" in out
    measured = datetime.fromisoformat(report["pixel_measured"])
    assert abs(datetime.now(timezone.utc) - measured) < timedelta(minutes=10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a shell that becomes the command: POSIX")
def test_time_that_a_shell_spent_before_it_became_wdm_run_does_not_count(tmp_path, tiny):
    """As in `sh -c "pip install ... && wdm-run infer ..."`: the process is older than the run."""
    waited_s = 3
    program = "import sys; from wdm_runtime.cli import main; main()"
    run = [sys.executable, "-c", program, "infer", str(SAMPLE), "--bundle", str(tiny)]
    words = [*run, "-o", "out.nc", "--report", "r.json", "--no-pixel-probe", "--quiet"]
    began = time.perf_counter()
    shell = ["sh", "-c", f'sleep {waited_s}; exec "$@"', "sh", *words]
    subprocess.run(shell, cwd=tmp_path, check=True)
    took_s = time.perf_counter() - began
    report = json.loads((tmp_path / "r.json").read_text())
    assert 0 < report["wall_s"] <= took_s - waited_s


FALSE = (float("nan"), -1.0, 1e300, 0.0)


def test_the_probe_is_cached_and_a_damaged_cache_is_measured_anew(infer, tmp_path):
    infer("-o", "a.nc", "--report", "a.json")
    _, out, _ = infer("-o", "b.nc", "--report", "b.json")
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    keys = ("pixel_step_latency_ms", "score_step_latency_ms", "pixel_measured", "speedup_vs_pixel")
    for key in keys:
        assert a[key] == b[key]  # of one measurement, whatever slows this run's steps
    pixel_ms, score_ms, measured, speedup = (b[key] for key in keys)
    assert speedup == pytest.approx(pixel_ms / score_ms, abs=0.01)
    line = " ".join(out.replace("│", " ").split())
    assert f"{pixel_ms:.0f} and {score_ms:.1f} ms a tile, in turns, at {measured}" in line
    cache = private_folder("measured") / "pixel.json"
    keys = json.loads(cache.read_text())
    for damage in (*"{", "[]", '{"x": "y"}', *(json.dumps({k: v for k in keys}) for v in FALSE)):
        cache.write_text(damage)
        assert infer("-o", "c.nc", "--overwrite", "--report", "c.json")[0] == 0
        assert json.loads((tmp_path / "c.json").read_text())["pixel_step_latency_ms"] > 0


def test_a_run_without_rain_is_reported_like_any_other(infer, tmp_path):
    with netCDF4.Dataset(SAMPLE) as data:
        lat, lon = np.asarray(data["lat"][:20]), np.asarray(data["lon"][:20])
    with netCDF4.Dataset(tmp_path / "dry.nc", "w") as data:
        coordinates(data, lat, lon, [0.0])
        rain = np.zeros((1, 20, 20))
        add(data, "rain", rain, units="mm h-1", standard_name="lwe_precipitation_rate")
    code, out, err = infer("--report", "r.json", source=tmp_path / "dry.nc")
    assert code == 0 and "pixel model" in out, err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["step_latency_ms"] is None and report["speedup_vs_pixel"] > 0


def test_a_pixel_model_that_does_not_run_costs_no_report(infer, tiny_copy, tmp_path):
    (tiny_copy / "pixel_fp32.onnx").write_bytes(b"damaged")
    words = ("--bundle", tiny_copy, "--engine", "ort-cpu", "--precision", "fp32")
    code, out, err = infer(*words, "--report", "r.json")
    assert code == 0 and "The pixel model was not timed" in " ".join((out + err).split())
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["wall_s"] > 0 and report["pixel_step_latency_ms"] is None


def test_a_quiet_run_makes_no_calls_only_to_time_them(infer, monkeypatch):
    timed = []
    calls = Downscaler.seconds_per_tile
    monkeypatch.setattr(
        Downscaler, "seconds_per_tile", lambda self, n: timed.append(n) or calls(self, n)
    )
    assert infer("-o", "a.nc", "--quiet", "--no-pixel-probe")[0] == 0 and not timed
    assert infer("-o", "b.nc", "--no-pixel-probe")[0] == 0 and timed


def test_without_the_probe_its_keys_are_null(infer, tmp_path):
    infer("--no-pixel-probe", "--report", "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["pixel_step_latency_ms"] is None and report["speedup_vs_pixel"] is None
    assert report["probe_s"] == 0


def test_a_report_replaces_no_input_and_no_output(infer, tmp_path):
    given = tmp_path / "given.nc"
    given.write_bytes(SAMPLE.read_bytes())
    for report in ("given.nc", "made.nc"):
        code, _, err = infer("-o", "made.nc", "--report", report, "--no-pixel-probe", source=given)
        assert code == OutputError.exit_code and "which this run reads or writes too" in err
        assert given.read_bytes() == SAMPLE.read_bytes() and not (tmp_path / "made.nc").exists()


@pytest.mark.parametrize("name", ["manifest.json", "new.json"])
@pytest.mark.parametrize(
    "command",
    [
        ("infer", SAMPLE, "--report"),
        ("selftest", "-o"),
        ("bench", "--json"),
        ("bench", "--chart"),
        ("tune", SAMPLE, SAMPLE, "--json"),
    ],
    ids=lambda command: " ".join(map(str, command[:: len(command) - 1])),
)
def test_nothing_is_written_into_the_bundle_that_a_command_reads(run, tiny_copy, command, name):
    before = (tiny_copy / "manifest.json").read_bytes()
    code, _, err = run(*command, tiny_copy / name, "--bundle", tiny_copy)
    assert code == OutputError.exit_code and "which this run reads or writes too" in err
    assert (tiny_copy / "manifest.json").read_bytes() == before
    assert not (tiny_copy / "new.json").exists()


def test_peak_memory_is_not_the_parents():
    held = np.ones(40_000_000)  # 305 MiB
    code = "from wdm_runtime.machine import peak_rss_mib; print(peak_rss_mib())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert peak_rss_mib() > held.nbytes / 2**20 > 300 > float(done.stdout)
