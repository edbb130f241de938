"""Stochastic and learned baselines, with published settings, never tuned on validation tiles."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from wdm_export.residual_frame import ResidualFrame
from wdm_runtime.consistency import DEFAULT_CONSISTENCY
from wdm_runtime.errors import InputError, require
from wdm_runtime.field import PrecipField
from wdm_runtime.manifest import Manifest
from wdm_runtime.noise import INITIAL_STEP, noise_of
from wdm_runtime.skill import WET_MM_H, Array, Places, window

if TYPE_CHECKING:
    from collections.abc import Callable

EXTRA = "verify"
# Coarse cells around a tile that it is drawn with, where the domain has them. With so many, fields
# with spectral fusion are better, which wants the larger scales; plain ones stay the same.
_MARGIN = 8
_LEAST_CELLS = 4  # along an axis: of fewer pysteps finds no slope


@dataclass(frozen=True)
class DressedBicubic:
    """Bicubic interpolation dressed with white noise: an ensemble without any network.

    Where it may rain each subband's residual is Gaussian noise of the mean and standard deviation
    that it has in the training data, each coefficient's drawn alone; block means become the input's
    as the model's do. So it says what of a score the mere presence of noise is worth. Dressing:
    Roulston and Smith 2003, Tellus A 55, 16.
    """

    manifest: Manifest
    consistency: str = DEFAULT_CONSISTENCY
    name: str = "dressed bicubic"
    random: bool = True

    def draw(
        self, coarse: PrecipField, places: Places, size: int, members: int, seed: int
    ) -> Iterator[Array]:
        frame = ResidualFrame(coarse, places, size, self.manifest, self.consistency)
        subbands, height, width = frame.standardised.shape
        for member in range(members):
            noise = noise_of(seed, coarse.valid_times[0], member)
            covered = frame.tiling.covered
            yield frame.tiles(noise.draw(INITIAL_STEP, subbands, (0, height), (0, width), covered))


@dataclass(frozen=True)
class RainFarm:
    """RainFARM of pysteps with its defaults: spectral slope of each tile's own input, no kernel.

    Rebora et al. 2006, doi 10.1175/JHM517.1; with ``fusion`` the input's own spectrum is kept at
    the scales it has (D'Onofrio et al. 2014, doi 10.1175/JHM-D-13-096.1). A tile is drawn with
    `_MARGIN` coarse cells around, missing ones taken as dry; its block means are its input's. Rates
    below 0.1 mm/h become 0, as in every forecast here.
    """

    factor: int
    downscale: Callable[..., Array]
    name: str = "RainFARM"
    random: bool = True
    fusion: bool = False

    @classmethod
    def both(cls, factor: int) -> tuple[RainFarm, RainFarm]:
        """Import pysteps; without fusion and with it.

        Raises
        ------
        MissingDependencyError
            pysteps is not installed.
        """
        downscale = import_pysteps("pysteps.downscaling.rainfarm").downscale
        fused = cls(factor, downscale, "RainFARM, spectral fusion", fusion=True)
        return cls(factor, downscale), fused

    def draw(
        self, coarse: PrecipField, places: Places, size: int, members: int, seed: int
    ) -> Iterator[Array]:
        time, rates = coarse.valid_times[0], np.nan_to_num(coarse.frame(0)).astype(np.float64)
        self.require_size(rates.shape)
        for member in range(members):
            yield np.stack(
                [
                    self._tile(rates, place, size, _state(seed, time, place, member))
                    for place in places
                ]
            )

    @staticmethod
    def require_size(shape: tuple[int, ...]) -> None:
        """Refuse a field of so few coarse cells (y, x) that pysteps finds no slope of a spectrum.

        Raises
        ------
        InputError
            It has fewer than 4 x 4.
        """
        if min(shape) < _LEAST_CELLS:
            raise InputError(
                f"RainFARM got {shape[0]} x {shape[1]} coarse cells; expected at least "
                f"{_LEAST_CELLS} x {_LEAST_CELLS}, of which it finds the spectrum's slope. Hand in "
                "a larger field, or leave it out with --no-rainfarm."
            )

    def _tile(self, rates: Array, place: tuple[int, int], size: int, state: int) -> Array:
        top, left = (max(0, start // self.factor - _MARGIN) for start in place)
        bottom, right = (-(-(start + size) // self.factor) + _MARGIN for start in place)
        cells, options = rates[top:bottom, left:right], {}
        if self.fusion:
            # pysteps merges spectra of even squares only.
            edge = max(cells.shape) + max(cells.shape) % 2
            cells = np.pad(cells, [(0, edge - n) for n in cells.shape], mode="edge")
            options = {"spectral_fusion": True}
        if np.ptp(cells) == 0:  # no spectrum: pysteps fails
            level = cells[0, 0] if cells[0, 0] >= WET_MM_H else 0.0
            return np.full((size, size), level, dtype=np.float32)
        with _global_random(state):
            fine = self.downscale(cells, self.factor, threshold=WET_MM_H, **options)
        inside = (place[0] - top * self.factor, place[1] - left * self.factor)
        return np.asarray(fine[window(inside, size)], dtype=np.float32)


def import_pysteps(module: str) -> ModuleType:
    """A module of pysteps, which prints where its settings are when it is imported.

    Raises
    ------
    MissingDependencyError
        pysteps is not installed.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        return require(module, EXTRA, "The baseline RainFARM")


def _state(seed: int, time: str, place: tuple[int, int], member: int) -> int:
    """32 bits that belong to this tile and member, in whatever order they are drawn."""
    address = f"{seed} {time} {place[0]} {place[1]} {member}"
    return int.from_bytes(hashlib.sha256(address.encode()).digest()[:4], "little")


@contextlib.contextmanager
def _global_random(state: int) -> Iterator[None]:
    """NumPy's global generator, which pysteps draws from, seeded for a while."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(state)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
