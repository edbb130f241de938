"""Scores of forecasts: what one tile adds, and what many tiles pooled give.

A forecast is scored tile by tile into sums (`TileScores`, `EnsembleTileScores`), and scores over
many tiles are pooled from those sums: a bootstrap only has to `take` tiles again and pool them.
Libraries have most of these scores but not their sums: the SSIM is scikit-image's, the rest is
compared with `scores` and pysteps by the tests.
Arrays are (y, x) [mm h-1]; members come first, (member, y, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from wdm_export.intensity import (
    fine_histogram,
    histogram_percentiles,
    intensity_distance_db,
    intensity_histogram,
)
from wdm_export.metrics import (
    AVERAGED_KM,
    FSS_SCALES_KM,
    PERCENTILES,
    THRESHOLDS_MM_H,
    Int64,
    TruthTile,
    averaged,
    contingency,
    fss_sums,
    psnr_db,
    rank_counts,
    spectral_distance_db,
    ssim,
)
from wdm_export.probability import (
    SPREAD_EDGES_MM_H,
    brier,
    reliability_counts,
    spread_sums,
    tail_crps_sums,
)
from wdm_export.texture import (
    REGIONS,
    checkerboard_db,
    regions,
    speckle_sums,
    variation_sum,
)
from wdm_runtime.skill import (
    BANDS_KM,
    Array,
    Float64,
    band_ratio_db,
    fair_crps,
    radial_spectrum,
    scaled_z,
    windowed,
)


@dataclass(frozen=True)
class TileScores:
    """What one tile, or a stack of tiles (leading axis), adds to the scores of a forecast.

    ``absolute_error`` [mm h-1] and ``squared_error`` are sums over the ``cells`` that count,
    ``contingency`` and ``fss`` are as the functions of these names return them, ``gap`` is the
    sum, number and maximum of the consistency gaps [mm h-1]. ``averaged_error`` and ``tail_error``
    are the CRPS of a single field, see `EnsembleTileScores`; ``spectrum`` is the radial spectrum of
    z / 3.176. Forecast and truth stand side by side on the axis before the last of ``histogram``
    and ``intensity`` and on the last of ``total`` [mm h-1], ``variation`` and ``speckle``,
    (regions, 2).
    """

    cells: Int64
    absolute_error: Float64
    squared_error: Float64
    psnr_db: Float64
    ssim: Float64
    spectrum_db: Float64
    windowed_spectrum_db: Float64
    contingency: Int64
    fss: Float64
    gap: Float64
    total: Float64
    averaged_error: Float64
    tail_error: Float64
    spectrum: Float64
    spectral_distance_db: Float64
    histogram: Int64
    intensity: Int64
    speckle: Float64
    variation: Float64
    checkerboard_db: Float64


@dataclass(frozen=True)
class EnsembleTileScores:
    """What one tile, or a stack of tiles (leading axis), adds to the scores of an ensemble.

    Sums over the cells: fair CRPS [mm h-1], members' sample variance, squared error of the mean.
    ``averaged_crps`` has the sum over block means and their number, (`AVERAGED_KM`, 2); the rest
    is as the functions of `probability` return it.
    """

    cells: Int64
    members: Int64
    crps: Float64
    variance: Float64
    squared_error: Float64
    ranks: Int64
    averaged_crps: Float64
    tail_crps: Float64
    reliability: Int64
    spread: Float64


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
    valid, rates = truth.valid, (forecast[truth.valid], truth.rate_mm_h[truth.valid])
    error = rates[0].astype(np.float64) - rates[1]
    z = scaled_z(truth.filled(forecast))
    spectrum, gaps = radial_spectrum(z), truth.block_gaps(forecast)
    places = regions(truth.input_mm_h, valid)
    return TileScores(
        cells=np.asarray(error.size),
        absolute_error=np.asarray(np.abs(error).sum()),
        squared_error=np.asarray(error @ error),
        psnr_db=np.asarray(psnr_db(z, truth.z, valid)),
        ssim=np.asarray(ssim(z, truth.z)),
        spectrum_db=band_ratio_db(spectrum, truth.spectrum),
        windowed_spectrum_db=band_ratio_db(radial_spectrum(windowed(z)), truth.windowed_spectrum),
        contingency=contingency(forecast, truth.rate_mm_h, valid),
        fss=fss_sums(forecast, truth.rate_mm_h, valid),
        gap=np.array([gaps.sum(), gaps.size, gaps.max(initial=0.0)]),
        total=np.array([rate.sum(dtype=np.float64) for rate in rates]),
        averaged_error=_averaged_scores(forecast[None], truth),
        tail_error=tail_crps_sums(rates[0][None], rates[1]),
        spectrum=spectrum,
        spectral_distance_db=np.asarray(spectral_distance_db(spectrum, truth.spectrum)),
        histogram=np.stack([fine_histogram(rate) for rate in rates]),
        intensity=np.stack([intensity_histogram(rate) for rate in rates]),
        speckle=np.stack([speckle_sums(field, places) for field in (z, truth.z)], axis=-1),
        variation=np.array([variation_sum(field, valid) for field in (z, truth.z)]),
        checkerboard_db=np.asarray(checkerboard_db(z) - truth.checkerboard_db),
    )


def _averaged_scores(members: Array, truth: TruthTile) -> Float64:
    """Sum and number of fair CRPS (of one member: absolute errors) of block means."""
    sums = np.zeros((len(AVERAGED_KM), 2))
    for i, width in enumerate(AVERAGED_KM):
        observed = averaged(truth.rate_mm_h, truth.valid, width)
        scores = fair_crps(averaged(members, truth.valid, width), observed)
        whole = np.isfinite(observed)
        sums[i] = scores[whole].sum(), whole.sum()
    return sums


def score_ensemble_tile(
    members: Array, truth: TruthTile, rng: np.random.Generator
) -> EnsembleTileScores:
    """Score two or more members (member, size, size) [mm h-1] on one tile."""
    inside, observed = members[:, truth.valid].astype(np.float64), truth.rate_mm_h[truth.valid]
    error, variance = inside.mean(axis=0) - observed, inside.var(axis=0, ddof=1)
    return EnsembleTileScores(
        cells=np.asarray(error.size),
        members=np.asarray(len(members)),
        crps=np.asarray(fair_crps(inside, observed).sum()),
        variance=np.asarray(variance.sum()),
        squared_error=np.asarray(error @ error),
        ranks=rank_counts(inside, observed, rng),
        averaged_crps=_averaged_scores(members, truth),
        tail_crps=tail_crps_sums(inside, observed),
        # In the members' own float32: widened, 0.1 would miss the threshold it stands on.
        reliability=reliability_counts(members[:, truth.valid], observed),
        spread=spread_sums(variance, error**2),
    )


@dataclass(frozen=True)
class Metrics:
    """Scores of one forecast over many tiles; keys are thresholds [mm h-1], scales and bands.

    The CRPS of a single field are its absolute errors, and its Brier score counts yes and no.
    """

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
    windowed_spectrum_db: dict[str, float]
    percentile_error_mm_h: dict[str, float]
    wet_fraction_error: float
    consistency_mean_mm_h: float
    consistency_max_mm_h: float
    total_ratio: float
    averaged_crps_mm_h: dict[str, float]
    tail_crps_mm_h: dict[str, float]
    brier: dict[str, float]
    spectral_distance_db: float
    intensity_distance_db: float
    speckle: dict[str, float]
    over_smoothing: float
    checkerboard_db: float


@dataclass(frozen=True)
class EnsembleMetrics:
    """Scores of an ensemble over many tiles.

    ``rank_histogram`` counts cells by the members below the truth. ``reliability`` has, for each
    threshold [mm h-1], the cells that 0 .. M members call an event and how many of them are one;
    ``spread_classes`` the cells, the members' variance and the squared error of their mean
    [mm2 h-2], means of each class between ``edges_mm_h`` of spread. Cells in which all members
    agree are in none of them.
    """

    fair_crps_mm_h: float
    spread_skill: float
    rank_histogram: tuple[int, ...]
    averaged_crps_mm_h: dict[str, float]
    tail_crps_mm_h: dict[str, float]
    brier: dict[str, float]
    reliability: dict[str, dict[str, tuple[int, ...]]]
    spread_classes: dict[str, tuple[float, ...]]


def _by(keys: Sequence[float], values: Any) -> dict[str, float]:
    return {f"{key:g}": float(value) for key, value in zip(keys, values, strict=True)}


def _by_band(tiles: Float64) -> dict[str, float]:
    """Means over the tiles of (tiles, bands)."""
    means = zip(BANDS_KM, tiles.mean(axis=0), strict=True)
    return {f"{low}-{high}": float(value) for (low, high), value in means}


def pool(tiles: TileScores, percentile_error_mm_h: Float64 | None = None) -> Metrics:
    """Pool a stack of tiles.

    The percentiles' errors come from the pooled values themselves, or, without them, from the
    tiles' histograms, within 2 % of the percentiles. A score whose event never happened is NaN;
    PSNR is infinite if a tile is perfect.
    """
    if percentile_error_mm_h is None:
        forecast, truth = map(histogram_percentiles, tiles.histogram.sum(axis=0))
        percentile_error_mm_h = forecast - truth
    cells = tiles.cells.sum()
    hits, misses, false_alarms = tiles.contingency.sum(axis=0).astype(np.float64).T
    observed, predicted = hits + misses, hits + false_alarms
    fss = tiles.fss.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        csi, pod = hits / (observed + false_alarms), hits / observed
        far, bias = false_alarms / predicted, predicted / observed
        skill = 1 - fss[..., 0] / fss[..., 1]
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
        spectrum_db=_by_band(tiles.spectrum_db),
        windowed_spectrum_db=_by_band(tiles.windowed_spectrum_db),
        percentile_error_mm_h=_by(PERCENTILES, percentile_error_mm_h),
        wet_fraction_error=float((predicted[0] - observed[0]) / cells),
        consistency_mean_mm_h=float(_means(tiles.gap[:, :2])),
        consistency_max_mm_h=float(tiles.gap[:, 2].max()),
        total_ratio=float(_means(tiles.total)),
        averaged_crps_mm_h=_by(AVERAGED_KM, _means(tiles.averaged_error)),
        tail_crps_mm_h=_by(THRESHOLDS_MM_H, tiles.tail_error.sum(axis=0) / cells),
        brier=_by(THRESHOLDS_MM_H, (misses + false_alarms) / cells),
        spectral_distance_db=float(tiles.spectral_distance_db.mean()),
        intensity_distance_db=intensity_distance_db(*tiles.intensity.sum(axis=0)),
        speckle=dict(zip(REGIONS, map(float, _means(tiles.speckle)), strict=True)),
        over_smoothing=float(1 - _means(tiles.variation)),
        checkerboard_db=float(tiles.checkerboard_db.mean()),
    )


def _means(sums: Float64) -> Float64:
    """First over second of (tiles, ..., 2), each summed over the tiles; not finite over 0."""
    first, second = np.moveaxis(sums.sum(axis=0), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(first / second)


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
        averaged_crps_mm_h=_by(AVERAGED_KM, _means(tiles.averaged_crps)),
        tail_crps_mm_h=_by(THRESHOLDS_MM_H, tiles.tail_crps.sum(axis=0) / tiles.cells.sum()),
        brier=_by(THRESHOLDS_MM_H, brier(tiles.reliability.sum(axis=0))),
        reliability=_reliability(tiles.reliability.sum(axis=0)),
        spread_classes=_spread_classes(tiles.spread.sum(axis=0)),
    )


def _reliability(counts: Int64) -> dict[str, dict[str, tuple[int, ...]]]:
    """`reliability_counts` by threshold and by name."""
    return {
        f"{threshold:g}": {"cells": tuple(map(int, cells)), "events": tuple(map(int, events))}
        for threshold, (cells, events) in zip(THRESHOLDS_MM_H, counts.swapaxes(1, 2), strict=True)
    }


def _spread_classes(sums: Float64) -> dict[str, tuple[float, ...]]:
    """`spread_sums` by name, the sums divided by the cells; NaN in a class without any."""
    cells, *others = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        means = [tuple(map(float, column / cells)) for column in others]
    names = ("edges_mm_h", "cells", "variance_mm2_h2", "squared_error_mm2_h2")
    return dict(zip(names, (SPREAD_EDGES_MM_H, tuple(map(float, cells)), *means), strict=True))
