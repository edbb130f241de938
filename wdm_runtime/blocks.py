"""Blocks of fine cells below coarse cells: views of them, and their means.

Coarse cell (i, j) covers the fine block of factor x factor cells below it. Only the valid cells of
a block count. Arrays are (y, x) [mm h-1]; NaN is missing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.grid import block_mean

Array = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_BAND_CELLS = 1 << 19  # float64 copies of a band fit in the caches, or nearly


def check_shapes(
    fine: npt.NDArray[np.floating], coarse: npt.NDArray[np.floating], factor: int
) -> None:
    """Refuse fields that are not of one area.

    Raises
    ------
    InputError
        ``fine`` is not (y * factor, x * factor) of a ``coarse`` of (y, x).
    """
    expected = tuple(n * factor for n in coarse.shape)
    if fine.shape != expected:
        raise InputError(
            f"The fine field has shape {fine.shape}; expected {expected}, {factor} times the "
            "coarse one's. Hand in fields of the same area."
        )


def bands(shape: tuple[int, ...], factor: int) -> Iterator[slice]:
    """Coarse rows, so many at a time that their fine cells stay few."""
    rows = max(1, _BAND_CELLS // max(1, shape[1] * factor * factor))
    for first in range(0, shape[0], rows):
        yield slice(first, min(first + rows, shape[0]))


def fine_rows(fine: npt.NDArray[np.floating], band: slice, factor: int) -> npt.NDArray[np.floating]:
    """The fine rows of some coarse rows, a view."""
    return fine[band.start * factor : band.stop * factor]


def blocks_of(fine: npt.NDArray[np.floating], factor: int) -> npt.NDArray[np.floating]:
    """(y, x, factor, factor), a view of a C-contiguous field's blocks."""
    rows, columns = (n // factor for n in fine.shape)
    blocks: npt.NDArray[np.floating] = fine.reshape(rows, factor, columns, factor).swapaxes(1, 2)
    return blocks


def whole_means(fine: npt.NDArray[np.floating], factor: int) -> Float64:
    """(y, x) means [mm h-1] of the blocks of which no cell is missing, NaN for the others."""
    rows, columns = (n // factor for n in fine.shape)
    sums = fine.reshape(rows, factor, columns * factor).sum(axis=1, dtype=np.float64)
    mean: Float64 = sums.reshape(rows, columns, factor).sum(axis=2) / factor**2
    return mean


def block_means(fine: npt.NDArray[np.floating], factor: int) -> Float64:
    """`block_mean`, three times as fast where nothing is missing."""
    mean = whole_means(fine, factor)
    return block_mean(fine, factor) if np.isnan(mean).any() else mean


def means_in_bands(fine: npt.NDArray[np.floating], shape: tuple[int, ...], factor: int) -> Float64:
    """`block_means` of a field below a coarse one of ``shape``, of few cells at a time."""
    return np.concatenate(
        [block_means(fine_rows(fine, band, factor), factor) for band in bands(shape, factor)]
    )
