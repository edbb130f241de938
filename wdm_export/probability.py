"""Verification of ensembles as probabilities: tails, reliability, spread against error.

Members are (member, cells) [mm h-1] without missing values, truth (cells,). Every function gives
sums that are pooled over tiles by adding them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wdm_export.metrics import THRESHOLDS_MM_H
from wdm_runtime.skill import Array, Float64, fair_crps

# Members' standard deviation [mm h-1]; the first class holds all below, the last all above.
SPREAD_EDGES_MM_H = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def tail_crps_sums(
    members: Array, truth: Array, thresholds_mm_h: Sequence[float] = THRESHOLDS_MM_H
) -> Float64:
    """Sums of the fair threshold-weighted CRPS, (thresholds,) [mm h-1].

    The fair CRPS of max(rate, threshold): only what happens above counts. Chaining function of
    Allen et al. 2023, doi 10.1137/22M1532184.
    """
    largest = np.maximum(members.max(axis=0), truth)
    sums = np.zeros(len(thresholds_mm_h))
    for i, threshold in enumerate(thresholds_mm_h):
        above = largest > threshold  # elsewhere every rate becomes the threshold
        inside = np.maximum(members[:, above], threshold)
        sums[i] = fair_crps(inside, np.maximum(truth[above], threshold)).sum()
    return sums


def reliability_counts(
    members: Array, truth: Array, thresholds_mm_h: Sequence[float] = THRESHOLDS_MM_H
) -> npt.NDArray[np.int64]:
    """Cells by the number of members at or above a threshold, and the events among them.

    Returns
    -------
    (thresholds, member + 1, 2): cells that k = 0 .. member members call an event, and how many of
    them are one. Forecast probability k / member, observed frequency the quotient.
    """
    bins = members.shape[0] + 1
    counts = np.empty((len(thresholds_mm_h), bins, 2), dtype=np.int64)
    for i, threshold in enumerate(thresholds_mm_h):
        voices = (members >= threshold).sum(axis=0)
        counts[i, :, 0] = np.bincount(voices, minlength=bins)
        counts[i, :, 1] = np.bincount(voices[truth >= threshold], minlength=bins)
    return counts


def brier(counts: npt.NDArray[np.int64]) -> Float64:
    """Brier scores, mean (probability - event)^2, of `reliability_counts`: (thresholds,)."""
    cells, events = counts[..., 0].astype(np.float64), counts[..., 1].astype(np.float64)
    chance = np.arange(counts.shape[1]) / (counts.shape[1] - 1)
    squares = cells * chance**2 - 2 * chance * events + events
    return np.asarray(squares.sum(axis=1) / cells.sum(axis=1))


def spread_sums(
    variance: Float64, squared_error: Float64, edges_mm_h: Sequence[float] = SPREAD_EDGES_MM_H
) -> Float64:
    """Cells, members' variance and squared error of their mean by classes of spread.

    Parameters
    ----------
    variance, squared_error
        (cells,) sample variance of the members and squared error of their mean [mm2 h-2].

    Returns
    -------
    (edges + 1, 3): sums of 1, variance and squared error.
    """
    # A spread of 0 stands for itself: dry cells would drown the first class.
    known = variance > 0
    number = np.digitize(np.sqrt(variance[known]), edges_mm_h)
    columns = (None, variance[known], squared_error[known])
    return np.stack(
        [np.bincount(number, weights, len(edges_mm_h) + 1) for weights in columns], axis=1
    )
