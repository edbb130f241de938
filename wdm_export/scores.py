"""Scores of forecasts: what one tile adds, and what many tiles pooled give.

A forecast is scored tile by tile into sums (`TileScores`, `EnsembleTileScores`), and scores over
many tiles are pooled from those sums: a bootstrap only has to `take` tiles again and pool them.
Arrays are (y, x) [mm h-1]; members come first, (member, y, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from wdm_export.metrics import (
    BANDS_KM,
    FSS_SCALES_KM,
    PERCENTILES,
    THRESHOLDS_MM_H,
    Array,
    Float64,
    Int64,
    TruthTile,
    band_ratio_db,
    contingency,
    fair_crps,
    fss_sums,
    psnr_db,
    radial_spectrum,
    rank_counts,
    scaled_z,
    ssim,
)


@dataclass(frozen=True)
class TileScores:
    """What one tile, or a stack of tiles (leading axis), adds to the scores of a forecast.

    ``absolute_error`` [mm h-1] and ``squared_error`` are sums over the ``cells`` that count,
    ``contingency`` and ``fss`` are as the functions of these names return them, ``gap`` is the
    sum, number and maximum of the consistency gaps [mm h-1].
    """

    cells: Int64
    absolute_error: Float64
    squared_error: Float64
    psnr_db: Float64
    ssim: Float64
    spectrum_db: Float64
    contingency: Int64
    fss: Float64
    gap: Float64


@dataclass(frozen=True)
class EnsembleTileScores:
    """What one tile, or a stack of tiles (leading axis), adds to the scores of an ensemble.

    Sums over the cells: fair CRPS [mm h-1], members' sample variance, squared error of the mean.
    """

    cells: Int64
    members: Int64
    crps: Float64
    variance: Float64
    squared_error: Float64
    ranks: Int64


T = TypeVar("T", TileScores, EnsembleTileScores)


def stack(tiles: Sequence[T]) -> T:
    """Scores of single tiles -> one object whose arrays have the tiles as leading axis."""
    kind = type(tiles[0])
    return kind(**{f.name: np.stack([getattr(t, f.name) for t in tiles]) for f in fields(kind)})


def take(tiles: T, numbers: npt.NDArray[np.intp]) -> T:
    """The stack of the given tiles, repeats allowed: one draw of a bootstrap."""
    kind = type(tiles)
    return kind(**{f.name: getattr(tiles, f.name)[numbers] for f in fields(kind)})


def score_tile(forecast: Array, truth: TruthTile) -> TileScores:
    """Score one deterministic forecast (size, size) [mm h-1] on one tile."""
    valid = truth.valid
    error = forecast[valid].astype(np.float64) - truth.rate_mm_h[valid]
    z = scaled_z(truth.filled(forecast))
    gaps = truth.block_gaps(forecast)
    return TileScores(
        cells=np.asarray(error.size),
        absolute_error=np.asarray(np.abs(error).sum()),
        squared_error=np.asarray(error @ error),
        psnr_db=np.asarray(psnr_db(z, truth.z, valid)),
        ssim=np.asarray(ssim(z, truth.z)),
        spectrum_db=band_ratio_db(radial_spectrum(z), truth.spectrum),
        contingency=contingency(forecast, truth.rate_mm_h, valid),
        fss=fss_sums(forecast, truth.rate_mm_h, valid),
        gap=np.array([gaps.sum(), gaps.size, gaps.max(initial=0.0)]),
    )


def score_ensemble_tile(
    members: Array, truth: TruthTile, rng: np.random.Generator
) -> EnsembleTileScores:
    """Score two or more members (member, size, size) [mm h-1] on one tile."""
    inside, observed = members[:, truth.valid].astype(np.float64), truth.rate_mm_h[truth.valid]
    error = inside.mean(axis=0) - observed
    return EnsembleTileScores(
        cells=np.asarray(error.size),
        members=np.asarray(len(members)),
        crps=np.asarray(fair_crps(inside, observed).sum()),
        variance=np.asarray(inside.var(axis=0, ddof=1).sum()),
        squared_error=np.asarray(error @ error),
        ranks=rank_counts(inside, observed, rng),
    )


@dataclass(frozen=True)
class Metrics:
    """Scores of one forecast over many tiles; keys are thresholds [mm h-1], scales and bands."""

    psnr_db: float
    ssim: float
    mae_mm_h: float
    rmse_mm_h: float
    csi: dict[str, float]
    pod: dict[str, float]
    far: dict[str, float]
    bias: dict[str, float]
    fss: dict[str, dict[str, float]]
    spectrum_db: dict[str, float]
    percentile_error_mm_h: dict[str, float]
    wet_fraction_error: float
    consistency_mean_mm_h: float
    consistency_max_mm_h: float


@dataclass(frozen=True)
class EnsembleMetrics:
    """Scores of an ensemble over many tiles."""

    fair_crps_mm_h: float
    spread_skill: float
    rank_histogram: tuple[int, ...]


def _by(keys: Sequence[float], values: Any) -> dict[str, float]:
    return {f"{key:g}": float(value) for key, value in zip(keys, values, strict=True)}


def pool(tiles: TileScores, percentile_error_mm_h: Float64) -> Metrics:
    """Pool a stack of tiles; the percentiles' errors come from the pooled values themselves.

    A score whose event never happened is NaN; PSNR is infinite if a tile is perfect.
    """
    cells = tiles.cells.sum()
    hits, misses, false_alarms = tiles.contingency.sum(axis=0).astype(np.float64).T
    observed, predicted = hits + misses, hits + false_alarms
    fss = tiles.fss.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        csi, pod = hits / (observed + false_alarms), hits / observed
        far, bias = false_alarms / predicted, predicted / observed
        skill = 1 - fss[..., 0] / fss[..., 1]
        gap_mean = tiles.gap[:, 0].sum() / tiles.gap[:, 1].sum()
    return Metrics(
        psnr_db=float(tiles.psnr_db.mean()),
        ssim=float(tiles.ssim.mean()),
        mae_mm_h=float(tiles.absolute_error.sum() / cells),
        rmse_mm_h=float(np.sqrt(tiles.squared_error.sum() / cells)),
        csi=_by(THRESHOLDS_MM_H, csi),
        pod=_by(THRESHOLDS_MM_H, pod),
        far=_by(THRESHOLDS_MM_H, far),
        bias=_by(THRESHOLDS_MM_H, bias),
        fss={
            f"{t:g}": _by(FSS_SCALES_KM, row) for t, row in zip(THRESHOLDS_MM_H, skill, strict=True)
        },
        spectrum_db={
            f"{low}-{high}": float(value)
            for (low, high), value in zip(BANDS_KM, tiles.spectrum_db.mean(axis=0), strict=True)
        },
        percentile_error_mm_h=_by(PERCENTILES, percentile_error_mm_h),
        wet_fraction_error=float((predicted[0] - observed[0]) / cells),
        consistency_mean_mm_h=float(gap_mean),
        consistency_max_mm_h=float(tiles.gap[:, 2].max()),
    )


def pool_ensemble(tiles: EnsembleTileScores) -> EnsembleMetrics:
    """Pool a stack of tiles of one ensemble size.

    Spread/skill is sqrt((M + 1) / M * mean variance) / RMSE of the mean, 1 for a reliable
    ensemble of any size: Fortin et al. 2014, doi 10.1175/JHM-D-14-0008.1.
    """
    members = int(tiles.members[0])
    spread = np.sqrt((members + 1) / members * tiles.variance.sum())
    skill = np.sqrt(tiles.squared_error.sum())
    return EnsembleMetrics(
        fair_crps_mm_h=float(tiles.crps.sum() / tiles.cells.sum()),
        spread_skill=float(spread / skill) if skill > 0 else float("nan"),
        rank_histogram=tuple(int(n) for n in tiles.ranks.sum(axis=0)),
    )
