"""The metrics against their own mathematics, and against the packages that also have them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from scores.probability import crps_for_ensemble
from scores.spatial import fss_2d
from skimage.metrics import peak_signal_noise_ratio

from wdm_export import metrics, scores
from wdm_export.metrics import TruthTile
from wdm_runtime import skill

SIZE, FACTOR = 96, 10


def rain(seed: int, size: int = SIZE) -> npt.NDArray[np.float32]:
    """Showers: smooth noise made skewed, dry for the most part. (size, size) [mm h-1]"""
    rng = np.random.default_rng(seed)
    noise = np.fft.rfft2(rng.standard_normal((size, size)))
    ky, kx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    smooth = np.fft.irfft2(noise * np.exp(-((12 * np.hypot(ky, kx)) ** 2)), s=(size, size))
    rate = np.exp(1.6 * smooth / smooth.std()) - 2
    rate[rate < 0.1] = 0
    return rate.astype(np.float32)


def truth_of(
    rate: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_] | None = None
) -> TruthTile:
    blocks = rate[: 9 * FACTOR, : 9 * FACTOR].reshape(9, FACTOR, 9, FACTOR)
    coarse = blocks.mean(axis=(1, 3), dtype=float)
    valid = np.ones(rate.shape, bool) if valid is None else valid
    return TruthTile(rate, valid, coarse, (0, 0), FACTOR)


def pooled(forecasts: list[npt.NDArray[np.float32]], truths: list[TruthTile]) -> scores.Metrics:
    tiles = [scores.score_tile(f, t) for f, t in zip(forecasts, truths, strict=True)]
    return scores.pool(scores.stack(tiles), np.zeros(3))


def test_a_perfect_forecast_is_perfect() -> None:
    rates = [rain(seed) for seed in range(3)]
    m = pooled(rates, [truth_of(rate) for rate in rates])
    assert m.psnr_db == np.inf
    assert m.ssim == pytest.approx(1, abs=1e-12)
    assert m.mae_mm_h == m.rmse_mm_h == m.wet_fraction_error == 0
    assert all(m.csi[key] == m.pod[key] == m.bias[key] == 1 for key in ("0.1", "1", "5", "20"))
    assert m.far["5"] == 0
    assert all(value == 1 for value in m.fss["5"].values())
    assert set(m.spectrum_db.values()) == {0.0}
    assert m.consistency_max_mm_h == pytest.approx(0, abs=1e-4)


def test_psnr_of_a_known_error_and_against_scikit_image() -> None:
    truth, valid = np.zeros((20, 20)), np.ones((20, 20), bool)
    assert metrics.psnr_db(truth + 0.1, truth, valid) == pytest.approx(20)
    a, b = skill.scaled_z(rain(0)), skill.scaled_z(rain(1))
    expected = peak_signal_noise_ratio(b, a, data_range=1)
    assert metrics.psnr_db(a, b, np.ones(a.shape, bool)) == pytest.approx(expected, rel=1e-6)


def test_scaled_z_has_the_range_one() -> None:
    assert skill.scaled_z(np.array([0.0, 150.0])) == pytest.approx([0, 1], abs=2e-4)


def test_contingency_of_a_table_made_by_hand() -> None:
    truth = np.array([[0.1, 0.0, 5.0, 0.05]], dtype=np.float32)
    forecast = np.array([[0.1, 0.3, 0.0, 0.0]], dtype=np.float32)
    valid = np.ones(truth.shape, bool)
    # The threshold itself counts: 0.1 mm/h is MRMS's least rate.
    assert metrics.contingency(forecast, truth, valid, (0.1, 5.0)).tolist() == [
        [1, 1, 1],
        [0, 1, 0],
    ]


def test_scores_are_pooled_and_not_means_of_tiles() -> None:
    heavy, light = np.full((SIZE, SIZE), 2, np.float32), np.zeros((SIZE, SIZE), np.float32)
    light[0, :2] = 2
    half = light.copy()
    half[0, 0] = 0  # one of two events missed: CSI 0.5 in this tile
    m = pooled([heavy, half], [truth_of(heavy), truth_of(light)])
    assert m.csi["1"] == pytest.approx((SIZE**2 + 1) / (SIZE**2 + 2))
    assert m.mae_mm_h == pytest.approx(2 / (2 * SIZE**2))
    assert m.wet_fraction_error == pytest.approx(-1 / (2 * SIZE**2))
    assert np.isnan(m.csi["50"]) and np.isnan(m.fss["50"]["9"])


@pytest.mark.parametrize("scale", metrics.FSS_SCALES_KM)
def test_fss_of_one_cell_moved_by_d_in_a_window_w_is_one_minus_d_over_w(scale: int) -> None:
    truth, valid = np.zeros((SIZE, SIZE)), np.ones((SIZE, SIZE), bool)
    truth[48, 48] = 1
    first, second = metrics.fss_sums(np.roll(truth, 2, 1), truth, valid, (1.0,), (scale,))[0, 0]
    assert 1 - first / second == pytest.approx(max(0, 1 - 2 / scale))


def test_fss_forgives_a_shift_of_stripes_that_the_window_averages_out() -> None:
    truth, valid = np.zeros((SIZE, SIZE)), np.ones((SIZE, SIZE), bool)
    truth[:, ::3] = 1
    sums = metrics.fss_sums(np.roll(truth, 1, 1), truth, valid, (1.0,), (1, 3, 9, 33))[0]
    assert 1 - sums[:, 0] / sums[:, 1] == pytest.approx([0, 1, 1, 1])


@pytest.mark.parametrize("scale", [1, 3, 17])
def test_fss_agrees_with_scores(scale: int) -> None:
    forecast, truth = rain(0), rain(1)
    first, second = metrics.fss_sums(forecast, truth, np.ones(truth.shape, bool), (1.0,), (scale,))[
        0, 0
    ]
    expected = fss_2d(
        xr.DataArray(forecast, dims=("y", "x")),
        xr.DataArray(truth, dims=("y", "x")),
        event_threshold=1.0,
        window_size=(scale, scale),
        spatial_dims=("y", "x"),
        threshold_operator=np.greater_equal,
    )
    assert 1 - first / second == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_fair_crps_agrees_with_scores(count: int) -> None:
    rng = np.random.default_rng(count)
    members, truth = rng.gamma(0.5, 2, (count, 12, 11)), rng.gamma(0.5, 2, (12, 11))
    members[:, :3] = 0  # ties, as dry ground has them
    expected = crps_for_ensemble(
        xr.DataArray(members, dims=("member", "y", "x")),
        xr.DataArray(truth, dims=("y", "x")),
        ensemble_member_dim="member",
        method="fair",
        preserve_dims="all",
    )
    assert skill.fair_crps(members, truth) == pytest.approx(expected.values, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fair_crps_of_identical_members_is_the_absolute_error(count: int) -> None:
    forecast, truth = rain(0), rain(1)
    crps = skill.fair_crps(np.repeat(forecast[None], count, axis=0), truth)
    assert crps == pytest.approx(np.abs(forecast - truth), abs=1e-5)


@pytest.mark.parametrize("count", [2, 4, 16])
def test_fair_crps_does_not_reward_ensemble_size(count: int) -> None:
    rng = np.random.default_rng(7)
    members, truth = rng.standard_normal((count, 200_000)), rng.standard_normal(200_000)
    # E|x - y| - E|x - x'| / 2 of one unit Gaussian is 2 / sqrt(pi) - 1 / sqrt(pi).
    assert skill.fair_crps(members, truth).mean() == pytest.approx(np.pi**-0.5, rel=0.01)


def test_fair_crps_keeps_missing_cells_missing() -> None:
    members, truth = np.ones((3, 2)), np.array([np.nan, 1.0])
    assert np.isnan(skill.fair_crps(members, truth)).tolist() == [True, False]


@pytest.mark.parametrize("count", [2, 5, 20])
def test_a_reliable_ensemble_has_spread_skill_one_and_flat_ranks(count: int) -> None:
    rng = np.random.default_rng(3)
    signal = rng.standard_normal((SIZE, SIZE))
    tiles = []
    for _ in range(12):
        members = signal + rng.standard_normal((count, SIZE, SIZE))
        truth = truth_of((signal + rng.standard_normal((SIZE, SIZE))).astype(np.float32))
        tiles.append(scores.score_ensemble_tile(members, truth, rng))
    m = scores.pool_ensemble(scores.stack(tiles))
    assert m.spread_skill == pytest.approx(1, rel=0.015)
    assert m.fair_crps_mm_h == pytest.approx(np.pi**-0.5, rel=0.01)
    shares = np.array(m.rank_histogram) / sum(m.rank_histogram)
    assert shares * (count + 1) == pytest.approx(1, abs=0.06)


def test_a_narrow_ensemble_shows() -> None:
    rng = np.random.default_rng(3)
    truth = truth_of(rng.standard_normal((SIZE, SIZE)).astype(np.float32))
    members = 0.5 * rng.standard_normal((8, SIZE, SIZE))
    m = scores.pool_ensemble(scores.stack([scores.score_ensemble_tile(members, truth, rng)]))
    assert m.spread_skill == pytest.approx(0.5 * np.sqrt((9 / 8) / (1 + 0.25 / 8)), rel=0.05)


def test_ranks_are_drawn_among_ties_and_cells_where_all_agree_do_not_count() -> None:
    rng = np.random.default_rng(0)
    members, truth = np.zeros((3, 80_000)), np.zeros(80_000)
    members[2, :40_000] = 1  # dry truth, two dry members of three; then dry cells alone
    counts = metrics.rank_counts(members, truth, rng)
    assert counts.sum() == 40_000 and counts[3] == 0
    assert counts[:3] / 40_000 == pytest.approx(1 / 3, abs=0.02)


def test_dry_ground_does_not_hide_that_members_are_too_alike() -> None:
    rng = np.random.default_rng(0)
    members, truth = 0.3 * rng.standard_normal((4, 4000)), rng.standard_normal(4000)
    dry = np.zeros((4, 40_000))
    both = metrics.rank_counts(np.hstack((members, dry)), np.append(truth, dry[0]), rng)
    assert both.tolist() == metrics.rank_counts(members, truth, rng).tolist()
    assert both[[0, -1]].sum() > 0.6 * both.sum()


def test_a_window_shows_what_the_steps_at_the_edges_hide() -> None:
    """A ramp is no rain: all its power between 2 and 32 cells is the step where it begins again."""
    rng = np.random.default_rng(2)
    ramp = np.linspace(0, 12, 64)[:, None] + np.zeros((64, 64))
    detail = rng.standard_normal((64, 64))
    smooth, truth = 0.5 * detail, detail
    for around in (0 * ramp, ramp):
        spectra = [skill.radial_spectrum(skill.windowed(f + around)) for f in (smooth, truth)]
        assert skill.band_ratio_db(*spectra)[:3] == pytest.approx(-6.02, abs=0.6)
    plain = skill.band_ratio_db(*(skill.radial_spectrum(f + ramp) for f in (smooth, truth)))
    assert plain[2] > -3


def test_a_window_keeps_the_level_of_white_noise_and_forgets_the_mean() -> None:
    rng = np.random.default_rng(1)
    fields = [2 * rng.standard_normal((64, 64)) + 7 for _ in range(200)]
    spectra = [skill.radial_spectrum(skill.windowed(field)) for field in fields]
    assert np.mean(spectra, axis=0)[4:] == pytest.approx(4, rel=0.1)
    assert skill.windowed(np.full((8, 8), 3.0)) == pytest.approx(0)


def test_white_noise_has_a_flat_spectrum_at_its_variance() -> None:
    rng = np.random.default_rng(1)
    spectra = [skill.radial_spectrum(2 * rng.standard_normal((64, 64))) for _ in range(400)]
    mean = np.mean(spectra, axis=0)
    assert mean.shape == (33,)
    assert mean[1:] == pytest.approx(4, rel=0.12)
    assert mean[8:] == pytest.approx(4, rel=0.05)


def test_a_wave_stands_at_its_own_wavenumber() -> None:
    wave = np.cos(2 * np.pi * np.arange(SIZE) / 12)[None].repeat(SIZE, axis=0)
    spectrum = skill.radial_spectrum(wave)
    assert spectrum.argmax() == SIZE // 12
    assert spectrum[SIZE // 12] > 1e20 * np.delete(spectrum, SIZE // 12).max()


def test_twice_the_amplitude_is_six_decibels_in_every_band() -> None:
    field = rain(2)
    ratio = skill.band_ratio_db(skill.radial_spectrum(2 * field), skill.radial_spectrum(field))
    assert ratio == pytest.approx(20 * np.log10(2), abs=1e-9)


def test_a_band_sees_its_own_wavelengths_only() -> None:
    truth = np.ones(SIZE // 2 + 1)
    forecast = truth.copy()
    forecast[SIZE // 8 + 1 : SIZE // 4 + 1] = 10  # wavelengths from 4 up to, not with, 8 km
    assert skill.band_ratio_db(forecast, truth) == pytest.approx([0, 10, 0, 0])
    edge = truth.copy()
    edge[SIZE // 4] = 10  # 4 km itself: one of the 12 wavenumbers of 4-8 km, none of 2-4 km
    assert skill.band_ratio_db(edge, truth) == pytest.approx([0, 10 / 12, 0, 0])


def test_a_dry_forecast_keeps_the_spectrum_finite() -> None:
    m = pooled([np.zeros((SIZE, SIZE), np.float32)], [truth_of(rain(0))])
    assert all(np.isfinite(value) and value < -20 for value in m.spectrum_db.values())
    assert m.csi["0.1"] == m.bias["0.1"] == 0


def test_cells_that_do_not_count_change_nothing() -> None:
    rng = np.random.default_rng(5)
    valid = rng.random((SIZE, SIZE)) > 0.01
    rate, forecast = rain(0), rain(1)
    members = np.stack([rain(seed) for seed in (1, 2, 3)])
    spoiled_rate = np.where(valid, rate, np.float32(np.nan))
    clean, spoiled = truth_of(rate, valid), TruthTile(
        spoiled_rate, valid, truth_of(rate).coarse_mm_h, (0, 0), FACTOR
    )  # fmt: skip
    for garbage in (np.nan, 1e6):
        other = np.where(valid, forecast, np.float32(garbage))
        assert repr(pooled([other], [spoiled])) == repr(pooled([forecast], [clean]))
        others = np.where(valid, members, garbage)
        scored = [
            scores.score_ensemble_tile(m, t, np.random.default_rng(0))
            for m, t in ((members, clean), (others, spoiled))
        ]
        found = [repr(scores.pool_ensemble(scores.stack([one]))) for one in scored]  # NaN is NaN
        assert found[0] == found[1]
    tile = scores.score_tile(forecast, clean)
    assert tile.cells == valid.sum()
    assert tile.absolute_error == pytest.approx(np.abs(forecast - rate)[valid].sum(dtype=float))


def test_consistency_measures_block_means_and_skips_blocks_with_missing_cells() -> None:
    rate = rain(4)
    truth = truth_of(rate)
    spread_out = np.zeros_like(rate)
    spread_out[:90, :90] = np.kron(truth.coarse_mm_h, np.ones((FACTOR, FACTOR)))
    assert truth.block_gaps(spread_out) == pytest.approx(np.zeros(81), abs=1e-5)
    spread_out[30:40, 50:60] += 2
    assert truth.block_gaps(spread_out).max() == pytest.approx(2, abs=1e-5)
    valid = np.ones(rate.shape, bool)
    valid[35, 55] = False
    gaps = truth_of(rate, valid).block_gaps(spread_out)
    assert gaps.size == 80 and gaps.max() < 1e-5


def test_percentiles_of_a_ramp() -> None:
    assert metrics.percentiles(np.linspace(0, 100, 1001)) == pytest.approx([95, 99, 99.9])


def test_a_bootstrap_draw_takes_tiles_again() -> None:
    truths = [truth_of(rain(seed)) for seed in range(3)]
    tiles = scores.stack([scores.score_tile(rain(9), truth) for truth in truths])
    draw = scores.pool(scores.take(tiles, np.array([2, 2, 0])), np.zeros(3))
    again = pooled([rain(9)] * 3, [truths[2], truths[2], truths[0]])
    assert repr(draw) == repr(again)  # == would fail on scores that are NaN
