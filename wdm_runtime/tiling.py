"""Tiles where the rain is: where they lie and how they blend. Index arithmetic only.

Sizes and positions are in coefficients. A tile answers for its core, which is the tile without
half the overlap along each border that is not the grid's own; beyond the core it only blends. Each
tile counts with a smooth window, so that no border shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]


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


def bump(size: int) -> npt.NDArray[np.float32]:
    """A smooth, strictly positive weight along one axis, sin^2 of the distance to the border."""
    position = (np.arange(size) + 0.5) / size
    return np.asarray(np.sin(np.pi * position) ** 2, dtype=np.float32)


def cover(active: Mask, size: int, overlap: int) -> list[Tile]:
    """Tiles whose cores cover every active cell, few of them, each centred on what it covers.

    From the north, bands as high as a core start at the first row not yet covered; within a band,
    tiles start at the first such column.

    Parameters
    ----------
    active
        (height, width); each at least ``size``.
    size, overlap
        Tile size, and how far neighbours share cells at least.
    """
    left = active.copy()
    tiles = []
    while (rows := np.flatnonzero(left.any(axis=1))).size:
        band = left[_core(int(rows[0]), size, overlap, left.shape[0])]
        while (columns := np.flatnonzero(band.any(axis=0))).size:
            block = band[:, _core(int(columns[0]), size, overlap, left.shape[1])]
            within = np.flatnonzero(block.any(axis=1)), np.flatnonzero(block.any(axis=0))
            row, column = (
                _centred(first + int(cells[0]), first + int(cells[-1]) + 1, size, length)
                for first, cells, length in zip(
                    (int(rows[0]), int(columns[0])), within, left.shape, strict=True
                )
            )
            tiles.append(Tile(row, column, size))
            block[:] = False
    return tiles


def _core(first: int, size: int, overlap: int, length: int) -> slice:
    """The longest core that starts at or before ``first``, from there on."""
    start = min(max(0, first - overlap // 2), length - size)
    stop = length if start + size == length else start + size - overlap // 2
    return slice(first, stop)


def _centred(first: int, stop: int, size: int, length: int) -> int:
    """The start of a tile with ``[first, stop)`` in its middle, as far as the grid allows."""
    return min(max(0, (first + stop - size) // 2), length - size)


class Tiling:
    """Tiles over a (height, width) grid and their normalised blending weights.

    Parameters
    ----------
    shape
        (height, width) of the grid; each at least ``size``.
    size, overlap
        Tile size and least overlap of neighbours.
    active
        Optional (height, width) mask of the cells tiles are needed for; cells that no tile covers
        get 0 from `blend`.

    Attributes
    ----------
    tiles
        The tiles, band by band.
    covered
        Which cells some tile covers, (height, width).
    """

    def __init__(
        self, shape: tuple[int, int], size: int, overlap: int, active: Mask | None = None
    ) -> None:
        if min(shape) < size or not 0 <= overlap < size:
            raise InputError(
                f"Cannot tile a grid of {shape} with tiles of {size} overlapping by {overlap}; "
                "expected a grid at least a tile wide and an overlap below the tile size."
            )
        self.shape = shape
        self.tiles = cover(np.ones(shape, np.bool_) if active is None else active, size, overlap)
        window = bump(size)[:, None] * bump(size)[None, :]
        total = np.zeros(shape, dtype=np.float64)
        for tile in self.tiles:
            total[tile.window] += window
        self.covered = total > 0
        self._weights = [(window / total[tile.window]).astype(np.float32) for tile in self.tiles]

    def cut(self, field: Array, index: int) -> Array:
        """A view of one tile (c, size, size) of a (c, height, width) field."""
        return field[self.tiles[index].window]

    def blend(self, tile: Array, index: int, out: Array) -> None:
        """Weight one tile (c, size, size), in place, and add it to ``out`` (c, height, width)."""
        tile *= self._weights[index]
        out[self.tiles[index].window] += tile
