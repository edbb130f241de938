"""Whether tile borders show: the gradient across them against the gradient beside them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from wdm_runtime.tiling import Tile
from wdm_runtime.transform import PrecipTransform

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

# Lines beside a border, in wavelet blocks: at the same place in their block, because gradients
# between blocks differ from those within, and so near that the weather is the same.
_BESIDE = (-6, -5, -4, -3, -2, 2, 3, 4, 5, 6)


def seam_index(rate_mm_h: Array, tiles: Iterable[Tile], stride: int) -> float:
    """Mean |dz| across tile borders over mean |dz| across lines beside them.

    1 if borders do not show; above 1 if they are sharper than their surroundings. z is
    `PrecipTransform`'s; borders on the domain's own edge do not count.

    Parameters
    ----------
    rate_mm_h
        (y, x) [mm h-1], north first; differences with a missing cell do not count.
    tiles
        Where the tiles lay, in coefficients.
    stride
        Fine cells per coefficient along one axis.
    """
    z = PrecipTransform().forward(rate_mm_h)
    tiles = list(tiles)
    across = np.zeros(2)
    for values, places in (
        (z, [(t.row, t.column, t.size) for t in tiles]),
        (z.T, [(t.column, t.row, t.size) for t in tiles]),
    ):
        steps = np.abs(np.diff(values, axis=0))  # row i: between i and i + 1
        for first, along, size in places:
            span = slice(along * stride, (along + size) * stride)
            for border in (first * stride, (first + size) * stride):
                lines = [border + block * stride - 1 for block in _BESIDE]
                lines = [line for line in lines if 0 <= line < len(steps)]
                if 0 < border <= len(steps):
                    across += _sums(steps[border - 1 : border, span], steps[lines, span])
    return float(across[0] / across[1])


def _sums(border: Array, beside: Array) -> npt.NDArray[np.float64]:
    """Sum over a border, and the sum a line beside it has on average; NaN left out."""
    valid = np.isfinite(border[0]) & np.isfinite(beside).all(axis=0)
    return np.array(
        [border[:, valid].sum(dtype=np.float64), beside[:, valid].mean(axis=0).sum(dtype=float)]
    )
