"""From residual coefficients to tiles without an engine, for baselines that no sampler draws."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wdm_runtime.conditioning import condition, finish, interpolated, look_at, valid_cells
from wdm_runtime.consistency import make_consistent
from wdm_runtime.engines.numpy_transform import NumpyTransform
from wdm_runtime.field import PrecipField
from wdm_runtime.manifest import Manifest
from wdm_runtime.skill import Array, Places, cut_tiles, wanted_cells


class ResidualFrame:
    """One frame on the runtime's own tiles, with its condition, transforms and block means.

    Parameters
    ----------
    coarse
        The input; its first frame is meant.
    places, size
        The tiles that are wanted, in fine cells.
    manifest
        What is read of one: wavelet, transform, scales, factor and tile.
    consistency
        One of the runtime's modes.
    """

    def __init__(
        self, coarse: PrecipField, places: Places, size: int, manifest: Manifest, consistency: str
    ) -> None:
        self.coarse_mm_h = coarse.frame(0)
        self.places, self.size = places, size
        self.manifest, self.consistency = manifest, consistency
        shape = tuple(n * manifest.factor for n in self.coarse_mm_h.shape)
        frame = look_at(self.coarse_mm_h, manifest, wanted_cells(shape, places, size))
        self.tiling = frame.tiling
        self._frame = frame
        self._condition = condition(frame, manifest, NumpyTransform("dwt", manifest.wavelet))
        self.standardised = self._condition.standardised
        # Of all members, so once: each is of the whole domain.
        self._smooth = interpolated(self.coarse_mm_h, manifest.factor)
        self._missing = ~valid_cells(self.coarse_mm_h, manifest.factor)

    def tiles(self, residual: npt.NDArray[np.float32]) -> Array:
        """Standardised residual coefficients (c, h, w) to (tile, size, size) [mm h-1].

        NaN where interpolation reads a missing coarse cell.
        """
        manifest, inverse = self.manifest, NumpyTransform("idwt", self.manifest.wavelet)
        rate = finish(self._frame, self._condition, residual, manifest, inverse)
        rate[self._missing] = np.nan
        rate = make_consistent(
            rate, self.coarse_mm_h, self._smooth, manifest.factor, self.consistency,
            manifest.transform.dry_threshold_mm_h,
        )  # fmt: skip
        return cut_tiles(rate, self.places, self.size)
