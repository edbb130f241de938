"""Members that cannot be true are found, and then warned of, refused or drawn again in fp32."""

import json
from dataclasses import replace

import netCDF4
import numpy as np
import pytest
from conftest import edit_manifest

from wdm_runtime import Downscaler
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import InputError, SuspectError
from wdm_runtime.suspect import (
    MINUTE_RECORD_MM_H,
    PERIOD_RECORD_MM_H,
    highest_mm_h,
    imbalance,
    not_finite,
    suspicion,
)

RAIN = np.array([[0, 1, 2], [np.nan, 300, 0.5]], np.float32)


def with_value(value):
    rate = RAIN.copy()
    rate[0, 1] = value
    return rate


def test_rain_that_can_be_true():
    void = np.full((2, 3), np.nan, np.float32)
    for rate, missing in ((RAIN, 1), (np.zeros((2, 3), np.float32), 0), (void, 6)):
        assert not_finite(rate, missing) is None
        assert suspicion(rate, MINUTE_RECORD_MM_H) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rates_that_are_no_numbers(value):
    assert not_finite(with_value(value), 1) == "1 rates that are no finite numbers"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-0.01, "negative rates, down to -0.01"),
        (2000, "rates up to 2000 mm/h, beyond the world record of 1872"),
    ],
)
def test_rain_that_cannot(value, words):
    assert words in suspicion(with_value(value), MINUTE_RECORD_MM_H)


def test_missing_cells_that_are_known_too():
    assert not_finite(RAIN, 2) == "1 rates that are no finite numbers"
    assert not_finite(with_value(np.inf), 2) is not None


def test_the_highest_rate_falls_with_the_period():
    assert highest_mm_h(None) == highest_mm_h(1 / 60) == pytest.approx(1872)
    assert highest_mm_h(1.0) == PERIOD_RECORD_MM_H == pytest.approx(435.7, abs=0.1)


def test_block_means_further_away_than_no_rain():
    coarse = np.array([[0, 4], [np.nan, 2]], np.float32)  # 2 mm/h on average
    assert imbalance(1.9, coarse, 0.1) is None
    assert "2.1 mm/h from an input of 2 mm/h" in imbalance(2.1, coarse, 0.1)
    assert imbalance(0.05, coarse / 1000, 0.1) is None  # a drizzle's residual
    assert imbalance(np.nan, coarse, 0.1) is None


@pytest.fixture
def wild(tiny_copy):
    """A bundle whose detail is scaled up until its rates are beyond all records."""
    scale = json.loads((tiny_copy / "manifest.json").read_text())["residual_scale"]
    scale["std"] = [30 * value for value in scale["std"]]
    edit_manifest(tiny_copy, residual_scale=scale)
    return tiny_copy


OPTIONS = ("--engine", "ort-cpu", "--consistency", "none", "--no-pixel-probe", "-o", "out.nc")


def test_a_run_warns_and_counts(wild, infer, tmp_path):
    code, out, error = infer("--bundle", wild, *OPTIONS, "--members", 2, "--report", "report.json")
    assert code == 0, error
    assert "member 0 of 2022-08-09T15:00:00 has rates up to" in error
    assert error.count("beyond the world record") == 1  # said once
    assert "2 members cannot be true" in out
    assert json.loads((tmp_path / "report.json").read_text())["suspect_members"] == 2
    with netCDF4.Dataset(tmp_path / "out.nc") as file:
        assert file.wdm_suspect_members == 2 and file.wdm_on_suspect == "warn"


def test_a_run_refuses_and_writes_nothing(wild, infer, tmp_path):
    code, _, error = infer("--bundle", wild, *OPTIONS, "--on-suspect", "fail")
    assert code == SuspectError.exit_code and "cannot be true" not in error
    assert "beyond the world record" in error and "--on-suspect warn" in error
    assert not (tmp_path / "out.nc").exists()


@pytest.mark.parametrize("policy", ["warn", "fp32", "fail"])
def test_a_member_of_no_numbers_is_never_written(tiny_copy, infer, tmp_path, policy):
    scale = json.loads((tiny_copy / "manifest.json").read_text())["residual_scale"]
    scale["std"] = [1e38 for _ in scale["std"]]
    edit_manifest(tiny_copy, residual_scale=scale)
    code, _, error = infer("--bundle", tiny_copy, *OPTIONS, "--on-suspect", policy)
    assert code == SuspectError.exit_code, error
    assert "rates that are no finite numbers; expected rates that can be true" in error
    assert "another --seed." in error and "Report this fault" not in error
    assert not (tmp_path / "out.nc").exists()


def test_a_plausible_run_says_nothing(infer, tmp_path):
    code, out, error = infer("--engine", "ort-cpu", "--no-pixel-probe", "-o", "out.nc")
    assert code == 0 and "suspect" not in out and "member 0" not in error
    with netCDF4.Dataset(tmp_path / "out.nc") as file:
        assert file.wdm_suspect_members == 0 and file.wdm_fp32_redrawn_members == 0


def test_fp32_draws_the_same_member_again(wild, field):
    options = EngineOptions(note=lambda _: None)
    with Downscaler.open(wild, "ort-cpu", "fp32", options) as full:
        expected = next(full.downscale(field, steps=2, consistency="none"))
        same = next(full.downscale(field, steps=2, consistency="none", on_suspect="fp32"))
    assert expected.fault and not same.redrawn  # there is nothing wider to draw it in
    with Downscaler.open(wild, "ort-cpu", "fp16", options) as half:
        found = next(half.downscale(field, steps=2, consistency="none", on_suspect="fp32"))
        kept = next(half.downscale(field, steps=2, consistency="none"))
    assert found.redrawn and not kept.redrawn
    np.testing.assert_array_equal(found.rate_mm_h, expected.rate_mm_h)
    assert not np.array_equal(kept.rate_mm_h, expected.rate_mm_h)


def test_block_means_are_looked_at_only_where_nothing_makes_them_right(tiny_copy, field):
    scale = json.loads((tiny_copy / "manifest.json").read_text())["residual_scale"]
    scale["mean"] = [value + 3 * (index == 0) for index, value in enumerate(scale["mean"])]
    edit_manifest(tiny_copy, residual_scale=scale)
    with Downscaler.open(tiny_copy, "ort-cpu", options=EngineOptions(note=lambda _: None)) as one:
        free = next(one.downscale(field, steps=2, consistency="none"))
        right = next(one.downscale(field, steps=2))
    assert "block means" in free.fault and right.fault is None


def test_amounts_have_the_lower_record(wild, field):
    hourly = replace(field, source=replace(field.source, units="mm", period_h=1.0))
    with Downscaler.open(wild, "ort-cpu", options=EngineOptions(note=lambda _: None)) as one:
        found = next(one.downscale(hourly, steps=2, consistency="none"))
    assert "record of 436" in found.fault


def test_missing_cells_are_no_fault(tiny, field):
    rate = field.rate_mm_h.copy()
    rate[0, 3:6, 4:9] = np.nan
    with Downscaler.open(tiny, "ort-cpu") as one:
        found = next(one.downscale(replace(field, rate_mm_h=rate), steps=2))
        rows, columns = found.rate_mm_h.shape
        wanted = np.zeros((rows, columns), bool)
        wanted[:20, :20] = True
        part = next(one.downscale(replace(field, rate_mm_h=rate), steps=2, wanted=wanted))
    assert np.isnan(found.rate_mm_h).any() and found.fault is None
    assert np.isnan(part.rate_mm_h).any() and part.fault is None


def test_a_policy_that_is_none(tiny, field):
    with (
        Downscaler.open(tiny, "ort-cpu") as one,
        pytest.raises(InputError, match="--on-suspect got 'shout'"),
    ):
        one.downscale(field, on_suspect="shout")
