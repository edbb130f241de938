"""Tiles over a grid of any size: where they lie, how they blend. Index arithmetic only.

Sizes and positions are in coefficients. Tiles are spread evenly with at least the given overlap,
and each counts with a smooth window, so that no border shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Tile:
    """The square window ``[row, row + size) x [column, column + size)``."""

    row: int
    column: int
    size: int

    @property
    def window(self) -> tuple[EllipsisType, slice, slice]:
        """Index of the tile in a (..., y, x) array."""
        rows = slice(self.row, self.row + self.size)
        return ..., rows, slice(self.column, self.column + self.size)


def starts(length: int, size: int, overlap: int) -> list[int]:
    """First cells of the fewest tiles that cover ``length`` with at least ``overlap``."""
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def bump(size: int) -> npt.NDArray[np.float32]:
    """A smooth, strictly positive weight along one axis, sin^2 of the distance to the border."""
    position = (np.arange(size) + 0.5) / size
    return np.asarray(np.sin(np.pi * position) ** 2, dtype=np.float32)


class Tiling:
    """Tiles over a (height, width) grid and their normalised blending weights.

    Parameters
    ----------
    shape
        (height, width) of the grid; each at least ``size``.
    size, overlap
        Tile size and least overlap.
    wanted
        Optional (height, width) mask. Tiles that touch no wanted cell are left out, and cells
        that no tile covers get 0 from `blend`.

    Attributes
    ----------
    tiles
        The tiles, row by row.
    covered, complete
        Which cells some tile covers (height, width), and whether all are.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        size: int,
        overlap: int,
        wanted: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        if min(shape) < size or not 0 <= overlap < size:
            raise InputError(
                f"Cannot tile a grid of {shape} with tiles of {size} overlapping by {overlap}; "
                "expected a grid at least a tile wide and an overlap below the tile size."
            )
        self.shape = shape
        self.size = size
        tiles = [
            Tile(row, column, size)
            for row in starts(shape[0], size, overlap)
            for column in starts(shape[1], size, overlap)
        ]
        self.tiles = [t for t in tiles if wanted is None or wanted[t.window].any()]
        window = bump(size)[:, None] * bump(size)[None, :]
        total = np.zeros(shape, dtype=np.float64)
        for tile in self.tiles:
            total[tile.window] += window
        self.covered = total > 0
        self.complete = bool(self.covered.all())
        self._weights = [(window / total[tile.window]).astype(np.float32) for tile in self.tiles]

    def cut(self, field: Array, first: int, last: int) -> Array:
        """(c, height, width) -> tiles ``first .. last - 1`` as (n, c, size, size), contiguous."""
        return np.stack([field[tile.window] for tile in self.tiles[first:last]])

    def blend(self, tiles: Array, first: int, out: Array) -> None:
        """Add tiles (n, c, size, size), the first of which has index ``first``, to ``out``."""
        for i, values in enumerate(tiles, start=first):
            out[self.tiles[i].window] += values * self._weights[i]
