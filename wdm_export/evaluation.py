"""The result of an evaluation: every forecast's scores by label, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_export import scores
from wdm_export.bootstrap import Intervals
from wdm_export.methods import REFERENCE
from wdm_export.scores import EnsembleMetrics, EnsembleTileScores, Metrics, TileScores
from wdm_export.tiles import TilePlace
from wdm_runtime.records import finite
from wdm_runtime.skill import BANDS_KM, LEAST_POWER, Float64

FSS_SHOWN_MM_H = "5"
HEADLINE = (
    *("PSNR [dB]", "SSIM", "CSI 0.1 mm/h", "CSI 1 mm/h", "CSI 5 mm/h", "CSI 20 mm/h"),
    *("bias 20 mm/h", f"FSS {FSS_SHOWN_MM_H} mm/h in 9 km"),
    *("MAE [mm/h]", "RMSE [mm/h]", "CRPS [mm/h]", "CRPS / bicubic MAE", "tail CRPS 20 mm/h [mm/h]"),
    *("spread/skill", "Brier 5 mm/h"),
    *(f"RAPSD {low}-{high} km [dB]" for low, high in BANDS_KM),
    *("intensity distance [dB]", "p99.9 [mm/h]", "wet fraction"),
    *("speckle, dry", "over-smoothing", "checkerboard [dB]", "consistency, mean [mm/h]"),
)


@dataclass(frozen=True)
class ForecastRow:
    """All scores of one forecast, and what each tile added to them.

    ``tiles`` and ``ensemble_tiles`` have the tiles of `Evaluation.places` as leading axis.
    ``ensemble`` is set for rows of an ensemble alone.
    """

    name: str
    metrics: Metrics
    tiles: TileScores
    crps_over_bicubic_mae: float
    ensemble: EnsembleMetrics | None = None
    ensemble_tiles: EnsembleTileScores | None = None

    @property
    def crps_mm_h(self) -> float:
        """Fair CRPS; of a single field the MAE."""
        return self.ensemble.fair_crps_mm_h if self.ensemble else self.metrics.mae_mm_h

    def relative_to(self, reference: ForecastRow) -> ForecastRow:
        """With the CRPS over bicubic's MAE, whose row is handed in."""
        mae = reference.metrics.mae_mm_h
        return replace(self, crps_over_bicubic_mae=self.crps_mm_h / mae if mae > 0 else math.nan)

    def redrawn(self, numbers: npt.NDArray[np.intp]) -> ForecastRow:
        """The same forecast on the given tiles, repeats allowed."""
        tiles, ensemble, ensemble_tiles = scores.take(self.tiles, numbers), None, None
        if self.ensemble_tiles is not None:
            ensemble_tiles = scores.take(self.ensemble_tiles, numbers)
            ensemble = scores.pool_ensemble(ensemble_tiles)
        return replace(
            self,
            metrics=scores.pool(tiles),
            tiles=tiles,
            ensemble=ensemble,
            ensemble_tiles=ensemble_tiles,
        )

    def labelled(self) -> dict[str, float | None]:
        """All scores by label; None where one does not apply."""
        m, e = self.metrics, self.ensemble
        return {
            "PSNR [dB]": m.psnr_db,
            "SSIM": m.ssim,
            "MAE [mm/h]": m.mae_mm_h,
            "RMSE [mm/h]": m.rmse_mm_h,
            "CRPS [mm/h]": self.crps_mm_h,
            "CRPS / bicubic MAE": self.crps_over_bicubic_mae,
            **_labels("CRPS of {} km means [mm/h]", (e or m).averaged_crps_mm_h),
            **_labels("tail CRPS {} mm/h [mm/h]", (e or m).tail_crps_mm_h),
            "spread/skill": e.spread_skill if e else None,
            **_labels("Brier {} mm/h", (e or m).brier),
            **_labels("CSI {} mm/h", m.csi),
            **_labels("POD {} mm/h", m.pod),
            **_labels("FAR {} mm/h", m.far),
            **_labels("bias {} mm/h", m.bias),
            **{
                f"FSS {threshold} mm/h in {width} km": value
                for threshold, widths in m.fss.items()
                for width, value in widths.items()
            },
            **_labels("RAPSD {} km [dB]", m.spectrum_db),
            **_labels("RAPSD, Hann, {} km [dB]", m.windowed_spectrum_db),
            "log spectral distance [dB]": m.spectral_distance_db,
            "intensity distance [dB]": m.intensity_distance_db,
            **_labels("p{} [mm/h]", m.percentile_error_mm_h),
            "wet fraction": m.wet_fraction_error,
            "total": m.total_ratio,
            "consistency, mean [mm/h]": m.consistency_mean_mm_h,
            "consistency, max [mm/h]": m.consistency_max_mm_h,
            **_labels("speckle, {}", m.speckle),
            "over-smoothing": m.over_smoothing,
            "checkerboard [dB]": m.checkerboard_db,
        }


def _labels(pattern: str, values: dict[str, float]) -> dict[str, float]:
    return {pattern.format(key): value for key, value in values.items()}


@dataclass(frozen=True)
class MeanSpectra:
    """Radial spectra of z / 3.176 as means over the tiles, (wavenumber,); the wavenumber 0 is out.

    ``ratio_db`` is the mean of the tiles' ratios to the truth in dB, as in the bands' scores.
    """

    wavelength_km: Float64
    truth: Float64
    power: dict[str, Float64]
    ratio_db: dict[str, Float64]


@dataclass(frozen=True)
class Evaluation:
    """Scores of the baselines, one member and the members' median and mean, on the same tiles.

    ``truth`` has what percentiles and wet fraction are differences to, ``truth_spectra`` the radial
    spectra of the truth's z / 3.176, (tile, wavenumber).
    """

    rows: tuple[ForecastRow, ...]
    places: tuple[TilePlace, ...]
    cells: int
    settings: dict[str, Any]
    intervals: Intervals = field(default_factory=dict)
    truth: dict[str, float] = field(default_factory=dict)
    truth_spectra: npt.NDArray[np.float64] | None = None

    @property
    def reference(self) -> ForecastRow:
        """Bicubic interpolation's row."""
        return next(row for row in self.rows if row.name == REFERENCE)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: tile count, settings, main scores as flat ``rows`` with their ``intervals``.

        All scores are in ``metrics``. Those that are undefined or infinite are None.
        """
        rows = [
            {"forecast": row.name, **{key: row.labelled()[key] for key in HEADLINE}}
            for row in self.rows
        ]
        full = {
            row.name: {**asdict(row.metrics), **(asdict(row.ensemble) if row.ensemble else {})}
            for row in self.rows
        }
        limits = {
            name: {key: found[key] for key in HEADLINE if key in found}
            for name, found in self.intervals.items()
        }
        content = {**self.settings, "truth": self.truth, "rows": rows}
        content |= {"intervals": limits, "metrics": full}
        plain: dict[str, Any] = finite(content)
        return {"tiles": len(self.places), "cells": self.cells, **plain}

    def to_csv(self) -> str:
        """Every score of every forecast: forecast, score, value, low, high; empty if undefined."""
        lines: list[tuple[str, ...]] = [("forecast", "score", "value", "low", "high")]
        for row in self.rows:
            limits = self.intervals.get(row.name, {})
            for label, value in row.labelled().items():
                numbers = (value, *limits.get(label, (None, None)))
                lines.append((row.name, label, *map(_number, numbers)))
        return _csv(lines)

    def tiles_csv(self) -> str:
        """A line for every tile and forecast, for scores that one tile alone has.

        ``truth_mm_h`` is the tile's mean rain: what is wrong in light rain shows in its order.
        """
        names = ("valid_time", "row", "column", "y", "x", "forecast", "cells", "truth_mm_h")
        bands = (f"rapsd_{low}_{high}_km_db" for low, high in BANDS_KM)
        lines: list[tuple[Any, ...]] = [
            (*names, "mae_mm_h", "crps_mm_h", "psnr_db", "ssim", *bands, "checkerboard_db")
        ]
        for row in self.rows:
            t, e = row.tiles, row.ensemble_tiles
            truth, mae = t.total[:, 1] / t.cells, t.absolute_error / t.cells
            crps = e.crps / e.cells if e is not None else mae
            for i, p in enumerate(self.places):
                where = (p.valid_time, p.row, p.column, *(f"{v:.4f}" for v in p.centre))
                values = (truth[i], mae[i], crps[i], t.psnr_db[i], t.ssim[i])
                values = (*values, *t.spectrum_db[i], t.checkerboard_db[i])
                lines.append((*where, row.name, int(t.cells[i]), *map(_number, values)))
        return _csv(lines)

    def mean_spectra(self) -> MeanSpectra:
        """Of the truth and of every forecast, averaged over the tiles."""
        truths = np.maximum(np.asarray(self.truth_spectra)[:, 1:], LEAST_POWER)
        power, ratio_db = {}, {}
        for row in self.rows:
            own = np.maximum(row.tiles.spectrum[:, 1:], LEAST_POWER)
            power[row.name] = own.mean(axis=0)
            ratio_db[row.name] = 10 * np.log10(own / truths).mean(axis=0)
        count = truths.shape[1]
        wavelength = 2 * count / np.arange(1, count + 1)
        return MeanSpectra(wavelength, truths.mean(axis=0), power, ratio_db)

    def spectra_csv(self) -> str:
        """A line a wavenumber: the truth's power, every forecast's, and its ratio in dB."""
        spectra = self.mean_spectra()
        columns = {"wavelength_km": spectra.wavelength_km, "truth": spectra.truth}
        for name, power in spectra.power.items():
            columns |= {name: power, f"{name} [dB]": spectra.ratio_db[name]}
        lines = (tuple(map(_number, values)) for values in zip(*columns.values(), strict=True))
        return _csv([tuple(columns), *lines])


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def _csv(lines: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
