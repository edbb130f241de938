"""Which tiles of a field are scored, and what is known of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wdm_export.metrics import TruthTile
from wdm_runtime.errors import InputError
from wdm_runtime.grid import Grid

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class TilePlace:
    """Where and when a tile was cut: its first cell in the fine field, north first.

    ``centre`` is its y and x in the grid's units.
    """

    valid_time: str
    row: int
    column: int
    centre: tuple[float, float] = field(default=(math.nan, math.nan), compare=False)


@dataclass(frozen=True)
class Region:
    """Tiles whose centre lies in a box, or, turned round, all others.

    The box chooses tiles and cuts no field, so that a tile is the same in every region.
    """

    west: float
    south: float
    east: float
    north: float
    outside: bool = False

    @classmethod
    def parse(cls, box: str | None, outside: bool = False) -> Region | None:
        """``"W,S,E,N"`` [degrees, or the units of a projected grid], or None.

        Raises
        ------
        InputError
            The text is no box, or there is none to be outside of.
        """
        if box is None:
            if outside:
                raise InputError(
                    "Got --outside without a box; expected one to leave out. Add --bbox W,S,E,N."
                )
            return None
        try:
            west, south, east, north = (float(part) for part in box.split(","))
        except ValueError:
            west = south = east = north = math.nan
        if not (all(map(math.isfinite, (west, east))) and south < north):
            raise InputError(f"--bbox got '{box}'; expected W,S,E,N with S below N. Correct it.")
        return cls(west, south, east, north, outside)

    def holds(self, centre: tuple[float, float], degrees: bool) -> bool:
        """Whether a tile counts; longitudes [degrees] in either convention."""
        y, x = centre
        width, offset = self.east - self.west, x - self.west
        if degrees:  # across the dateline, and 230 for -130
            width, offset = width if width >= 360 else width % 360, offset % 360
        return (self.south <= y <= self.north and 0 <= offset <= width) != self.outside


def centre_of(grid: Grid, place: tuple[int, int], size: int) -> tuple[float, float]:
    """y and x of a tile's centre, in the grid's units."""
    y, x = (
        float(values[start : start + size].mean())
        for values, start in zip((grid.y, grid.x), place, strict=True)
    )
    return y, x


def truth_tile(
    rate_mm_h: Array,
    covered: npt.NDArray[np.bool_],
    coarse_mm_h: Array,
    place: tuple[int, int],
    factor: int,
) -> TruthTile:
    """A tile of truth and the coarse blocks that lie wholly inside it.

    Parameters
    ----------
    rate_mm_h, covered
        (size, size) truth [mm h-1], NaN where missing, and the cells the input reaches.
    coarse_mm_h
        (y, x) the whole coarse field [mm h-1].
    place
        Row and column of the tile's first cell in the fine field.
    """
    size = rate_mm_h.shape[0]
    top, left = (-start % factor for start in place)
    window = tuple(
        slice(-(-start // factor), max((start + size) // factor, -(-start // factor)))
        for start in place
    )
    valid = np.isfinite(rate_mm_h) & covered
    return TruthTile(rate_mm_h, valid, coarse_mm_h[window], (top, left), factor)
