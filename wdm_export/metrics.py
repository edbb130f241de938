"""Verification metrics over arrays, each defined once.

Arrays are (y, x) [mm h-1]; members come first, (member, y, x). ``valid`` masks the cells that
count. One cell of the 1 km grid is called 1 km wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

from wdm_export.texture import checkerboard_db
from wdm_runtime.skill import LEAST_POWER, Array, Float64, radial_spectrum, scaled_z, windowed

Mask = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

THRESHOLDS_MM_H = (0.1, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
FSS_SCALES_KM = (1, 3, 9, 17, 33)
PERCENTILES = (95.0, 99.0, 99.9)
AVERAGED_KM = (4, 8, 12)


def psnr_db(forecast: Array, truth: Array, valid: Mask) -> float:
    """Peak signal-to-noise ratio of two fields of data range 1 over the valid cells, dB."""
    error = forecast[valid].astype(np.float64) - truth[valid]
    with np.errstate(divide="ignore"):
        return float(-10 * np.log10(np.mean(error * error)))


def ssim(forecast: Array, truth: Array) -> float:
    """Structural similarity of two fields (y, x) of data range 1.

    Wang et al. 2004, doi 10.1109/TIP.2003.819861: Gaussian weights of sigma 1.5 in 11 x 11
    windows, K1 = 0.01, K2 = 0.03, population covariance, mean over the whole windows.
    """
    score = structural_similarity(
        truth,
        forecast,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
    )
    return float(score)


def contingency(
    forecast: Array,
    truth: Array,
    valid: Mask,
    thresholds_mm_h: Sequence[float] = THRESHOLDS_MM_H,
) -> Int64:
    """Hits, misses and false alarms of rate >= threshold on the valid cells, (thresholds, 3)."""
    counts = np.empty((len(thresholds_mm_h), 3), dtype=np.int64)
    for i, threshold in enumerate(thresholds_mm_h):
        observed = (truth >= threshold) & valid
        predicted = (forecast >= threshold) & valid
        hits = np.count_nonzero(observed & predicted)
        counts[i] = hits, np.count_nonzero(observed) - hits, np.count_nonzero(predicted) - hits
    return counts


def _window_shares(events: Mask, width: int) -> Float64:
    """Share of events in every width x width window that lies wholly inside the array."""
    total = np.zeros((events.shape[0] + 1, events.shape[1] + 1), dtype=np.int32)
    total[1:, 1:] = events.cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
    columns = total[:, width:] - total[:, :-width]
    return np.asarray((columns[width:] - columns[:-width]) / np.float64(width**2))


def fss_sums(
    forecast: Array,
    truth: Array,
    valid: Mask,
    thresholds_mm_h: Sequence[float] = THRESHOLDS_MM_H,
    scales: Sequence[int] = FSS_SCALES_KM,
) -> Float64:
    """Sums whose pooled quotient is the fractions skill score, 1 - first / second.

    Roberts and Lean 2008, doi 10.1175/2007MWR2123.1. Only windows wholly inside the tile count;
    a missing cell is no event in either field.

    Returns
    -------
    (thresholds, scales, 2): sum of (Pf - Po)^2 and sum of Pf^2 + Po^2 over the windows.
    """
    sums = np.zeros((len(thresholds_mm_h), len(scales), 2))
    for i, threshold in enumerate(thresholds_mm_h):
        observed, predicted = (truth >= threshold) & valid, (forecast >= threshold) & valid
        if not (observed.any() or predicted.any()):
            continue
        for j, scale in enumerate(scales):
            po, pf = _window_shares(observed, scale), _window_shares(predicted, scale)
            sums[i, j] = np.sum((pf - po) ** 2), np.sum(pf * pf) + np.sum(po * po)
    return sums


def spectral_distance_db(forecast: Float64, truth: Float64) -> float:
    """Log spectral distance: root mean square ratio of two radial spectra in dB, k from 1 up."""
    f, t = (np.maximum(spectrum[1:], LEAST_POWER) for spectrum in (forecast, truth))
    return float(np.sqrt(np.mean((10 * np.log10(f / t)) ** 2)))


def rank_counts(members: Array, truth: Array, rng: np.random.Generator) -> Int64:
    """How often the truth had each rank among the members, ties broken at random.

    Cells in which all members are the truth, mostly dry ones, say nothing and do not count: at
    random they would be on all ranks alike, and hide a histogram's shape.

    Parameters
    ----------
    members
        (member, cells); ``truth`` (cells,). No missing values.

    Returns
    -------
    (member + 1,) counts. A reliable ensemble gives a flat histogram.
    """
    ties = (members == truth).sum(axis=0)
    differing = ties < members.shape[0]
    below, ties = (members[:, differing] < truth[differing]).sum(axis=0), ties[differing]
    return np.bincount(rng.integers(below, ties + below + 1), minlength=members.shape[0] + 1)


def averaged(rate_mm_h: Array, valid: Mask, width: int) -> Array:
    """Means of blocks of width x width cells from the first one, (..., rows, columns).

    Blocks that end beyond the array are left out; NaN where a cell does not count.
    """
    rows, columns = (n // width for n in valid.shape)
    cut = np.where(valid, rate_mm_h, np.nan)[..., : rows * width, : columns * width]
    blocks = cut.reshape(*cut.shape[:-2], rows, width, columns, width)
    return np.asarray(blocks.mean(axis=(-3, -1), dtype=np.float64))


def percentiles(values: Array) -> Float64:
    """The `PERCENTILES` of pooled values [mm h-1], dry cells included."""
    return np.asarray(np.percentile(values, PERCENTILES), dtype=np.float64)


@dataclass(frozen=True)
class TruthTile:
    """A tile of truth with the input below it.

    Parameters
    ----------
    rate_mm_h, valid
        (size, size) truth [mm h-1], and the cells that count.
    coarse_mm_h
        (rows, columns) input of the blocks that lie wholly inside the tile [mm h-1].
    first
        Row and column in the tile of the first such block's first cell.
    """

    rate_mm_h: Array
    valid: Mask
    coarse_mm_h: Array
    first: tuple[int, int]
    factor: int

    def filled(self, rate_mm_h: Array) -> Array:
        """Rates with 0 in the cells that do not count, as SSIM and spectra need them."""
        return np.where(self.valid, rate_mm_h, np.float32(0))

    @cached_property
    def z(self) -> npt.NDArray[np.float32]:
        """z / 3.176 of the filled truth."""
        return scaled_z(self.filled(self.rate_mm_h))

    @cached_property
    def spectrum(self) -> Float64:
        """Radial spectrum of `z`."""
        return radial_spectrum(self.z)

    @cached_property
    def windowed_spectrum(self) -> Float64:
        """The same behind a Hann window."""
        return radial_spectrum(windowed(self.z))

    @cached_property
    def checkerboard_db(self) -> float:
        """Of `z`."""
        return checkerboard_db(self.z)

    @cached_property
    def input_mm_h(self) -> Array:
        """The coarse input over each fine cell (size, size), NaN beyond the whole blocks."""
        (top, left), (rows, columns) = self.first, self.coarse_mm_h.shape
        fine = np.full(self.valid.shape, np.nan)
        spread = self.coarse_mm_h.repeat(self.factor, axis=0).repeat(self.factor, axis=1)
        fine[top : top + rows * self.factor, left : left + columns * self.factor] = spread
        return fine

    def block_gaps(self, rate_mm_h: Array) -> Float64:
        """|block mean - coarse input| [mm h-1] of the whole blocks without a missing cell."""
        (top, left), (rows, columns) = self.first, self.coarse_mm_h.shape
        window = np.where(self.valid, rate_mm_h, np.nan)[
            top : top + rows * self.factor, left : left + columns * self.factor
        ]
        blocks = window.reshape(rows, self.factor, columns, self.factor)
        gaps = np.abs(blocks.mean(axis=(1, 3), dtype=np.float64) - self.coarse_mm_h)
        return np.asarray(gaps[np.isfinite(gaps)])
