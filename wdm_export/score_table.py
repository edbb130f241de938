"""The result of an evaluation as people and JSON read it: labels, definitions, table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from wdm_export.metrics import BANDS_KM, Z_RANGE
from wdm_export.scores import EnsembleMetrics, EnsembleTileScores, Metrics, TileScores

FSS_SHOWN_MM_H = "5"
HEADLINE = (
    *("PSNR [dB]", "SSIM", "CSI 0.1 mm/h", "CSI 1 mm/h", "CSI 5 mm/h", "CSI 20 mm/h"),
    *("MAE [mm/h]", "CRPS [mm/h]", "CRPS / bicubic MAE", "spread/skill"),
    *(f"RAPSD {low}-{high} km [dB]" for low, high in BANDS_KM),
    "consistency, mean [mm/h]",
)
DEFINITIONS = (
    f"PSNR: 10 log10(1 / MSE) of z / {Z_RANGE}, z = log10(rate + 0.1) + 1; a mean of tiles",
    "SSIM: Wang 2004 on the same, Gaussian sigma 1.5 in 11 x 11, data range 1; a mean of tiles",
    "MAE, RMSE: of all cells of all tiles; one member is one draw, not a best guess",
    "CRPS: fair, mean|x - y| - sum|xi - xj| / (2 M (M - 1)); of a single field it is the MAE",
    "spread/skill: sqrt((M + 1) / M x mean variance) / RMSE of the mean; 1 is reliable",
    "CSI: hits / (hits + misses + false alarms) of rate >= threshold, pooled; 1 is perfect",
    "bias: cells >= threshold, forecast over truth, pooled; 1 is perfect",
    f"FSS: fractions skill score at {FSS_SHOWN_MM_H} mm/h, windows inside the tile, pooled",
    "RAPSD: radially averaged spectrum of z, log ratio to the truth; 0 dB is perfect",
    "p95 .. p99.9, wet fraction: forecast minus truth, dry cells included; wet is >= 0.1 mm/h",
    "consistency: |block mean of the forecast - coarse input|",
)


@dataclass(frozen=True)
class TilePlace:
    """Where and when a tile was cut: its first cell in the fine field, north first."""

    valid_time: str
    row: int
    column: int


@dataclass(frozen=True)
class ForecastRow:
    """All scores of one forecast, and what each tile added to them.

    ``tiles`` and ``ensemble_tiles`` have the tiles of `Evaluation.places` as leading axis:
    `scores.take` and `scores.pool` make a bootstrap of them. ``ensemble`` is set for the row of
    the ensemble alone.
    """

    name: str
    metrics: Metrics
    tiles: TileScores
    crps_over_bicubic_mae: float
    ensemble: EnsembleMetrics | None = None
    ensemble_tiles: EnsembleTileScores | None = None

    def labelled(self) -> dict[str, float | None]:
        """The scores that tables show, by label; None where one does not apply."""
        m, e = self.metrics, self.ensemble
        return {
            "PSNR [dB]": m.psnr_db,
            "SSIM": m.ssim,
            "MAE [mm/h]": m.mae_mm_h,
            "RMSE [mm/h]": m.rmse_mm_h,
            "CRPS [mm/h]": e.fair_crps_mm_h if e else m.mae_mm_h,
            "CRPS / bicubic MAE": self.crps_over_bicubic_mae,
            "spread/skill": e.spread_skill if e else None,
            **{f"CSI {key} mm/h": value for key, value in m.csi.items()},
            **{f"bias {key} mm/h": value for key, value in m.bias.items()},
            **{f"FSS in {key} km": value for key, value in m.fss[FSS_SHOWN_MM_H].items()},
            **{f"RAPSD {key} km [dB]": value for key, value in m.spectrum_db.items()},
            **{f"p{key} [mm/h]": value for key, value in m.percentile_error_mm_h.items()},
            "wet fraction": m.wet_fraction_error,
            "consistency, mean [mm/h]": m.consistency_mean_mm_h,
            "consistency, max [mm/h]": m.consistency_max_mm_h,
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores of bicubic interpolation, one member and the members' mean, on the same tiles."""

    rows: tuple[ForecastRow, ...]
    places: tuple[TilePlace, ...]
    cells: int
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: tile count, settings, main scores as flat ``rows``, and all in ``metrics``.

        Scores that are undefined or infinite are None.
        """
        rows = [
            {"forecast": row.name, **{key: row.labelled()[key] for key in HEADLINE}}
            for row in self.rows
        ]
        full = {
            row.name: {**asdict(row.metrics), **(asdict(row.ensemble) if row.ensemble else {})}
            for row in self.rows
        }
        content = {**self.settings, "rows": rows, "metrics": full}
        return {"tiles": len(self.places), "cells": self.cells, **_plain(content)}


def _plain(value: Any) -> Any:
    """Nested values as strict JSON has them: no NaN, no infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def render(evaluation: Evaluation) -> Group:
    """A table with a line for each score and a column for each forecast, and the definitions."""
    table = Table(title=f"{len(evaluation.places)} tiles, {evaluation.cells} cells")
    table.add_column("score")
    for row in evaluation.rows:
        table.add_column(row.name, justify="right")
    columns = [row.labelled() for row in evaluation.rows]
    for label in columns[0]:
        values = [column[label] for column in columns]
        table.add_row(
            Text(label), *("-" if v is None or math.isnan(v) else f"{v:.3f}" for v in values)
        )
    return Group(table, *(Text(line, style="dim") for line in DEFINITIONS))
