"""The sanity check of condition and residual: nothing is left where there is nothing to add.

If the fine field is the interpolated coarse one, the residual's coefficients have to be zero in
every subband, and the way back from no residual has to be that field again. Real fields, measured
beside it, show what a residual is and whether the bundle's scales fit them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from wdm_export.coarsen import coarsen
from wdm_export.crops import Coefficients
from wdm_runtime.bundle import Bundle
from wdm_runtime.conditioning import interpolated
from wdm_runtime.engines import open_transforms
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import InputError, ParityError
from wdm_runtime.field import PrecipField
from wdm_runtime.manifest import Manifest
from wdm_runtime.skill import TILE_PX, find_tiles, window

Array = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# Standardised coefficients: a network's noise is 1, float32 leaves 1e-5 of a narrow subband.
RESIDUAL_LIMIT = 1e-3
RATE_LIMIT = 1e-4  # of the rate, far below the 0.05 % that a store of patches keeps


@dataclass(frozen=True)
class Identity:
    """What is left of every subband, of interpolated and of real fields, over some tiles.

    Parameters
    ----------
    names
        The subbands.
    rms
        (subbands,) root mean square of the residual of interpolated fields, in the bundle's
        standard deviations.
    std
        (subbands,) standard deviation of the real fields' residual, as it is.
    bundle_std
        (subbands,) that the bundle standardises with.
    rate_error
        Largest change of rates from twice the dry threshold up, there and back, as a share of them.
    tiles
        How many were measured.
    """

    names: tuple[str, ...]
    rms: Float64
    std: Float64
    bundle_std: Float64
    rate_error: float
    tiles: int

    @property
    def passed(self) -> bool:
        """Whether nothing is left but rounding."""
        return bool(self.rms.max() <= RESIDUAL_LIMIT and self.rate_error <= RATE_LIMIT)

    def require(self) -> None:
        """Refuse a bundle that would draw detail where there is none.

        Raises
        ------
        ParityError
        """
        if not self.passed:
            raise ParityError(
                f"Interpolated fields leave residuals of up to {self.rms.max():.1e} standard "
                f"deviations and come back with rates off by {self.rate_error:.1e}; expected at "
                f"most {RESIDUAL_LIMIT:.0e} and {RATE_LIMIT:.0e}. Check the graphs with "
                "'wdm-export check'."
            )


def measure(bundle: Bundle, fields: Iterable[PrecipField], tile_px: int = TILE_PX) -> Identity:
    """Residuals on the tiles that have rain.

    The fine field goes the way of training (torch, pytorch_wavelets), the interpolated coarse one
    that of the runtime (NumPy, the bundle's graph): the two have to agree.

    Raises
    ------
    InputError
        No field has a tile with rain, or the tiles do not fit the wavelet.
    """
    manifest = bundle.manifest
    spec = manifest.wavelet
    if tile_px % spec.stride or tile_px <= 2 * spec.margin * spec.stride:
        raise InputError(
            f"--tile got {tile_px} cells; expected a multiple of {spec.stride} above "
            f"{2 * spec.margin * spec.stride}. Correct it."
        )
    dwt, idwt = open_transforms(bundle, "ort-cpu", EngineOptions())
    coefficients = Coefficients(spec, manifest.transform)
    total, squares = (np.zeros((2, spec.subbands)) for _ in range(2))
    count, tiles, worst = 0, 0, 0.0
    for fine, smooth in _tiles(fields, manifest, tile_px):
        condition = dwt.run({"field": manifest.transform.forward(smooth)[None, None]})[0]
        # Interpolated and real field as the fine one, both over the interpolated one.
        pairs = (smooth, fine), (smooth, smooth)
        pair, below = (torch.from_numpy(np.stack(two))[:, None] for two in pairs)
        residual, own = coefficients(pair, below)
        left = (residual + own).double().numpy() - condition[spec.inner]
        total += left.sum(axis=(2, 3))
        squares += (left**2).sum(axis=(2, 3))
        count, tiles = count + left[0, 0].size, tiles + 1
        back = manifest.transform.inverse(idwt.run({"coeffs": condition[None]})[0, 0])
        wet = smooth >= 2 * manifest.transform.dry_threshold_mm_h  # clear of the threshold
        off = np.abs(back - smooth)[wet] / smooth[wet]
        worst = max(worst, float(off.max(initial=0.0)))
    if not tiles:
        raise InputError(
            f"No field has a tile to look at; expected one of {tile_px} x {tile_px} cells with "
            "rain. Hand in larger or wetter fields, or a smaller --tile."
        )
    mean = total[1] / count
    scale = np.array(manifest.residual_scale.std)
    return Identity(
        spec.subband_names,
        np.sqrt(squares[0] / count) / scale,
        np.sqrt(squares[1] / count - mean**2),
        scale,
        worst,
        tiles,
    )


def _tiles(
    fields: Iterable[PrecipField], manifest: Manifest, size: int
) -> Iterator[tuple[Array, Array]]:
    """Truth with missing cells as interpolated, and the interpolated block means, (size, size)."""
    for field in fields:
        coarse = coarsen(field, manifest.factor)
        for index in range(len(field.valid_times)):
            smooth = interpolated(coarse.frame(index), manifest.factor)
            fine = field.frame(index)[: smooth.shape[0], : smooth.shape[1]]
            for place in find_tiles(fine, size):
                at = window(place, size)
                yield np.where(np.isnan(fine[at]), smooth[at], fine[at]), smooth[at]


def render(result: Identity) -> Group:
    """A table with a line for each subband, and what it says."""
    table = Table(title=f"{result.tiles} tiles")
    for name in ("subband", "fine = interpolated", "real fields", "the bundle's scale", "quotient"):
        table.add_column(name, justify="left" if name == "subband" else "right")
    columns = (result.names, result.rms, result.std, result.bundle_std)
    for name, rms, std, scale in zip(*columns, strict=True):
        table.add_row(name, f"{rms:.1e}", f"{std:.4f}", f"{scale:.4f}", f"{std / scale:.2f}")
    notes = (
        "fine = interpolated: root mean square of the residual, over the bundle's scale",
        "real fields: standard deviation of the residual; the bundle's scale is its training set's",
        f"there and back: rates change by at most {result.rate_error:.1e} of themselves",
        "passed" if result.passed else "FAILED",
    )
    return Group(table, *(Text(line, style="dim") for line in notes))
