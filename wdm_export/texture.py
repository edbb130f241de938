"""How a fine field looks at the scale of its cells: speckle, checkerboards, smoothness.

Arrays are (y, x) of z = log10(rate + 0.1) + 1, where a factor in rate is a difference and dry is
0. Each measure gives sums, of a forecast or of the truth, that are pooled over tiles before they
are divided, or a level in dB, whose mean over tiles is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import median_filter

from wdm_runtime.skill import LEAST_POWER, WET_MM_H, windowed

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

REGIONS = ("dry", "heavy")
HEAVY_MM_H = 10.0
PHASE_PX = 4  # fine cells of a coefficient of the two-level model: what a checkerboard repeats in
_LINE, _AROUND = 1, 4  # half widths [wavenumbers] of a line's main lobe and of its surroundings


def regions(input_mm_h: Array, valid: Mask) -> tuple[Mask, Mask]:
    """Valid cells whose coarse input is below 0.1 mm/h, and those at or above 10 mm/h.

    The input chooses, not a forecast or the truth: all are looked at in the same places. Cells
    without a known input (NaN) are in neither.
    """
    return valid & (input_mm_h < WET_MM_H), valid & (input_mm_h >= HEAVY_MM_H)


def speckle_sums(z: Array, places: Sequence[Mask]) -> Float64:
    """Sum of |z - median of its 3 x 3 neighbours| over each region's cells, (regions,).

    The median takes a lone cell out and leaves edges, ramps and plateaus where they are.
    """
    lone = np.abs(z - median_filter(z, size=3, mode="nearest"))
    return np.array([lone[place].sum(dtype=np.float64) for place in places])


def variation_sum(z: Array, valid: Mask) -> float:
    """Anisotropic total variation: sum of |difference| of neighbours that both are valid."""
    rows = np.abs(np.diff(z, axis=0))[valid[1:] & valid[:-1]].sum(dtype=np.float64)
    columns = np.abs(np.diff(z, axis=1))[valid[:, 1:] & valid[:, :-1]].sum(dtype=np.float64)
    return float(rows + columns)


def checkerboard_db(z: Array) -> float:
    """How far what repeats every ``PHASE_PX`` cells stands out of the spectrum around it, in dB.

    A pattern of the phase (row mod 4, column mod 4) alone, the means of its phases, has power at
    the multiples of 1 / 4 cycles a cell and nowhere else: wavelengths of 4 cells and less. Each
    such line (3 x 3 wavenumbers, the main lobe of the Hann window that keeps the tile's edges out)
    is measured against the rest of the 9 x 9 around it, as mean logarithms, from which a slope of
    the spectrum drops out.

    Parameters
    ----------
    z
        (n, n), n a multiple of ``PHASE_PX``, no missing cells.

    Returns
    -------
    The mean over the lines: 0 for a field without preferred phase.
    """
    size = z.shape[0]
    power = np.abs(np.fft.fft2(windowed(z))) ** 2
    level = 10 * np.log10(np.maximum(power, LEAST_POWER))
    at, around = np.arange(-_LINE, _LINE + 1), np.arange(-_AROUND, _AROUND + 1)
    found = []
    for i, j in np.ndindex(PHASE_PX, PHASE_PX):
        if i or j:
            row, column = i * size // PHASE_PX, j * size // PHASE_PX
            line = level[np.ix_((row + at) % size, (column + at) % size)]
            block = level[np.ix_((row + around) % size, (column + around) % size)]
            nearby = (block.sum() - line.sum()) / (block.size - line.size)
            found.append(line.mean() - nearby)
    return float(np.mean(found))
