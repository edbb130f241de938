"""Whole sampling runs in a reduced precision against fp32 with the same noise, on real rain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from wdm_export.coarsen import coarsen
from wdm_runtime.consistency import DEFAULT_CONSISTENCY
from wdm_runtime.downscale import Downscaler
from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField, each_time
from wdm_runtime.grid import same_spacing
from wdm_runtime.manifest import Manifest
from wdm_runtime.precision import PrecisionRun
from wdm_runtime.presets import FAST, PRESETS, Preset
from wdm_runtime.select import check_spacing
from wdm_runtime.skill import (
    BANDS_KM,
    MIN_WET_SHARE,
    WET_MM_H,
    band_ratio_db,
    radial_spectrum,
    scaled_z,
)

Array = npt.NDArray[np.float32]

RATES_MM_H = (1.0, 5.0, 20.0)


@dataclass(frozen=True)
class Draws:
    """How the ensembles of all precisions are drawn."""

    members: int
    seed: int
    way: Preset = PRESETS[FAST]
    consistency: str = DEFAULT_CONSISTENCY

    def __post_init__(self) -> None:
        if self.members < 2:
            raise InputError(
                f"Got {self.members} member; expected at least 2, whose spread is the yardstick. "
                "Raise --members."
            )


def wettest_tiles(
    fields: Iterable[PrecipField], manifest: Manifest, count: int
) -> list[PrecipField]:
    """The tiles with most rain, each a coarse field of one valid time that one tile covers.

    Parameters
    ----------
    fields
        Coarse fields, or fine ones of the model's spacing, which are averaged.
    manifest
        Of the bundle.
    count
        Tiles at most.

    Raises
    ------
    InputError
        A field has neither spacing, or no tile without a missing cell has enough rain.
    """
    if count < 1:
        raise InputError(f"Got {count} tiles; expected at least 1. Raise --tiles.")
    # Noise is addressed in coefficients: tiles start at whole ones.
    unit = manifest.coefficient_cells
    edge = max(2, manifest.tile_cells // unit * unit)
    found = []
    for frame in each_time(_coarse(one, manifest) for one in fields):
        for rows in _windows(frame.grid.shape[0], edge, unit):
            for columns in _windows(frame.grid.shape[1], edge, unit):
                rate = frame.frame(0)[rows, columns]
                if np.isfinite(rate).all() and (rate >= WET_MM_H).mean() > MIN_WET_SHARE:
                    found.append((float(rate.mean()), frame.crop(rows, columns)))
    if not found:
        raise InputError(
            f"No tile of {edge} x {edge} coarse cells without a missing one is more than "
            f"{MIN_WET_SHARE:.0%} wet; expected one at least. Hand in larger or wetter fields."
        )
    found.sort(key=lambda pair: -pair[0])
    return [tile for _, tile in found[:count]]


def _coarse(field: PrecipField, manifest: Manifest) -> PrecipField:
    """The field, or its block means if it is a fine one."""
    spacing = field.grid.spacing_km
    if spacing and all(same_spacing(got, manifest.domain.spacing_km) for got in spacing):
        return coarsen(field, manifest.factor)
    check_spacing(field, manifest.domain.spacing_km, manifest.factor, assume=None)
    return field


def _windows(size: int, edge: int, unit: int) -> list[slice]:
    """Windows that cover an axis, evenly spread; none if it is too short."""
    if size < edge:
        return []
    starts = np.linspace(0, size - edge, -(-size // edge))
    return [slice(start, start + edge) for start in (starts // unit * unit).astype(int).tolist()]


def draw(
    downscaler: Downscaler, tiles: list[PrecipField], draws: Draws, on_sample: Callable[[], None]
) -> Array:
    """Rates (tile, member, y, x) [mm h-1]."""

    def rates() -> Iterator[Array]:
        for tile in tiles:
            for sample in downscaler.downscale(
                tile,
                members=draws.members,
                seed=draws.seed,
                preset=draws.way,
                consistency=draws.consistency,
            ):
                on_sample()
                yield sample.rate_mm_h

    drawn = np.stack(list(rates()))
    return drawn.reshape(len(tiles), draws.members, *drawn.shape[1:])


def compare(
    precision: str, engine: str, fp32: Array, reduced: Array, fp32_reruns: int
) -> PrecisionRun:
    """Differences of two sets of rates (tile, member, y, x) [mm h-1] that share their noise."""
    wet = (fp32 >= WET_MM_H) | (reduced >= WET_MM_H)
    difference = np.abs(reduced.astype(np.float64) - fp32)
    spread = np.mean([np.abs(b.astype(np.float64) - a) for a, b in pairwise(fp32.swapaxes(0, 1))])
    spectra = [
        (radial_spectrum(scaled_z(b)), radial_spectrum(scaled_z(a)))
        for a, b in zip(_fields(fp32), _fields(reduced), strict=True)
    ]
    ratios = np.mean([band_ratio_db(b, a) for b, a in spectra], axis=0)
    # Small tiles have no wavenumber in some bands; a NaN elsewhere is the forecast's own.
    known = np.isfinite(band_ratio_db(spectra[0][1], spectra[0][1]))
    bands = zip(BANDS_KM, ratios, known, strict=True)
    return PrecisionRun(
        precision=precision,
        engine=engine,
        mean_rate_mm_h=float(fp32[wet].mean(dtype=np.float64)),
        largest_rate_mm_h=float(fp32.max()),
        mean_difference_mm_h=float(difference[wet].mean()),
        max_difference_mm_h=float(difference.max()),
        spread_share=float(difference.mean() / spread),
        spectrum_db={f"{low}-{high}": float(db) for (low, high), db, there in bands if there},
        wet_fraction_fp32=float((fp32 >= WET_MM_H).mean()),
        wet_fraction=float((reduced >= WET_MM_H).mean()),
        cells_fp32=_cells(fp32),
        cells=_cells(reduced),
        fp32_reruns=fp32_reruns,
    )


def _fields(rates: Array) -> Iterator[Array]:
    return iter(rates.reshape(-1, *rates.shape[2:]))


def _cells(rates: Array) -> dict[str, int]:
    return {f"{rate:g}": int(np.count_nonzero(rates >= rate)) for rate in RATES_MM_H}
