"""Scaling blocks of a fine field to the coarse input's means, with few steps at their borders.

Arrays are (y, x) [mm h-1]; NaN is missing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from wdm_runtime.blocks import (
    Array,
    Float64,
    Mask,
    bands,
    blocks_of,
    fine_rows,
    means_in_bands,
    whole_means,
)
from wdm_runtime.grid import CUBIC_REACH, interpolate

# Blocks this close are left alone, so that a consistent field comes back bit for bit. A float32
# result is off by less than 2e-5 mm/h at 300 mm/h: both together stay within 1e-4.
TOLERANCE_MM_H = 5e-5
# Beyond a tenfold, a member's rain hardly says where the block's rain was: one cell of 0.1 mm/h
# would become 500 mm/h to give a mean of 5. CRPS hardly depends on it.
MAX_SCALING = 10.0
# Adding to both means keeps factors between faint ones near 1. On a training day of showers two
# smooth scalings lowered the CRPS by 0.9 % and speckle in heavy rain from 2.0 times the truth's to
# 1.7 (benches/consistency.py); on one of drizzle they changed next to nothing.
_SMOOTH_SCALINGS = 2
_LEAST_MEAN_MM_H = 0.05


def to_correct(mean: Float64, wanted: npt.NDArray[np.floating]) -> Mask:
    """Blocks to correct: not where mean or input are missing, as comparisons with NaN are false."""
    wrong: Mask = np.where(wanted > 0, np.abs(mean - wanted) > TOLERANCE_MM_H, mean > 0)
    wrong &= np.isfinite(wanted)
    return wrong


def scale_smoothly(
    field: Array, mean: Float64, coarse_mm_h: npt.NDArray[np.floating], factor: int
) -> None:
    """Scale the cells of blocks to correct, in place, by factors interpolated between all blocks.

    It is their logarithms that are interpolated. Means are brought nearer to the input, not to it.
    Blocks without an input, or with missing cells, say nothing of their own: a field ends with the
    factors that it has there.

    Parameters
    ----------
    field
        (y * factor, x * factor) [mm h-1], C-contiguous, NaN where missing; changed.
    mean
        (y, x) the field's block means [mm h-1].
    coarse_mm_h
        (y, x) what they are to be [mm h-1], NaN where missing.
    factor
        Fine cells per coarse cell along one axis.
    """
    most, shape = np.log(MAX_SCALING), coarse_mm_h.shape
    views = [(band, fine_rows(field, band, factor)) for band in bands(shape, factor)]
    known = np.isfinite(np.concatenate([whole_means(rows, factor) for _, rows in views]))
    known &= np.isfinite(coarse_mm_h)
    wrong = to_correct(mean, coarse_mm_h)
    level = np.zeros(shape)
    for turn in range(_SMOOTH_SCALINGS):
        if turn:
            mean = means_in_bands(field, shape, factor)
        ratio = (coarse_mm_h[wrong] + _LEAST_MEAN_MM_H) / (mean[wrong] + _LEAST_MEAN_MM_H)
        further = np.log(np.maximum(ratio, MAX_SCALING**-2))  # 0 where a network failed
        change = np.zeros(shape)
        change[wrong] = np.clip(level[wrong] + further, -most, most) - level[wrong]
        change = _continued(change, known)
        level += change
        # What is interpolated has to be positive.
        shown = (change + 2 * most).astype(np.float32)
        for band, rows in views:
            if not wrong[band].any():
                continue
            first = max(0, band.start - CUBIC_REACH)
            fine = interpolate(shown[first : band.stop + CUBIC_REACH], factor)
            fine = fine[(band.start - first) * factor :][: len(rows)]
            factors = blocks_of(np.exp(fine - np.float32(2 * most)), factor)
            blocks = blocks_of(rows, factor)
            np.multiply(blocks, factors, out=blocks, where=wrong[band][:, :, None, None])


def _continued(values: Float64, known: Mask) -> Float64:
    """Unknown values as the mean of those near by.

    In two turns: beside known blocks there may be some with a few cells, which are interpolated
    from still farther ones.
    """
    reach = ((0, 0), *((CUBIC_REACH, CUBIC_REACH),) * 2)
    for _ in range(2):
        if known.all():
            break
        padded = np.pad(np.stack((np.where(known, values, 0), known)), reach)
        windows = sliding_window_view(padded, (2 * CUBIC_REACH + 1,) * 2, axis=(1, 2))
        sums, counts = windows.sum(axis=(3, 4))
        values = np.where(known, values, sums / np.maximum(counts, 1))
        known = known | (counts > 0)
    return values


def scale_and_fill(
    cells: npt.NDArray[np.floating],
    means: Float64,
    drawn: Float64,
    targets: Float64,
    shape: npt.NDArray[np.floating],
) -> Float64:
    """Blocks scaled to their targets, and filled up in another field's shape beyond a limit.

    The limit is of what a block had when it was drawn.

    Parameters
    ----------
    cells
        (block, cell) [mm h-1], NaN where missing.
    means, drawn, targets
        (block,) of the valid cells, of those before any scaling, and of the result [mm h-1].
    shape
        As ``cells``: the field to fill up with, of any scale.
    """
    scaled = np.minimum(targets, MAX_SCALING * drawn)
    scale = np.zeros(means.shape)
    np.divide(scaled, means, out=scale, where=means > 0)
    out: Float64 = cells * scale[:, None]
    short = scaled < targets
    if short.any():
        valid = ~np.isnan(cells[short])
        filling = np.where(valid, np.nan_to_num(shape[short].astype(np.float64)), 0)
        filling[filling.sum(axis=1) <= 0] = 1
        level = (filling * valid).sum(axis=1) / valid.sum(axis=1)
        missing = targets[short] - scaled[short]
        out[short] += filling * (missing / level)[:, None]
    return out
