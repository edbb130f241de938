"""Coarse consistency: block means of a fine field that equal the coarse input.

Coarse cell (i, j) covers the fine block of factor x factor cells below it. Only the valid cells of
a block count, for its mean as for its correction. Arrays are (y, x) [mm h-1]; NaN is missing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from wdm_runtime.errors import InputError
from wdm_runtime.grid import CUBIC_REACH, block_mean, interpolate

Array = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MODES = ("none", "additive", "multiplicative")
DEFAULT_CONSISTENCY = "multiplicative"
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
_BAND_CELLS = 1 << 19  # float64 copies of a band fit in the caches, or nearly
# Sums of 3 x 3 cells, one of the other, of the logarithms of rates say which cells of a block hold
# its faint rain. On a training day two sums left less speckle than one, wider ones cost CRPS.
_BOXES = 2
_GATHERED_CELLS = 1 << 15  # of faint blocks at a time, of which there are ten copies


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
    _check_shapes(rate_mm_h, coarse_mm_h, factor)
    _check_shapes(interpolated_mm_h, coarse_mm_h, factor)
    out = np.array(rate_mm_h, dtype=np.float32, order="C")
    if mode != "multiplicative":
        out[out < dry_threshold_mm_h] = 0
    if mode == "none":
        return out
    drawn = np.empty(0)
    if mode == "multiplicative":
        drawn = _means_in_bands(out, coarse_mm_h.shape, factor)
        _scale_smoothly(out, drawn, coarse_mm_h, factor)
    for band in _bands(coarse_mm_h.shape, factor):
        mean, wanted = _means(_rows(out, band, factor), factor), coarse_mm_h[band]
        wrong = _wrong(mean, wanted)
        if not wrong.any():
            continue
        blocks = _blocks(_rows(out, band, factor), factor)
        cells = blocks[wrong].reshape(-1, factor * factor)
        targets = wanted[wrong].astype(np.float64)
        if mode == "additive":
            corrected = _project(cells, targets)
        else:
            shape = _blocks(_rows(interpolated_mm_h, band, factor), factor)[wrong]
            shape = shape.reshape(cells.shape)
            corrected = _scale(cells, mean[wrong], drawn[band][wrong], targets, shape)
        blocks[wrong] = corrected.reshape(-1, factor, factor)
    if mode == "multiplicative" and dry_threshold_mm_h > 0:
        _gather(out, coarse_mm_h, factor, dry_threshold_mm_h)
    return out


def _check_shapes(
    fine: npt.NDArray[np.floating], coarse: npt.NDArray[np.floating], factor: int
) -> None:
    expected = tuple(n * factor for n in coarse.shape)
    if fine.shape != expected:
        raise InputError(
            f"The fine field has shape {fine.shape}; expected {expected}, {factor} times the "
            "coarse one's. Hand in fields of the same area."
        )


def _bands(shape: tuple[int, ...], factor: int) -> Iterator[slice]:
    """Coarse rows, so many at a time that their fine cells stay few."""
    rows = max(1, _BAND_CELLS // max(1, shape[1] * factor * factor))
    for first in range(0, shape[0], rows):
        yield slice(first, min(first + rows, shape[0]))


def _rows(fine: npt.NDArray[np.floating], band: slice, factor: int) -> npt.NDArray[np.floating]:
    """The fine rows of some coarse rows, a view."""
    return fine[band.start * factor : band.stop * factor]


def _blocks(fine: npt.NDArray[np.floating], factor: int) -> npt.NDArray[np.floating]:
    """(y, x, factor, factor), a view of a C-contiguous field's blocks."""
    rows, columns = (n // factor for n in fine.shape)
    blocks: npt.NDArray[np.floating] = fine.reshape(rows, factor, columns, factor).swapaxes(1, 2)
    return blocks


def _whole_means(fine: npt.NDArray[np.floating], factor: int) -> Float64:
    """Means of the blocks of which no cell is missing, NaN for the others."""
    rows, columns = (n // factor for n in fine.shape)
    sums = fine.reshape(rows, factor, columns * factor).sum(axis=1, dtype=np.float64)
    mean: Float64 = sums.reshape(rows, columns, factor).sum(axis=2) / factor**2
    return mean


def _means(fine: npt.NDArray[np.floating], factor: int) -> Float64:
    """`block_mean`, three times as fast where nothing is missing."""
    mean = _whole_means(fine, factor)
    return block_mean(fine, factor) if np.isnan(mean).any() else mean


def _means_in_bands(fine: npt.NDArray[np.floating], shape: tuple[int, ...], factor: int) -> Float64:
    """The means of all blocks, of few cells at a time."""
    return np.concatenate(
        [_means(_rows(fine, band, factor), factor) for band in _bands(shape, factor)]
    )


def _wrong(mean: Float64, wanted: npt.NDArray[np.floating]) -> Mask:
    """Blocks to correct: not where mean or input are missing, as comparisons with NaN are false."""
    wrong: Mask = np.where(wanted > 0, np.abs(mean - wanted) > TOLERANCE_MM_H, mean > 0)
    wrong &= np.isfinite(wanted)
    return wrong


def _scale_smoothly(
    field: Array, mean: Float64, coarse_mm_h: npt.NDArray[np.floating], factor: int
) -> None:
    """Scale the cells of blocks to correct, in place, by factors interpolated between all blocks.

    It is their logarithms that are interpolated. Means are brought nearer to the input, not to it.
    Blocks without an input, or with missing cells, say nothing of their own: a field ends with the
    factors that it has there. ``mean`` are the blocks' means [mm h-1].
    """
    most, shape = np.log(MAX_SCALING), coarse_mm_h.shape
    bands = [_rows(field, band, factor) for band in _bands(shape, factor)]
    known = np.isfinite(np.concatenate([_whole_means(rows, factor) for rows in bands]))
    known &= np.isfinite(coarse_mm_h)
    wrong = _wrong(mean, coarse_mm_h)
    level = np.zeros(shape)
    for turn in range(_SMOOTH_SCALINGS):
        if turn:
            mean = _means_in_bands(field, shape, factor)
        ratio = (coarse_mm_h[wrong] + _LEAST_MEAN_MM_H) / (mean[wrong] + _LEAST_MEAN_MM_H)
        further = np.log(np.maximum(ratio, MAX_SCALING**-2))  # 0 where a network failed
        change = np.zeros(shape)
        change[wrong] = np.clip(level[wrong] + further, -most, most) - level[wrong]
        change = _continued(change, known)
        level += change
        # What is interpolated has to be positive.
        shown = (change + 2 * most).astype(np.float32)
        for band, rows in zip(_bands(shape, factor), bands, strict=True):
            if not wrong[band].any():
                continue
            first = max(0, band.start - CUBIC_REACH)
            fine = interpolate(shown[first : band.stop + CUBIC_REACH], factor)
            fine = fine[(band.start - first) * factor :][: len(rows)]
            blocks, by = _blocks(rows, factor), _blocks(np.exp(fine - np.float32(2 * most)), factor)
            np.multiply(blocks, by, out=blocks, where=wrong[band][:, :, None, None])


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


def _scale(
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


def _gather(field: Array, coarse_mm_h: npt.NDArray[np.floating], factor: int, least: float) -> None:
    """Leave no rain below ``least``, in place, by `_gathered` in each block that has some.

    Rows are looked at as they were before the blocks beside them changed, so that the result does
    not depend on how they are dealt out.
    """
    above = np.zeros((_BOXES, field.shape[1]), dtype=np.float32)
    for band in _bands(coarse_mm_h.shape, factor):
        rows = _rows(field, band, factor)
        blocks, below = _blocks(rows, factor), field[band.stop * factor :][:_BOXES]
        wider = ((0, _BOXES - len(below)), (_BOXES, _BOXES))
        seen = np.pad(np.concatenate((above, rows, below)), wider)
        above = rows[-_BOXES:].copy()
        faint = ((blocks > 0) & (blocks < np.float32(least))).any(axis=(2, 3))
        unknown = faint & ~np.isfinite(coarse_mm_h[band])
        blocks[unknown] = np.where(blocks[unknown] < least, 0, blocks[unknown])
        faint &= ~unknown
        if not faint.any():
            continue
        np.nan_to_num(seen, copy=False)
        np.log(seen + np.float32(least), out=seen)
        for _ in range(_BOXES):
            seen = seen[:-2] + seen[1:-1] + seen[2:]
            seen = seen[:, :-2] + seen[:, 1:-1] + seen[:, 2:]
        nearby = _blocks(seen, factor)
        places, size = np.argwhere(faint), max(1, _GATHERED_CELLS // factor**2)
        for i, j in (places[first : first + size].T for first in range(0, len(places), size)):
            cells, around = (part[i, j].reshape(-1, factor**2) for part in (blocks, nearby))
            blocks[i, j] = _gathered(cells, around, least).reshape(-1, factor, factor)


def _gathered(cells: Array, nearby: Array, least: float) -> Float64:
    """The rain of each block on some of its wet cells.

    The k largest rates, scaled so that they hold it, with the largest k for which the least of them
    reaches ``least``: it falls with k. They go to the k cells with most rain around, in the order
    of these cells' own rates: what is left lies together, as rain does.

    Parameters
    ----------
    cells, nearby
        (block, cell) [mm h-1], NaN where missing, with rain in every block; and what lies around.
    least
        [mm h-1]
    """
    rain = np.nan_to_num(cells).astype(np.float64)
    largest = -np.sort(-rain, axis=1)
    sums = largest.cumsum(axis=1)
    total = sums[:, -1:]
    count = np.maximum((largest * total >= least * sums).sum(axis=1, keepdims=True), 1)
    first = np.arange(cells.shape[1]) < count
    places = np.argsort(np.where(rain > 0, -nearby, np.inf), axis=1, kind="stable")
    kept = np.empty(cells.shape, dtype=bool)
    np.put_along_axis(kept, places, first, axis=1)
    order = np.argsort(np.where(kept, -rain, np.inf), axis=1, kind="stable")
    scale = total / np.take_along_axis(sums, count - 1, axis=1)
    out = np.empty(cells.shape)
    np.put_along_axis(out, order, np.where(first, largest, 0) * scale, axis=1)
    out[np.isnan(cells)] = np.nan
    return out


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
    _check_shapes(rate_mm_h, coarse_mm_h, factor)
    gaps = np.abs(_means_in_bands(rate_mm_h, coarse_mm_h.shape, factor) - coarse_mm_h)
    gaps = gaps[np.isfinite(gaps)]
    return (float(gaps.mean()), float(gaps.max())) if gaps.size else (np.nan, np.nan)


def wet_fraction(rate_mm_h: npt.NDArray[np.floating], threshold_mm_h: float) -> float:
    """Share of valid cells at or above a rate [mm h-1], 0 to 1; NaN if none is valid."""
    valid = rate_mm_h.size - np.count_nonzero(np.isnan(rate_mm_h))
    # In the field's own precision: 0.7 as float32 is not below 0.7.
    wet = np.count_nonzero(rate_mm_h >= rate_mm_h.dtype.type(threshold_mm_h))
    return wet / valid if valid else np.nan
