"""What is compared: ways to refine a coarse field, all drawn on the same tiles.

A method gives the tiles of one member after another, so that a whole fine domain is never kept.
Interpolation is of the whole domain, as the model's is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wdm_runtime.consistency import DEFAULT_CONSISTENCY, make_consistent
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import interpolate
from wdm_runtime.presets import Preset
from wdm_runtime.skill import WET_MM_H, Array, Places, cut_tiles, wanted_cells

REFERENCE = "bicubic"  # what the others' scores are set against


class Method(Protocol):
    """A way to refine a coarse field."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def random(self) -> bool:
        """Whether members differ; if not, it has one."""

    def draw(
        self, coarse: PrecipField, places: Places, size: int, members: int, seed: int
    ) -> Iterator[Array]:
        """Tiles (tile, size, size) [mm h-1] of each member, of a single frame, north first."""


class SampleLike(Protocol):
    """What is read of a `wdm_runtime.downscale.Sample`."""

    @property
    def rate_mm_h(self) -> npt.NDArray[np.float32]:
        """(y, x) [mm h-1] over the whole fine domain, in the field's row order."""


class DownscalerLike(Protocol):
    """What is used of a `wdm_runtime.downscale.Downscaler`."""

    @property
    def factor(self) -> int:
        """Fine cells per coarse cell along one axis."""

    def downscale(
        self,
        field: PrecipField,
        *,
        members: int,
        seed: int,
        preset: Preset,
        consistency: str,
        wanted: npt.NDArray[np.bool_] | None,
    ) -> Iterator[SampleLike]:
        """Draw an ensemble; only the ``wanted`` fine cells need a result."""


@dataclass(frozen=True)
class Ensemble:
    """A bundle's own: members of an open `Downscaler`, which are as the runtime makes them."""

    name: str
    downscaler: DownscalerLike
    way: Preset
    consistency: str = DEFAULT_CONSISTENCY
    random: bool = True

    def draw(
        self, coarse: PrecipField, places: Places, size: int, members: int, seed: int
    ) -> Iterator[Array]:
        shape = tuple(n * self.downscaler.factor for n in coarse.grid.shape)
        for sample in self.downscaler.downscale(
            coarse,
            members=members,
            seed=seed,
            preset=self.way,
            consistency=self.consistency,
            wanted=wanted_cells(shape, places, size),
        ):
            yield cut_tiles(sample.rate_mm_h, places, size)


@dataclass(frozen=True)
class Interpolation:
    """One field, rates below 0.1 mm/h made 0; NaN where a cell reads a missing coarse cell."""

    name: str
    refine: Callable[[Array, int], npt.NDArray[np.float32]]
    factor: int
    random: bool = False

    def draw(
        self, coarse: PrecipField, places: Places, size: int, members: int, seed: int
    ) -> Iterator[Array]:
        fine = self.refine(coarse.frame(0), self.factor)
        fine[fine < WET_MM_H] = 0
        yield cut_tiles(fine, places, size)


def nearest(coarse: Array, factor: int) -> npt.NDArray[np.float32]:
    """Each coarse rate over its factor x factor fine cells: (y * factor, x * factor) [mm h-1]."""
    return np.asarray(coarse, np.float32).repeat(factor, axis=0).repeat(factor, axis=1)


def bilinear(coarse: Array, factor: int) -> npt.NDArray[np.float32]:
    """Linear along y and x between coarse cell centres, held beyond the outermost ones.

    (y, x) -> (y * factor, x * factor) [mm h-1], NaN where a cell reads a NaN.
    """
    fine = np.asarray(coarse, dtype=np.float32)
    for axis in (0, 1):
        size = fine.shape[axis]
        position = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
        low = np.minimum(position.astype(np.intp), size - 2)
        weight = (position - low).astype(np.float32)
        weight = weight[:, None] if axis == 0 else weight
        below, above = np.take(fine, low, axis), np.take(fine, low + 1, axis)
        fine = below + weight * (above - below)
    return fine


def conservative_bicubic(coarse: Array, factor: int) -> npt.NDArray[np.float32]:
    """`interpolate`, then the step for block means that the model's members end with.

    So it says what of a model's skill is that step's. (y, x) -> (y * factor, x * factor) [mm h-1],
    NaN where an interpolated cell reads a NaN.
    """
    fine = interpolate(coarse, factor)
    return make_consistent(fine, coarse, fine, factor, DEFAULT_CONSISTENCY, WET_MM_H)


def interpolations(factor: int) -> tuple[Interpolation, ...]:
    """Nearest cell, bilinear, bicubic, and bicubic with the input's block means."""
    kinds = (
        ("nearest cell", nearest),
        ("bilinear", bilinear),
        (REFERENCE, interpolate),
        ("conservative bicubic", conservative_bicubic),
    )
    return tuple(Interpolation(name, refine, factor) for name, refine in kinds)
