"""Training patches of one field: where they lie, and which are worth it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from wdm_runtime.grid import block_mean, interpolate
from wdm_runtime.skill import MAX_MISSING_SHARE, MIN_WET_SHARE, TILE_PX, WET_MM_H

# The stride of two wavelet levels. Crops lie at multiples of it in a patch, and sampling's tiles at
# multiples of it in the field: patches have to begin at such places too, or the network would see
# coarse cells where it never meets them.
_STRIDE_PX = 4

DRY, GAPS = "too little rain", "missing cells"  # why a place is left out


def cut_patches(
    fine: npt.NDArray[np.floating],
    factor: int,
    size: int = TILE_PX,
    left_out: Counter[str] | None = None,
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Patches of one field with enough rain and hardly anything missing.

    Parameters
    ----------
    fine
        (y, x) [mm h-1], NaN where missing.
    factor
        Fine cells per coarse cell.
    size
        Patch edge in fine cells; patches overlap by half, at the far edges by more.
    left_out
        Counts the places that are left out, by `DRY` or, where there is rain enough, `GAPS`.

    Yields
    ------
    Fine and interpolated coarse patch, (size, size) [mm h-1], no cell of which the runtime would
    leave out: the few that miss the truth have the interpolated rate.
    """
    coarse = block_mean(fine, factor).astype(np.float32)
    rows, columns = coarse.shape[0] * factor, coarse.shape[1] * factor
    fine = fine[:rows, :columns]
    smooth = interpolate(coarse, factor)  # NaN where it reads a missing block
    for row in _starts(rows, size, factor):
        for column in _starts(columns, size, factor):
            window = slice(row, row + size), slice(column, column + size)
            patch, given = fine[window], smooth[window]
            missing = np.isnan(patch)
            wet = np.count_nonzero(patch >= WET_MM_H)
            is_wet = wet >= MIN_WET_SHARE * patch.size
            if is_wet and missing.mean() < MAX_MISSING_SHARE and not np.isnan(given).any():
                yield np.where(missing, given, patch), given
            elif left_out is not None:
                left_out[GAPS if is_wet else DRY] += 1


def _starts(length: int, size: int, factor: int) -> list[int]:
    """Where patches begin along an axis: half a patch apart, and the last one at the far edge.

    Both as nearly as keeps the phase between coarse cells and coefficients one that tiles have.
    """
    step = max(_STRIDE_PX, size // 2 // _STRIDE_PX * _STRIDE_PX)
    starts = list(range(0, length - size + 1, step))
    end = length - size
    end -= end % math.gcd(_STRIDE_PX, factor)
    return [*starts, end] if starts and starts[-1] < end else starts
