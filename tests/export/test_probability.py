"""Tails, reliability and spread against their mathematics, and against other packages."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import xarray as xr
from scores.probability import tail_tw_crps_for_ensemble

from wdm_export import metrics, probability
from wdm_export.intensity import (
    fine_histogram,
    histogram_percentiles,
    intensity_distance_db,
    intensity_histogram,
)
from wdm_runtime import skill


def rain(seed: int, *shape: int) -> np.ndarray:
    rate = np.random.default_rng(seed).gamma(0.3, 8, shape).astype(np.float32)
    rate[rate < 0.1] = 0
    return rate


def pysteps_module(name: str):
    with contextlib.redirect_stdout(io.StringIO()):
        return pytest.importorskip(name)


@pytest.mark.parametrize("count", [2, 5])
def test_tail_crps_agrees_with_scores(count: int) -> None:
    members, truth = rain(0, count, 400), rain(1, 400)
    found = probability.tail_crps_sums(members, truth, (0.1, 5.0, 20.0))
    for value, threshold in zip(found, (0.1, 5.0, 20.0), strict=True):
        expected = tail_tw_crps_for_ensemble(
            xr.DataArray(members.astype(float), dims=("member", "cell")),
            xr.DataArray(truth.astype(float), dims="cell"),
            ensemble_member_dim="member",
            threshold=threshold,
            tail="upper",
            method="fair",
            preserve_dims="all",
        )
        assert value == pytest.approx(float(expected.sum()), rel=1e-5)


def test_the_tail_above_nothing_is_the_crps_and_above_all_is_zero() -> None:
    members, truth = rain(0, 4, 300), rain(1, 300)
    tails = probability.tail_crps_sums(members, truth, (0.0, 1e4))
    assert tails[0] == pytest.approx(skill.fair_crps(members, truth).sum(), rel=1e-6)
    assert tails[1] == 0


def test_reliability_of_a_table_made_by_hand() -> None:
    members = np.array([[0, 5, 5, 1], [0, 5, 1, 5]], np.float32)
    truth = np.array([0, 5, 9, 0], np.float32)
    (counts,) = probability.reliability_counts(members, truth, (5.0,))
    assert counts.tolist() == [[1, 0], [2, 1], [1, 1]]
    # Squares 0, (1/2)^2, (1/2)^2 and 0 over four cells.
    assert probability.brier(counts[None]) == pytest.approx([0.125])


def test_a_reliable_ensemble_is_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    centre = rng.normal(4, 2, 400_000)
    members = centre + rng.standard_normal((9, centre.size))
    truth = centre + rng.standard_normal(centre.size)
    (counts,) = probability.reliability_counts(members, truth, (5.0,))
    frequency, chance = counts[:, 1] / counts[:, 0], np.arange(10) / 9
    # Few members leave a slope below 1 even if they are drawn as the truth is.
    assert np.polyfit(chance, frequency, 1)[0] == pytest.approx(0.9, abs=0.08)
    assert (np.diff(frequency) > 0).all()
    direct = np.mean(((members >= 5).mean(axis=0) - (truth >= 5)) ** 2)
    assert probability.brier(counts[None])[0] == pytest.approx(direct)


def test_reliability_agrees_with_pysteps() -> None:
    scores = pysteps_module("pysteps.verification.probscores")
    members, truth = rain(2, 4, 5000), rain(3, 5000)
    (counts,) = probability.reliability_counts(members, truth, (1.0,))
    diagram = scores.reldiag_init(1.0, n_bins=5)
    scores.reldiag_accum(diagram, (members >= 1).mean(axis=0), truth)
    assert diagram["num_idx"].tolist() == counts[:, 0].tolist()
    expected = scores.reldiag_compute(diagram)[1]
    assert counts[:, 1] / counts[:, 0] == pytest.approx(expected)


def test_ranks_agree_with_pysteps() -> None:
    scores = pysteps_module("pysteps.verification.ensscores")
    rng = np.random.default_rng(5)
    members, truth = rng.standard_normal((4, 3000)), rng.standard_normal(3000)
    theirs = scores.rankhist_init(4)
    scores.rankhist_accum(theirs, members, truth)
    assert metrics.rank_counts(members, truth, rng).tolist() == list(theirs["n"])


def test_the_spectrum_agrees_with_pysteps() -> None:
    spectral = pysteps_module("pysteps.utils.spectral")
    field = np.random.default_rng(1).standard_normal((48, 48)).cumsum(axis=0)
    expected = spectral.rapsd(field, fft_method=np.fft)
    assert skill.radial_spectrum(field)[: len(expected)] == pytest.approx(expected)


def test_spread_classes_hold_every_cell_with_spread_once() -> None:
    variance = np.array([0.0, 1e-6, 0.04, 0.04, 400.0])
    error = np.array([9.0, 1.0, 2.0, 3.0, 4.0])
    sums = probability.spread_sums(variance, error, (0.01, 0.1, 1.0))
    assert sums[:, 0].tolist() == [1, 0, 2, 1]
    assert sums[:, 1] == pytest.approx([1e-6, 0, 0.08, 400])
    assert sums[:, 2] == pytest.approx([1, 0, 5, 4])


def test_percentiles_of_a_histogram_are_within_two_percent() -> None:
    values = rain(7, 300_000)
    found = histogram_percentiles(fine_histogram(values))
    assert found == pytest.approx(metrics.percentiles(values), rel=0.005)
    assert histogram_percentiles(fine_histogram(np.zeros(10))).tolist() == [0, 0, 0]
    parts = fine_histogram(values[:1000]) + fine_histogram(values[1000:])
    assert parts.tolist() == fine_histogram(values).tolist()


def test_intensity_distance_of_twice_the_cells_is_three_decibels() -> None:
    truth = intensity_histogram(rain(1, 20_000))
    assert intensity_distance_db(truth, truth) == 0
    assert intensity_distance_db(2 * truth, truth) == pytest.approx(10 * np.log10(2))
    assert intensity_distance_db(0 * truth, truth) > 10
    assert np.isnan(intensity_distance_db(truth, 0 * truth))


def test_a_handful_of_cells_does_not_rule_the_intensity_distance() -> None:
    truth = np.full(20, 1000)
    truth[-1] = 2
    forecast = truth.copy()
    forecast[-1] = 40
    assert intensity_distance_db(forecast, truth) == 0
    forecast[0] = 2000
    assert intensity_distance_db(forecast, truth) == pytest.approx(10 * np.log10(2) / np.sqrt(19))


def test_block_means_leave_out_what_does_not_count() -> None:
    rate = np.arange(100.0).reshape(10, 10)
    valid = np.ones((10, 10), bool)
    valid[0, 0] = False
    means = metrics.averaged(np.stack((rate, 2 * rate)), valid, 4)
    assert means.shape == (2, 2, 2)
    assert np.isnan(means[0, 0, 0]) and means[0, 1, 1] == rate[4:8, 4:8].mean()
    assert means[1, 0, 1] == 2 * means[0, 0, 1]


def test_the_spectral_distance_sees_every_wavenumber() -> None:
    truth = np.ones(49)
    forecast = truth.copy()
    forecast[1:25] = 10
    assert metrics.spectral_distance_db(forecast, truth) == pytest.approx(10 * np.sqrt(0.5))
    forecast[0] = 1e9  # the mean is no shape
    assert metrics.spectral_distance_db(forecast, truth) == pytest.approx(10 * np.sqrt(0.5))


def test_steps_of_a_tenth_leave_no_class_of_intensity_empty() -> None:
    """A radar's rounding to 0.1 mm/h is hardly a distance."""
    rate = np.random.default_rng(3).exponential(8, 400_000)
    exact, rounded = map(intensity_histogram, (rate, np.round(rate, 1)))
    assert rounded.min() > 0 and intensity_distance_db(exact, rounded) < 1
