"""The result of an evaluation as people, JSON and CSV read it: labels, definitions, tables."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from wdm_export import scores
from wdm_export.intensity import LEAST_CELLS
from wdm_export.metrics import AVERAGED_KM
from wdm_export.scores import EnsembleMetrics, EnsembleTileScores, Metrics, TileScores
from wdm_export.texture import HEAVY_MM_H, PHASE_PX
from wdm_export.tiles import TilePlace
from wdm_runtime.records import finite
from wdm_runtime.skill import BANDS_KM, LEAST_POWER, Z_RANGE, Float64

# Characters of a column on a screen: of two numbers of six, and of most labels; lines and spaces.
_FORECAST_WIDTH, _LABEL_WIDTH, _BORDERS = 16, 30, 3

Intervals = dict[str, dict[str, tuple[float, float]]]  # forecast, score: low and high

REFERENCE = "bicubic"
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
# Every threshold and window is in the CSV; on a screen these would bury the rest.
_NOT_SHOWN = ("POD", "FAR", "Brier 0.1", "Brier 2 ", "Brier 10", "Brier 50", "tail CRPS 2 ")
DEFINITIONS = (
    "km: of fine cells of 1 km; of a model of other cells read cells for km",
    f"PSNR: 10 log10(1 / MSE) of z / {Z_RANGE}, z = log10(rate + 0.1) + 1; a mean of tiles",
    "SSIM: Wang 2004 on the same, Gaussian sigma 1.5 in 11 x 11, data range 1; a mean of tiles",
    "MAE, RMSE: of all cells of all tiles; one member is one draw, not a best guess",
    "CRPS: fair, mean|x - y| - sum|xi - xj| / (2 M (M - 1)) of an ensemble, in its mean's column; "
    "of a single field, as a member or the median is, the MAE",
    f"CRPS of means: the same of {', '.join(map(str, AVERAGED_KM))} km block means",
    "tail CRPS: fair CRPS of max(rate, threshold): what happens above it, over all cells",
    "spread/skill: sqrt((M + 1) / M x mean variance) / RMSE of the mean; 1 is reliable",
    "ranks, in scores.json: cells by the number of members below the truth, ties at random; cells "
    "in which all members are the truth are left out. Flat is reliable",
    "reliability, in scores.json: the share of events among cells in which k of M members are >= "
    "threshold; k / M is reliable",
    "Brier: mean (share of members >= threshold - event)^2 of an ensemble, in its mean's column; "
    "of a single field, of its yes or no",
    "CSI: hits / (hits + misses + false alarms) of rate >= threshold, pooled; 1 is perfect",
    "SSIM, FSS, RAPSD, checkerboard: cells that do not count, under 1 % of a tile, are dry in both",
    "POD, FAR: hits / events, false alarms / forecast events, pooled",
    "bias: cells >= threshold, forecast over truth, pooled; 1 is perfect",
    f"FSS: fractions skill score at {FSS_SHOWN_MM_H} mm/h, windows inside the tile, pooled",
    "RAPSD: radially averaged spectrum of z, no window, log ratio to the truth, a mean of "
    "wavenumbers and tiles; 0 dB is perfect",
    "log spectral distance: root mean square of that ratio over all wavenumbers; a mean of tiles",
    "RAPSD, Hann: RAPSD of tiles less their mean, behind a Hann window. Without one the steps at "
    "tiles' edges are in both spectra and bring their ratio nearer to 0",
    "intensity distance: root mean square of 10 log10(cells, forecast over truth) in 20 classes of "
    f"rate from 1 to 100 mm/h, of which the truth has {LEAST_CELLS} cells or more",
    "p95 .. p99.9, wet fraction: forecast minus truth, dry cells included; wet is >= 0.1 mm/h. "
    "Their intervals are of classes 2 % wide",
    "total: all rain, forecast over truth",
    "consistency: |block mean of the forecast - coarse input|",
    "speckle: mean |z - its 3 x 3 median|, forecast over truth; 1 is as the truth. Dry: where the "
    f"coarse input is below 0.1 mm/h; heavy: from {HEAVY_MM_H:g} mm/h",
    "over-smoothing: 1 - total variation of z, forecast over truth; 0 is as the truth, 1 is flat",
    f"checkerboard: power of what repeats every {PHASE_PX} cells over that of nearby wavenumbers, "
    "less the truth's; 0 dB is as the truth; a mean of tiles",
    "conservative bicubic: with the input's block means, by the step that members end with",
    "dressed bicubic: its coefficients with white noise of the residual's mean and standard "
    "deviation in the training data, subband by subband, no network; then as conservative bicubic",
    "RainFARM: pysteps' defaults (no smoothing kernel), each tile from its own input and what is "
    "around (Rebora et al. 2006); spectral fusion: with the input's own spectrum at the scales it "
    "has (D'Onofrio et al. 2014)",
)

_BASELINES = ("conservative bicubic", "dressed bicubic", "RainFARM")  # that are defined there


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


def shown(label: str) -> bool:
    """Whether a table for people has a line for a score."""
    other_fss = label.startswith("FSS") and not label.startswith(f"FSS {FSS_SHOWN_MM_H} mm/h")
    return not (other_fss or label.startswith(_NOT_SHOWN))


def digits(value: float | None) -> str:
    """A score as tables show it: three decimals, or three digits of what is small; else a dash."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def definitions(forecasts: Sequence[str]) -> list[str]:
    """What each score is, and each baseline that is among the forecasts' names."""
    heads = [line.partition(":")[0] for line in DEFINITIONS]
    return [
        line
        for head, line in zip(heads, DEFINITIONS, strict=True)
        if head not in _BASELINES or any(name.startswith(head) for name in forecasts)
    ]


def bootstrap_line(evaluation: Evaluation) -> str:
    """What the intervals are."""
    draws = evaluation.settings.get("bootstrap_draws", 0)
    if not any(evaluation.intervals.values()):
        return "No intervals: " + ("they need two tiles" if draws else "none were asked for")
    return (
        f"Below each score its 95 % interval: percentiles of {draws} bootstrap draws of the "
        f"{len(evaluation.places)} tiles, seed {evaluation.settings['bootstrap_seed']}; none where "
        "over a tenth of the draws leave a score undefined, as those of few events do. Tiles count "
        "as independent; those of one storm are not quite, so intervals are narrow rather than wide"
    )


def truth_line(truth: Mapping[str, float]) -> str:
    """What the truth has where the table has a forecast's difference to it."""
    return "The truth's " + ", ".join(f"{name} {digits(value)}" for name, value in truth.items())


@dataclass(frozen=True)
class ScoreTable:
    """For rich: a line for each score, a column for each forecast, and the definitions.

    Forecasts that the screen is too narrow for follow in further tables: no number is cut.
    """

    evaluation: Evaluation

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = self.evaluation.rows
        abreast = max(1, (options.max_width - _LABEL_WIDTH) // _FORECAST_WIDTH)
        title = f"{len(self.evaluation.places)} tiles, {self.evaluation.cells} cells"
        for first in range(0, len(rows), abreast):
            yield self._table(title, rows[first : first + abreast])
        names = [row.name for row in self.evaluation.rows]
        below = (truth_line(self.evaluation.truth), bootstrap_line(self.evaluation))
        for line in (*definitions(names), *below):
            yield Text(line, style="dim")

    def _table(self, title: str, rows: Sequence[ForecastRow]) -> Table:
        table = Table(title=title)
        table.add_column("score", max_width=_LABEL_WIDTH - _BORDERS)
        for row in rows:
            table.add_column(row.name, justify="right", min_width=_FORECAST_WIDTH - _BORDERS)
        columns = [row.labelled() for row in rows]
        limits = [self.evaluation.intervals.get(row.name, {}) for row in rows]
        for label in filter(shown, columns[0]):
            cells = []
            for values, low_high in zip(columns, limits, strict=True):
                value = values[label]
                text = Text(digits(value))
                if label in low_high:
                    text.append(f"\n{' '.join(map(digits, low_high[label]))}", style="dim")
                cells.append(text)
            table.add_row(Text(label), *cells)
        return table
