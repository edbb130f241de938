"""Coarse consistency: exact block means, no negative rain, nothing else disturbed."""

import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wdm_runtime.consistency import MODES, block_residual, make_consistent, wet_fraction
from wdm_runtime.errors import InputError
from wdm_runtime.grid import block_mean, interpolate

CORRECTING = ("additive", "multiplicative")
FACTOR = 4


def rain(shape, seed=0):
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.4, 6.0, shape).astype(np.float32)
    rate[rate < 1] = 0
    return rate


def correct(rate, coarse, mode, interpolated=None, factor=FACTOR):
    if interpolated is None:
        interpolated = interpolate(np.nan_to_num(coarse), factor)
    return make_consistent(rate, coarse, interpolated, factor, mode)


rates = st.floats(0, 300, width=32)
coarse_fields = arrays(np.float32, (3, 2), elements=rates)
fine_fields = arrays(np.float32, (3 * FACTOR, 2 * FACTOR), elements=rates)
masks = arrays(np.bool_, (3 * FACTOR, 2 * FACTOR))
modes = st.sampled_from(CORRECTING)
few = settings(max_examples=80, deadline=None)


@given(fine_fields, coarse_fields, masks, modes)
@example(np.zeros((12, 8), "f4"), np.full((3, 2), 5, "f4"), np.zeros((12, 8), bool), CORRECTING[1])
@few
def test_block_means_are_the_input_and_rain_is_not_negative(fine, coarse, missing, mode):
    fine = np.where(missing, np.float32(np.nan), fine)
    out = correct(fine, coarse, mode)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(out), missing)
    assert not np.any(out < 0)
    mean = block_mean(out, FACTOR)
    valid = np.isfinite(mean)
    np.testing.assert_allclose(mean[valid], coarse[valid], atol=1e-4, rtol=0)
    dry = np.repeat(np.repeat(coarse == 0, FACTOR, 0), FACTOR, 1) & ~missing
    assert not out[dry].any()
    assert block_residual(out, coarse, FACTOR)[1] <= 1e-4 or not valid.any()


@given(fine_fields, coarse_fields, modes)
@few
def test_a_consistent_field_comes_back_bit_for_bit(fine, coarse, mode):
    once = correct(fine, coarse, mode)
    np.testing.assert_array_equal(correct(once, coarse, mode), once)


@given(fine_fields, coarse_fields, masks, modes, st.sampled_from([(-1, 1), (1, -1), (-1, -1)]))
@few
def test_flips_commute(fine, coarse, missing, mode, signs):
    fine = np.where(missing, np.float32(np.nan), fine)
    y, x = (slice(None, None, sign) for sign in signs)
    smooth = interpolate(coarse, FACTOR)
    expected = correct(fine, coarse, mode, smooth)[y, x]
    flipped = correct(fine[y, x], coarse[y, x], mode, smooth[y, x])
    np.testing.assert_allclose(flipped, expected, rtol=1e-5, atol=1e-5)


@given(fine_fields, coarse_fields, masks, st.integers(0, 2**32))
@few
def test_the_additive_field_is_the_closest_of_all_that_are_consistent(fine, coarse, missing, seed):
    fine = np.where(missing, np.float32(np.nan), fine)
    closest = correct(fine, coarse, "additive").astype(np.float64)
    other = np.random.default_rng(seed).gamma(0.3, 5.0, fine.shape)
    other = np.where(missing, np.nan, other)
    level = np.divide(coarse, block_mean(other, FACTOR)).repeat(FACTOR, 0).repeat(FACTOR, 1)
    # Whatever is feasible lies behind the plane through the closest point (Hilbert).
    inner = block_mean((fine - closest) * (other * level - closest), FACTOR)
    assert not np.any(inner > 1e-3 * (1 + coarse.max()))


def test_additive_shifts_wet_blocks_and_clips():
    rate = np.array([[4, 1, 0, 0], [0, 0, 0, 3]], dtype=np.float32)
    out = correct(rate, np.array([[0.5, 1.75]]), "additive", np.zeros((2, 4)), factor=2)
    # left: 2 in all, from 4 alone; right: 7 in all, one more for every cell
    np.testing.assert_allclose(out, [[2, 0, 1, 1], [0, 0, 1, 4]], atol=1e-6)


def test_additive_agrees_with_bisection_at_the_usual_factor():
    rate, coarse = rain((50, 70)), rain((5, 7), seed=1)
    out = correct(rate, coarse, "additive", factor=10)
    for i, j in np.ndindex(coarse.shape):
        block = rate[10 * i : 10 * i + 10, 10 * j : 10 * j + 10].astype(np.float64)
        low, high = -400.0, 400.0
        for _ in range(80):
            middle = (low + high) / 2
            over = np.maximum(block - middle, 0).mean() > coarse[i, j]
            low, high = (middle, high) if over else (low, middle)
        found = out[10 * i : 10 * i + 10, 10 * j : 10 * j + 10]
        np.testing.assert_allclose(found, np.maximum(block - low, 0), atol=2e-4)


def test_multiplicative_keeps_dry_cells_dry_and_ratios():
    rate = rain((40, 40)) + np.float32(0)
    coarse = (block_mean(rate, 10) * 2.5).astype(np.float32)
    out = correct(rate, coarse, "multiplicative", factor=10)
    np.testing.assert_allclose(out, rate * np.float32(2.5), rtol=5e-3)
    assert wet_fraction(out, 1e-9) == wet_fraction(rate, 1e-9)


def test_factors_go_over_into_each_other_between_blocks():
    coarse = np.linspace(2, 6, 5, dtype=np.float32)[None].repeat(3, axis=0)
    rate = np.full((30, 50), 3.5, dtype=np.float32)
    out = correct(rate, coarse, "multiplicative", factor=10)
    steps = np.abs(np.diff(out[10:20], axis=1))[:, 10:-10]
    assert steps.max() < 0.2  # a factor a block would leave steps of 1 at their borders
    assert (np.diff(out[15]) > -0.1).all()


@pytest.mark.parametrize("around", [0, 2])
def test_factors_go_on_where_a_field_ends(around):
    """What is missing beside a field that is everywhere half as wet as it should be is no step."""
    rate, coarse = np.full((60, 60), 1, dtype=np.float32), np.full((6, 6), 2.0)
    rate[:20], rate[20 : 20 + around] = np.nan, np.nan
    coarse[:, 0] = np.nan
    out = correct(rate, coarse, "multiplicative", np.ones((60, 60)), 10)
    np.testing.assert_allclose(out[20 + around :, 10:], 2, rtol=1e-5)
    np.testing.assert_array_equal(out[20 + around :, :10], 1)


def test_a_block_far_off_does_not_carry_its_neighbours_away():
    rate, coarse = np.ones((9, 9), dtype=np.float32), np.ones((3, 3))
    rate[3:6, 3:6], rate[:, 0] = 0.001, 1.01
    coarse[1, 1] = 50
    out = correct(rate, coarse, "multiplicative", np.ones((9, 9)), 3)
    assert out[3:6, 0].max() < 10 and out[3:6, 0].min() > 0.1


def test_factors_between_faint_blocks_are_near_one():
    rate = np.full((20, 30), 0.001, dtype=np.float32)
    rate[:, 14] = 0.02
    coarse = np.full((2, 3), 0.003)
    out = correct(rate, coarse, "multiplicative", rate, 10)
    # Each block is scaled to its mean, in its own shape but for the little that is interpolated.
    shape = out[:10, 10:20] / rate[:10, 10:20]
    assert shape.max() / shape.min() < 1.05


@pytest.mark.parametrize("bad", [np.inf, 3e38])
def test_what_no_network_should_draw_is_no_warning(bad):
    rate = np.ones((20, 20), dtype=np.float32)
    rate[3, 3] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = correct(rate, np.ones((2, 2)), "multiplicative", np.ones((20, 20)), 10)
    np.testing.assert_allclose(out[10:, 10:], 1, rtol=1e-3)


def test_a_dry_member_takes_the_interpolated_shape_and_else_is_even():
    smooth = np.array([[1, 3, 0, 0], [0, 4, 0, 0]], dtype=np.float32)
    out = correct(np.zeros((2, 4), "f4"), np.array([[4.0, 4.0]]), "multiplicative", smooth, 2)
    np.testing.assert_allclose(out, [[2, 6, 4, 4], [0, 8, 4, 4]])


def test_the_shape_counts_valid_cells_only():
    rate = np.array([[np.nan, 0], [0, 0]], dtype=np.float32)
    smooth = np.array([[90, 1], [np.nan, 1]], dtype=np.float32)
    out = correct(rate, np.array([[2.0]]), "multiplicative", smooth, 2)
    np.testing.assert_allclose(out, [[np.nan, 3], [0, 3]])


def test_one_drizzling_cell_does_not_take_all_of_a_downpour():
    rate = np.zeros((10, 10), dtype=np.float32)
    rate[3, 4] = 0.1
    out = correct(rate, np.array([[5.0]]), "multiplicative", np.full((10, 10), 5.0), 10)
    assert out[3, 4] == out.max() < 10  # not 500 mm/h
    assert out.mean(dtype=np.float64) == pytest.approx(5, abs=1e-4)


def test_the_limit_is_approached_without_a_jump():
    rate, smooth = rain((10, 10)), np.full((10, 10), 1.0)
    mean = rate.mean(dtype=np.float64)
    below, above = (
        correct(rate, np.array([[mean * scale]]), "multiplicative", smooth, 10)
        for scale in (9.999, 10.001)
    )
    np.testing.assert_allclose(below, above, rtol=1e-3, atol=3e-3 * mean)


@pytest.mark.parametrize("mode", MODES)
def test_what_has_no_input_or_no_valid_cell_stays_as_it_was(mode):
    rate, coarse = rain((12, 12)), rain((3, 3), seed=1) + 1
    coarse[0, 0] = np.nan
    rate[4:8, 4:8] = np.nan
    rate[9, 9] = np.nan
    out = correct(rate, coarse, mode)
    np.testing.assert_array_equal(out[:4, :4], rate[:4, :4])
    np.testing.assert_array_equal(np.isnan(out), np.isnan(rate))
    assert (mode == "none") == np.array_equal(out, rate, equal_nan=True)


def test_the_given_field_is_left_alone():
    rate, coarse = rain((12, 12)), rain((3, 3), seed=1) + 1
    before = rate.copy()
    correct(rate, coarse, "additive")
    np.testing.assert_array_equal(rate, before)


def test_bands_of_a_large_field_are_the_field_at_once_and_memory_stays_flat():
    coarse = rain((240, 100), seed=2)
    smooth = interpolate(coarse, 10)
    rate = (smooth * np.random.default_rng(3).gamma(0.4, 2.5, smooth.shape)).astype(np.float32)
    for mode in CORRECTING:
        tracemalloc.start()
        out = make_consistent(rate, coarse, smooth, 10, mode)
        working = tracemalloc.get_traced_memory()[1] - out.nbytes
        tracemalloc.stop()
        assert working < 40e6  # the field in float64 alone is 19e6, and bands are its fifth
        assert block_residual(out, coarse, 10)[1] <= 1e-4
        part = slice(70, 90)
        fine = slice(700, 900)
        alone = make_consistent(rate[fine], coarse[part], smooth[fine], 10, mode)
        # Interpolated factors see two coarse cells, and what was scaled by such in the second turn.
        inner = slice(40, -40) if mode == "multiplicative" else slice(None)
        np.testing.assert_array_equal(out[fine][inner], alone[inner])


def test_residual_and_wet_fraction_of_known_fields():
    rate = np.zeros((4, 8), dtype=np.float32)
    rate[:, :4] = 2
    rate[0, 0] = np.nan
    assert block_residual(rate, np.array([[1.5, 0.25]]), 4) == (0.375, 0.5)
    assert block_residual(rate, np.array([[np.nan, 0.25]]), 4) == (0.25, 0.25)
    assert np.isnan(block_residual(rate, np.full((1, 2), np.nan), 4)).all()
    assert wet_fraction(rate, 0.1) == 15 / 31
    assert wet_fraction(np.full((2, 2), 0.7, dtype=np.float32), 0.7) == 1  # 0.69999999 in float32
    assert np.isnan(wet_fraction(np.full((2, 2), np.nan, dtype=np.float32), 0.1))


def test_what_does_not_fit_is_said():
    rate, coarse = rain((12, 12)), rain((3, 3))
    with pytest.raises(InputError, match=r"--consistency got 'both'; expected one of none, add"):
        correct(rate, coarse, "both")
    with pytest.raises(InputError, match=r"shape \(12, 12\); expected \(12, 8\)"):
        correct(rate, coarse[:, :2], "additive", rate)
    with pytest.raises(InputError, match=r"shape \(8, 12\); expected \(12, 12\)"):
        correct(rate, coarse, "multiplicative", rate[:8])
    with pytest.raises(InputError, match="expected"):
        block_residual(rate[:8], coarse, FACTOR)


LEAST = 0.1


@given(fine_fields, coarse_fields, masks)
@few
def test_no_rain_below_the_dry_threshold_is_left_by_scaling(fine, coarse, missing):
    fine = np.where(missing, np.float32(np.nan), fine)
    smooth = interpolate(coarse, FACTOR)
    out = make_consistent(fine, coarse, smooth, FACTOR, "multiplicative", LEAST)
    mean = block_mean(out, FACTOR)
    valid = np.isfinite(mean)
    np.testing.assert_allclose(mean[valid], coarse[valid], atol=1e-4, rtol=0)
    blocks = out.reshape(3, FACTOR, 2, FACTOR).swapaxes(1, 2).reshape(6, -1)
    faint = (blocks > 0) & (blocks < np.float32(LEAST))
    # Where the rain of a whole block is less than the threshold, one cell holds it.
    alone = (blocks > 0).sum(axis=1) == 1
    assert not faint[~alone].any()
    assert np.all(np.nansum(blocks[faint.any(axis=1)], axis=1) < LEAST)
    again = make_consistent(out, coarse, smooth, FACTOR, "multiplicative", LEAST)
    np.testing.assert_array_equal(again, out)


@given(fine_fields, coarse_fields, masks, st.sampled_from(MODES))
@few
def test_where_nothing_is_to_be_corrected_faint_rain_is_none(fine, coarse, missing, mode):
    fine = np.where(missing, np.float32(np.nan), fine / 100)
    unknown = np.full_like(coarse, np.nan)
    out = make_consistent(fine, unknown, interpolate(coarse, FACTOR), FACTOR, mode, LEAST)
    expected = np.where(fine < np.float32(LEAST), np.float32(0), fine)
    np.testing.assert_array_equal(out, expected)
    if mode == "none":
        other = make_consistent(fine, coarse, interpolate(coarse, FACTOR), FACTOR, mode, LEAST)
        np.testing.assert_array_equal(other, expected)


def test_a_block_with_too_little_rain_gets_more_where_it_was_faint():
    rate = np.zeros((4, 4), dtype=np.float32)
    rate[:2, :] = 0.06
    rate[0, 0] = 0.3
    out = make_consistent(rate, np.array([[0.09]]), rate, 4, "multiplicative", LEAST)
    assert (out[:2] >= np.float32(LEAST)).all() and not out[2:].any()
    np.testing.assert_allclose(out[:2] / out[0, 1], rate[:2] / rate[0, 1], rtol=1e-5)
    assert out.mean() == pytest.approx(0.09, abs=1e-6)


def test_gathered_rates_keep_the_order_of_the_cells_own():
    rate = np.array([[0.02, 0.3, 0.2], [0.01, 0.01, 0.4], [0, 0, 0]], dtype=np.float32)
    out = make_consistent(rate, np.array([[rate.mean()]]), rate, 3, "multiplicative", LEAST)
    scale = rate.sum() / 0.9
    expected = np.array([[0, 0.3, 0.2], [0, 0, 0.4], [0, 0, 0]]) * scale
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_faint_rain_goes_to_cells_that_lie_together():
    """Of the same four rates in each block those beside the neighbour's rain are kept."""
    rate = np.array([[0.12, 0.11, 5, 5], [0.14, 0.13, 5, 5]], dtype=np.float32)
    coarse, smooth = np.array([[0.06, 5]]), np.zeros((2, 4))
    out = make_consistent(rate, coarse, smooth, 2, "multiplicative", 0.1)
    # 0.24 in all: on two cells; on three the least would have 0.07.
    assert (out[:, 0] == 0).all() and (out[:, 1] >= np.float32(0.1)).all()
    np.testing.assert_allclose(out[:, 1].sum(), 0.24, atol=1e-6)
    out = make_consistent(rate, coarse, smooth, 2, "multiplicative", 0.12)
    np.testing.assert_allclose(out[:, :2].sum(), 0.24, atol=1e-6)
    assert np.count_nonzero(out[:, :2]) == 1  # 0.11 : 0.13 would leave one below
    np.testing.assert_array_equal(out[:, 2:], 5)


def test_gathering_does_not_depend_on_the_bands(monkeypatch):
    rate, coarse = rain((60, 50)), rain((6, 5), seed=1) / 100
    smooth = interpolate(coarse, 10)
    whole = make_consistent(rate, coarse, smooth, 10, "multiplicative", LEAST)
    monkeypatch.setattr("wdm_runtime.blocks._BAND_CELLS", 1)
    parts = make_consistent(rate, coarse, smooth, 10, "multiplicative", LEAST)
    np.testing.assert_array_equal(parts, whole)
    assert np.any(whole != correct(rate, coarse, "multiplicative", smooth, 10))
