"""The result of an evaluation as people read it: definitions and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from wdm_export.bootstrap import LEAST_TILES
from wdm_export.evaluation import FSS_SHOWN_MM_H, Evaluation, ForecastRow
from wdm_export.intensity import LEAST_CELLS
from wdm_export.metrics import AVERAGED_KM
from wdm_export.texture import HEAVY_MM_H, PHASE_PX
from wdm_runtime.skill import Z_RANGE

# Characters of a column on a screen: of two numbers of six, and of most labels; lines and spaces.
_FORECAST_WIDTH, _LABEL_WIDTH, _BORDERS = 16, 30, 3

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
        return "No intervals: " + (
            f"they need {LEAST_TILES} tiles" if draws else "none were asked for"
        )
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
