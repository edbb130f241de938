"""From a file to a file: selection, statistics, units, formats, and making an output again."""

import json
import os

import netCDF4
import numpy as np
import pytest
from conftest import SAMPLE, edit_manifest
from netcdf_files import RATE, add, coordinates

from wdm_runtime.errors import InputError
from wdm_runtime.grid import block_mean
from wdm_runtime.io import read_field
from wdm_runtime.machine import resident_bytes
from wdm_runtime.sampling import Balance
from wdm_runtime.settings import Settings
from wdm_runtime.tally import Suspects, outcome_attributes

RAIN = "precipitation_rate"


def arrays(path, *names):
    with netCDF4.Dataset(path) as data:
        found = [np.ma.filled(data[name][:].astype(np.float64), np.nan) for name in names]
    return found[0] if len(found) == 1 else found


def test_the_plan_is_told_before_the_work(infer):
    code, out, _ = infer("--no-pixel-probe", "--members", 2)
    assert code == 0
    line = out.partition("\n")[0]
    assert line.startswith("plan: 1 frame, ") and "x 2 members x 3 steps" in line
    assert "needs no tile" in line and "missing" not in line and "MiB" in line and " s, " in line


@pytest.fixture
def outage(tmp_path):
    """Three frames: one whole, one without a valid cell, one whose first 20 columns are missing."""
    frame = read_field(SAMPLE).frame(0)[:20, :40]
    strip = frame.copy()
    strip[:, :20] = np.nan
    path = tmp_path / "outage.nc"
    with netCDF4.Dataset(path, "w") as data:
        coordinates(data, 40 - 0.1 * np.arange(20), -100 + 0.1 * np.arange(40), (0, 1, 2))
        add(data, "rain", np.ma.masked_invalid([frame, frame * np.nan, strip]), **RATE)
    return path


def test_what_is_missing_is_told_and_a_frame_without_values_noted(infer, outage, tmp_path):
    code, out, err = infer("--no-pixel-probe", "--report", "r.json", source=outage)
    share = np.isnan(arrays("outage_1km.nc", "rain")).mean()  # what reads it is missing too
    assert code == 0 and 0.5 < share < 0.6
    assert json.loads((tmp_path / "r.json").read_text())["missing_share"] == 0.5
    words = " ".join(out.replace("│", "").split())  # of the plan, and of the panel with its borders
    assert words.count("% of the input is missing") == 2
    assert "1 of 3 frames will be missing throughout, first that of 2022-08-09T16:00:00" in err


@pytest.mark.parametrize("options", [("--time", 1), ("--time", 2, "--bbox=-99.9,38,-98.5,40")])
def test_a_selection_without_a_valid_value_is_refused(infer, outage, tmp_path, options):
    code, _, err = infer("--no-pixel-probe", *options, source=outage)
    assert code == InputError.exit_code and "no valid value" in err and "--time" in err
    assert not (tmp_path / "outage_1km.nc").exists()


@pytest.mark.parametrize("options", [("--threads", 1), ("--batch", 5, "--max-memory", "2GiB")])
def test_threads_batch_and_memory_change_no_bit(infer, options):
    assert infer("-o", "a.nc", "--no-pixel-probe")[0] == 0
    assert infer("-o", "b.nc", "--no-pixel-probe", *options)[0] == 0
    np.testing.assert_array_equal(arrays("a.nc", RAIN), arrays("b.nc", RAIN))


def test_block_means_are_the_input_by_default(infer):
    assert infer("-o", "a.nc", "--no-pixel-probe")[0] == 0
    coarse = read_field(SAMPLE).frame(0)
    np.testing.assert_allclose(block_mean(arrays("a.nc", RAIN)[0, 0], 10), coarse, atol=1e-4)
    with netCDF4.Dataset("a.nc") as data:
        assert data.wdm_block_residual_mean_before_mm_h > 1e-3
        assert 0 < data.wdm_wet_fraction_before < 1 and 0 < data.wdm_wet_fraction_after < 1


def test_what_no_block_tells_is_no_attribute():
    nan = float("nan")
    without = Balance(nan, nan, 0.0, nan)
    assert outcome_attributes([without], 0, 0, Suspects()) == {
        "wdm_wet_fraction_before": 0.0,
        **dict.fromkeys(("wdm_fp32_reruns", "wdm_fused_steps"), 0),
        **dict.fromkeys(("wdm_suspect_members", "wdm_fp32_redrawn_members"), 0),
    }
    found = outcome_attributes([without, Balance(1.0, 2.0, 0.5, 0.5)], 0, 0, Suspects())
    assert found["wdm_block_residual_mean_before_mm_h"] == 1
    assert found["wdm_block_residual_max_before_mm_h"] == 2
    assert found["wdm_wet_fraction_before"] == 0.25


def test_a_box_gives_a_part_of_the_whole(infer):
    grid = read_field(SAMPLE).grid
    west, east = grid.x[10] + 360 * (grid.x[10] < 0), grid.x[30] + 360 * (grid.x[30] < 0)
    south, north = sorted((grid.y[12], grid.y[35]))
    box = f"--bbox={west:.3f},{south:.3f},{east:.3f},{north:.3f}"
    assert infer("-o", "part.nc", "--no-pixel-probe", box)[0] == 0
    assert infer("-o", "whole.nc", "--no-pixel-probe")[0] == 0
    lat, lon = arrays("part.nc", "lat", "lon")
    whole, all_lat, all_lon = arrays("whole.nc", RAIN, "lat", "lon")
    assert lat.size in (240, 260) and lon.size in (220, 240)
    rows, columns = np.searchsorted(-all_lat, -lat), np.searchsorted(all_lon, lon)
    np.testing.assert_allclose(all_lat[rows], lat)
    same = whole[0, 0][np.ix_(rows, columns)]
    # Other tiles and other edges, but the same noise: alike, where another seed is not.
    assert infer("-o", "other.nc", "--no-pixel-probe", box, "--seed", 1)[0] == 0
    alike, unlike = (
        np.corrcoef(same.ravel(), arrays(name, RAIN)[0, 0].ravel())[0, 1]
        for name in ("part.nc", "other.nc")
    )
    assert alike > 0.95 and alike > unlike + 0.02


def test_statistics_are_those_of_the_members(infer):
    options = ("--members", 5, "--no-pixel-probe", "--quantiles", "0.5", "--thresholds", "1,5")
    assert infer("-o", "also.nc", "--stats", "also", *options)[0] == 0
    # What pytest holds already counts, so the limit is a little above it.
    limit = ("--max-memory", str(resident_bytes() + 80_000_000))
    assert infer("-o", "only.nc", "--stats", "only", *options, *limit)[0] == 0
    names = [f"{RAIN}_{name}" for name in ("mean", "standard_deviation", "quantile", "exceedance")]
    members, mean, spread, quantile, share = arrays("also.nc", RAIN, *names)
    np.testing.assert_allclose(mean, members.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(spread, members.std(1, ddof=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(quantile[:, 0], np.median(members, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(share[:, 1], (members >= 5).mean(1), atol=1e-6)
    for found, expected in zip(
        arrays("only.nc", *names), (mean, spread, quantile, share), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    with netCDF4.Dataset("only.nc") as data:
        assert RAIN not in data.variables


def test_units_of_the_output(infer):
    assert infer("-o", "a.nc", "--no-pixel-probe")[0] == 0
    assert infer("-o", "b.nc", "--no-pixel-probe", "--units", "kg m-2 s-1")[0] == 0
    np.testing.assert_allclose(3600 * arrays("b.nc", RAIN), arrays("a.nc", RAIN), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("out.nc", "out.nc"),
        ("out.zarr", "out.zarr"),
        ("out.nc", "out.nc.kept"),
        ("out.zarr", "kept"),
    ],
)
def test_replay_makes_the_same_file_again(infer, run, tiny, tmp_path, name, later):
    options = ("--members", 2, "--seed", 9, "--stats", "also", "--noise-decorrelation", 20)
    assert infer("-o", name, "--no-pixel-probe", *options)[0] == 0
    os.rename(name, later)
    code, out, err = run("replay", later, "--bundle", tiny)
    assert code == 0 and "matches bit for bit" in out, err


class TestReplayRefuses:
    @pytest.fixture
    def output(self, infer):
        assert infer("-o", "out.nc", "--no-pixel-probe")[0] == 0
        return "out.nc"

    def test_another_value(self, output, run, tiny):
        with netCDF4.Dataset(output, "a") as data:
            data[RAIN][0, 0, 100, 100] = 42.0
        code, _, err = run("replay", output, "--bundle", tiny)
        assert code == 5 and RAIN in err and "1 of" in err and "Changed since" not in err

    @pytest.mark.parametrize("name", ["processor", "numpy"])
    def test_another_value_of_another_processor_or_numpy_by_its_name(self, output, run, tiny, name):
        with netCDF4.Dataset(output, "a") as data:
            data[RAIN][0, 0, 100, 100] = 42.0
            now = data.getncattr(f"wdm_{name}")
            data.setncattr(f"wdm_{name}", "older")
        code, _, err = run("replay", output, "--bundle", tiny)
        assert code == 5 and f"Changed since: {name} 'older' then, '{now}' now" in err

    def test_another_value_of_an_output_that_names_no_processor(self, output, run, tiny):
        with netCDF4.Dataset(output, "a") as data:
            data[RAIN][0, 0, 100, 100] = 42.0
            data.delncattr("wdm_processor")
            data.delncattr("wdm_numpy")
        code, _, err = run("replay", output, "--bundle", tiny)
        assert code == 5 and "Changed since" not in err

    def test_another_input(self, output, run, tiny, tmp_path):
        other = tmp_path / "other.nc"
        other.write_bytes(SAMPLE.read_bytes() + b"\0")
        code, _, err = run("replay", output, "--bundle", tiny, "--input", other)
        assert code == 2 and "SHA-256" in err and "--input" in err

    def test_another_bundle(self, output, run, tiny_copy):
        edit_manifest(tiny_copy, name="other")
        code, _, err = run("replay", output, "--bundle", tiny_copy)
        assert code == 2 and "--bundle" in err

    def test_an_input_that_is_gone(self, run, infer, tiny, tmp_path):
        copy = tmp_path / "here.nc"
        copy.write_bytes(SAMPLE.read_bytes())
        assert infer("-o", "out.nc", "--no-pixel-probe", source=copy)[0] == 0
        copy.unlink()
        code, _, err = run("replay", "out.nc", "--bundle", tiny)
        assert code == 2 and "here.nc" in err and "--input" in err

    def test_a_file_without_a_record(self, run, tiny):
        code, _, err = run("replay", SAMPLE, "--bundle", tiny)
        assert code == 2 and "wdm_" in err


def test_settings_survive_a_file():
    settings = Settings(members=3, noise_decorrelation_min=20.0, time="0", assume_factor=True)
    stored = {name: str(value) for name, value in settings.attributes().items()}
    assert Settings.from_attributes(stored) == settings
    with pytest.raises(InputError, match="wdm_members"):
        Settings.from_attributes({**stored, "wdm_members": "many"})
    with pytest.raises(InputError, match="wdm_seed"):
        Settings.from_attributes({k: v for k, v in stored.items() if k != "wdm_seed"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stats", "some"), "--stats"),
        (("--consistency", "exact"), "exact"),
        (("--max-memory", "lots"), "--max-memory"),
        (("--max-memory", "1MB"), "--max-memory"),
        (("--accumulation", "soon"), "--accumulation"),
        (("--accumulation", ""), "--accumulation"),
        (("--time", "1999-01-01"), "--time"),
        (("--bbox", "1,2,3"), "--bbox"),
        (("--bbox=0,0,1,1",), "--bbox"),
        (("--units", "K"), "--units"),
        (("--noise-decorrelation", -5), "--noise-decorrelation"),
        (("--stats", "also", "--quantiles", "2"), "--quantiles"),
        (("-o", "out.txt"), "out.txt"),
    ],
)
def test_bad_choices_are_refused_before_work(infer, tmp_path, options, message):
    code, _, err = infer("--no-pixel-probe", *options)
    assert code == 2 and message in err
    assert not list(tmp_path.glob("*.nc")) and not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--quantiles", "0.5"), "--stats also"),
        (("--thresholds", "5"), "--stats also"),
        (("--stats", "only", "--quantiles", "7"), "--quantiles"),
        (("--members", 0), "--members"),
        (("--consistency", "exact"), "exact"),
        (("--on-suspect", "panic"), "panic"),
    ],
)
def test_what_options_alone_say_is_refused_before_the_plan(infer, tmp_path, options, message):
    code, out, err = infer("--no-pixel-probe", *options)
    assert code == 2 and message in err and "plan" not in out + err
    assert not list(tmp_path.glob("*.nc"))
