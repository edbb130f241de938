"""Speckle, smoothness and checkerboards on fields that have a known amount of each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from wdm_export import texture

SIZE = 96
ALL = np.ones((SIZE, SIZE), bool)


def smooth(seed: int, slope: float = 2.0, size: int = SIZE) -> npt.NDArray[np.float64]:
    """Noise whose amplitude falls with the wavenumber to the power ``slope``."""
    rng = np.random.default_rng(seed)
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / np.maximum(k, 1) ** slope
    field = np.fft.irfft2(spectrum, s=(size, size))
    return np.asarray(field / field.std())


def phase_pattern(period: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(1)
    return np.tile(rng.standard_normal((period, period)), (SIZE // period, SIZE // period))


def test_regions_are_chosen_by_the_input_alone() -> None:
    given = np.array([[0.0, 0.0999, 0.1, 9.9, 10.0, np.nan, 20.0]])
    valid = np.array([[True, True, True, True, True, True, False]])
    dry, heavy = texture.regions(given, valid)
    assert dry.tolist() == [[True, True, False, False, False, False, False]]
    assert heavy.tolist() == [[False, False, False, False, True, False, False]]


def test_speckle_counts_lone_cells_by_their_height_and_nothing_else() -> None:
    z = np.zeros((SIZE, SIZE))
    z[20:60, 20:60] = 2  # a plateau with edges
    corners = texture.speckle_sums(z, (ALL,))[0]
    assert corners == pytest.approx(4 * 2)  # a median rounds the corners, edges stay
    assert texture.speckle_sums(np.add.outer(np.arange(SIZE), np.arange(SIZE)), (ALL,))[0] < 3
    z[70::4, 70::4] = 0.5
    lone = z[70:, 70:][z[70:, 70:] > 0].size
    left, right = np.zeros_like(ALL), np.zeros_like(ALL)
    left[:, :65], right[:, 65:] = True, True
    assert texture.speckle_sums(z, (left, right)) == pytest.approx([corners, 0.5 * lone])


def test_variation_of_a_ramp_and_of_what_does_not_count() -> None:
    ramp = np.tile(np.arange(SIZE) * 0.25, (SIZE, 1))
    assert texture.variation_sum(ramp, ALL) == pytest.approx(0.25 * (SIZE - 1) * SIZE)
    valid = ALL.copy()
    valid[:, 40] = False
    spoiled = np.where(valid, ramp, 1e6)
    assert texture.variation_sum(spoiled, valid) == pytest.approx(0.25 * (SIZE - 3) * SIZE)


def test_smoothing_lowers_the_variation_and_noise_raises_it() -> None:
    field = smooth(0)
    blurred = sum(np.roll(field, s, a) for s in (-1, 0, 1) for a in (0, 1)) / 6
    noisy = field + 0.3 * np.random.default_rng(2).standard_normal(field.shape)
    sums = [texture.variation_sum(z, ALL) for z in (blurred, field, noisy)]
    assert sums[0] < 0.95 * sums[1] and sums[2] > 1.5 * sums[1]


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0, 3.0])
def test_a_field_without_phase_has_no_checkerboard_whatever_its_spectrum(slope: float) -> None:
    levels = [texture.checkerboard_db(smooth(seed, slope)) for seed in range(60)]
    assert np.mean(levels) == pytest.approx(0, abs=0.5)


def test_a_faint_pattern_of_four_cells_stands_out() -> None:
    clean = [smooth(seed) for seed in range(8)]
    deviation = np.diff(clean[0]).std()
    faint = 0.5 * deviation * phase_pattern(4)
    found = [texture.checkerboard_db(z + faint) for z in clean]
    assert min(found) > 5
    stronger = [texture.checkerboard_db(z + 2 * faint) for z in clean]
    assert np.mean(stronger) > np.mean(found) + 3


def test_other_periods_and_positions_do_not_count() -> None:
    z = smooth(3)
    assert texture.checkerboard_db(z + phase_pattern(3)) == pytest.approx(
        texture.checkerboard_db(z), abs=1
    )
    shifted = np.roll(z + 0.05 * phase_pattern(4), (1, 2), (0, 1))
    assert texture.checkerboard_db(shifted) > 5


def test_a_constant_field_has_no_pattern() -> None:
    assert texture.checkerboard_db(np.full((SIZE, SIZE), 1.04, np.float32)) == pytest.approx(0)
