"""Rain too faint to count, gathered on the cells of its block with most rain around.

Arrays are (y, x) [mm h-1]; NaN is missing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wdm_runtime.blocks import Array, Float64, bands, blocks_of, fine_rows

# Sums of 3 x 3 cells, one of the other, of the logarithms of rates say which cells of a block hold
# its faint rain. On a training day two sums left less speckle than one, wider ones cost CRPS.
_BOXES = 2
_GATHERED_CELLS = 1 << 15  # of faint blocks at a time, of which there are ten copies


def gather_faint_rain(
    field: Array, coarse_mm_h: npt.NDArray[np.floating], factor: int, least: float
) -> None:
    """Leave no rain below ``least``, in place, by `_gathered` in each block that has some.

    Rows are looked at as they were before the blocks beside them changed, so that the result does
    not depend on how they are dealt out.

    Parameters
    ----------
    field
        (y * factor, x * factor) [mm h-1], C-contiguous, NaN where missing; changed.
    coarse_mm_h
        (y, x) [mm h-1]; blocks where it is missing only lose their faint rain.
    factor
        Fine cells per coarse cell along one axis.
    least
        [mm h-1] the least rate that counts as rain.
    """
    above = np.zeros((_BOXES, field.shape[1]), dtype=np.float32)
    for band in bands(coarse_mm_h.shape, factor):
        rows = fine_rows(field, band, factor)
        blocks, below = blocks_of(rows, factor), field[band.stop * factor :][:_BOXES]
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
        nearby = blocks_of(seen, factor)
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
