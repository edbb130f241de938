"""Coarse consistency: block means of a fine field that equal the coarse input.

Only the valid cells of a block count, for its mean as for its correction. Arrays are (y, x)
[mm h-1]; NaN is missing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wdm_runtime.block_scaling import scale_and_fill, scale_smoothly, to_correct
from wdm_runtime.blocks import (
    Array,
    Float64,
    bands,
    block_means,
    blocks_of,
    check_shapes,
    fine_rows,
    means_in_bands,
)
from wdm_runtime.errors import InputError
from wdm_runtime.faint_rain import gather_faint_rain

MODES = ("none", "additive", "multiplicative")
DEFAULT_CONSISTENCY = "multiplicative"


def check_mode(mode: str) -> None:
    """Refuse what is no mode.

    Raises
    ------
    InputError
    """
    if mode not in MODES:
        raise InputError(
            f"--consistency got '{mode}'; expected one of {', '.join(MODES)}. Correct it."
        )


# `suspect` tells of members that are not finite, or nearly, not warnings of their arithmetic.
@np.errstate(over="ignore", invalid="ignore")
def make_consistent(
    rate_mm_h: npt.NDArray[np.floating],
    coarse_mm_h: npt.NDArray[np.floating],
    interpolated_mm_h: npt.NDArray[np.floating],
    factor: int,
    mode: str = DEFAULT_CONSISTENCY,
    dry_threshold_mm_h: float = 0.0,
) -> Array:
    """Correct a fine field so that the means of its blocks are the coarse input.

    ``"none"`` only sets rates below ``dry_threshold_mm_h`` to 0, which ``"additive"`` does first.

    ``"additive"`` takes the closest field (least squares) without negative rain: each block is
    shifted by one amount and clipped at 0 (Held, Wolfe and Crowder 1974,
    doi 10.1007/BF01580223; Duchi et al. 2008, doi 10.1145/1390156.1390191). Where rain is to be
    added, dry cells get their share too.

    ``"multiplicative"`` scales each block, so dry cells stay dry: first by factors interpolated
    between blocks, which leaves fewer steps at their borders, then by what is left to do. A block's
    mean grows by at most `MAX_SCALING` so: what is then still wanting is added in the shape of the
    interpolated field, or evenly where that is dry. A dry member below a wet input is thereby the
    interpolated field, scaled. Last, in a block with rain below ``dry_threshold_mm_h`` as many of
    the largest rates as then all reach it hold the block's rain, one where even that cannot, at the
    wet cells with most rain around. So a field should come with its faint rain: that is where a
    block that has too little gets more.

    Parameters
    ----------
    rate_mm_h
        (y * factor, x * factor) [mm h-1], not negative, NaN where missing.
    coarse_mm_h
        (y, x) the input [mm h-1], NaN where missing.
    interpolated_mm_h
        As ``rate_mm_h``: the input on the fine grid, NaN where missing.
    factor
        Fine cells per coarse cell along one axis.
    mode
        One of `MODES`.
    dry_threshold_mm_h
        [mm h-1] the least rate that counts as rain.

    Returns
    -------
    (y * factor, x * factor) [mm h-1], float32, not negative, NaN exactly where ``rate_mm_h`` is.
    The means of valid cells equal the input within 1e-4 mm/h up to 300 mm/h, and blocks below a
    dry input are exactly 0. Blocks with a missing input only lose their faint rain.

    Raises
    ------
    InputError
        Unknown mode, or shapes that do not belong together.
    """
    check_mode(mode)
    check_shapes(rate_mm_h, coarse_mm_h, factor)
    check_shapes(interpolated_mm_h, coarse_mm_h, factor)
    out = np.array(rate_mm_h, dtype=np.float32, order="C")
    if mode != "multiplicative":
        out[out < dry_threshold_mm_h] = 0
    if mode == "none":
        return out
    drawn = np.empty(0)
    if mode == "multiplicative":
        drawn = means_in_bands(out, coarse_mm_h.shape, factor)
        scale_smoothly(out, drawn, coarse_mm_h, factor)
    for band in bands(coarse_mm_h.shape, factor):
        mean, wanted = block_means(fine_rows(out, band, factor), factor), coarse_mm_h[band]
        wrong = to_correct(mean, wanted)
        if not wrong.any():
            continue
        blocks = blocks_of(fine_rows(out, band, factor), factor)
        cells = blocks[wrong].reshape(-1, factor * factor)
        targets = wanted[wrong].astype(np.float64)
        if mode == "additive":
            corrected = _project(cells, targets)
        else:
            shape = blocks_of(fine_rows(interpolated_mm_h, band, factor), factor)[wrong]
            shape = shape.reshape(cells.shape)
            corrected = scale_and_fill(cells, mean[wrong], drawn[band][wrong], targets, shape)
        blocks[wrong] = corrected.reshape(-1, factor, factor)
    if mode == "multiplicative" and dry_threshold_mm_h > 0:
        gather_faint_rain(out, coarse_mm_h, factor, dry_threshold_mm_h)
    return out


def _project(cells: npt.NDArray[np.floating], targets: Float64) -> Float64:
    """The closest points of {y >= 0, mean y = target} to the valid cells of each block.

    They are max(x - t, 0), with the one t that gives the mean. With k cells left positive, t is
    (sum of the k largest - n target) / k, and k is the largest for which the k-th exceeds its t.

    Parameters
    ----------
    cells
        (block, cell) [mm h-1], NaN where missing.
    targets
        (block,) [mm h-1].
    """
    valid = ~np.isnan(cells)
    total = targets * valid.sum(axis=1)
    # Missing cells go last, as the smallest, and are left out by their place.
    largest = -np.sort(np.where(valid, -cells, np.inf), axis=1).astype(np.float64)
    kept = np.arange(1, cells.shape[1] + 1)
    inside = kept <= valid.sum(axis=1)[:, None]
    largest[~inside] = 0
    sums = largest.cumsum(axis=1)
    positive = inside & (kept * largest - sums + total[:, None] > 0)
    # Where the target is 0 none is positive, and the largest becomes the threshold.
    count = np.maximum(positive.sum(axis=1), 1)
    threshold = (np.take_along_axis(sums, count[:, None] - 1, axis=1)[:, 0] - total) / count
    closest: Float64 = np.maximum(cells - threshold[:, None], 0)  # keeps NaN
    return closest


def block_residual(
    rate_mm_h: npt.NDArray[np.floating], coarse_mm_h: npt.NDArray[np.floating], factor: int
) -> tuple[float, float]:
    """How far block means are from the input.

    Parameters
    ----------
    rate_mm_h
        (y * factor, x * factor) [mm h-1], NaN where missing.
    coarse_mm_h
        (y, x) [mm h-1], NaN where missing.

    Returns
    -------
    Mean and largest |mean of valid cells - input| [mm h-1], over blocks that have both; NaN if
    there are none.

    Raises
    ------
    InputError
        Shapes that do not belong together.
    """
    check_shapes(rate_mm_h, coarse_mm_h, factor)
    gaps = np.abs(means_in_bands(rate_mm_h, coarse_mm_h.shape, factor) - coarse_mm_h)
    gaps = gaps[np.isfinite(gaps)]
    return (float(gaps.mean()), float(gaps.max())) if gaps.size else (np.nan, np.nan)


def wet_fraction(rate_mm_h: npt.NDArray[np.floating], threshold_mm_h: float) -> float:
    """Share of valid cells at or above a rate [mm h-1], 0 to 1; NaN if none is valid."""
    valid = rate_mm_h.size - np.count_nonzero(np.isnan(rate_mm_h))
    # In the field's own precision: 0.7 as float32 is not below 0.7.
    wet = np.count_nonzero(rate_mm_h >= rate_mm_h.dtype.type(threshold_mm_h))
    return wet / valid if valid else np.nan
