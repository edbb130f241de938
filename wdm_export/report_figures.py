"""The pictures of an evaluation's report, as matplotlib figures.

`Figure` is used directly: no pyplot, no backend switch, no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wdm_export.evaluation import Evaluation, ForecastRow
from wdm_export.intensity import INTENSITY_EDGES_MM_H
from wdm_export.methods import REFERENCE
from wdm_export.metrics import THRESHOLDS_MM_H
from wdm_export.probability import SPREAD_EDGES_MM_H
from wdm_export.scores import EnsembleMetrics, EnsembleTileScores
from wdm_runtime.plot import RATE_LEVELS_MM_H, probability_scale, rate_scale
from wdm_runtime.skill import BANDS_KM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RELIABILITY_MM_H = (1.0, 5.0, 20.0)
LEAST_CELLS = 30  # a frequency from fewer is no more than noise
_TRUTH, _MEMBER, _MEAN, _REFERENCE = "#111827", "#c2410c", "#1d4ed8", "#6b7280"
_OTHERS = ("#059669", "#9333ea", "#ca8a04", "#0891b2", "#be185d", "#65a30d", "#7c3aed", "#b45309")
_GRID: dict[str, Any] = {"color": "#e5e7eb", "linewidth": 0.8}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _dress(axes: Axes, x: str, y: str, title: str = "") -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize="medium", fontweight="bold")
    axes.grid(**_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, where it covers no line."""
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small",
        frameon=False,
    )  # fmt: skip


def styles(rows: Sequence[ForecastRow]) -> dict[str, dict[str, Any]]:
    """Line styles by forecast: a colour for each method, broken for its median and mean."""
    others = iter(_OTHERS * len(rows))
    colours = {REFERENCE: _REFERENCE, "one member": _MEMBER}
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        method, _, kind = row.name.rpartition(", ")
        middle = kind.partition(" of ")[0]
        summary = not method and middle in ("mean", "median")
        if not summary and (method or row.name) not in colours:
            colours[method or row.name] = next(others)
        own = summary or row.name in (REFERENCE, "one member")
        broken = {"median": ":"} | ({"mean": "--"} if method else {})
        found[row.name] = {
            "color": _MEAN if summary else colours[method or row.name],
            "linewidth": 2.2 if own else 1.3,
            "linestyle": broken.get(middle, "-"),
            "label": row.name,
        }
    return found


def maps(fields: dict[str, npt.NDArray[np.float32]]) -> Figure:
    """A tile's fields (y, x) side by side; one called a probability has colours of its own."""
    from matplotlib.cm import ScalarMappable

    columns = 4
    figure = _figure(12.4, 6.6)
    panels = list(figure.subplots(2, columns).ravel())
    rates = [name for name in fields if not name.startswith("probability")]
    chances = [name for name in fields if name.startswith("probability")]
    upper = [name for name in rates if not name.startswith(("member", "mean"))]
    lower = [name for name in rates if name not in upper] + chances
    colours, norm = rate_scale()
    chance = None
    for row, names in enumerate((upper, lower)):
        for column in range(columns):
            axes = panels[row * columns + column]
            axes.set_axis_off()
            if column >= len(names):
                continue
            name = names[column]
            shown = np.ma.masked_invalid(fields[name])
            if name in chances:
                chance = axes.imshow(shown, cmap=probability_scale(), vmin=0, vmax=1)
            else:
                axes.imshow(shown, cmap=colours, norm=norm, interpolation="nearest")
            axes.set_title(name[0].upper() + name[1:], fontsize="medium")
            axes.set_axis_on()
            axes.set(xticks=[], yticks=[])
    spare = panels[len(upper)]
    bar = figure.colorbar(
        ScalarMappable(norm, colours),
        cax=spare.inset_axes((0.06, 0.05, 0.1, 0.9)),
        extend="max",
        ticks=RATE_LEVELS_MM_H,
    )
    bar.ax.set_yticklabels([f"{level:g}" for level in RATE_LEVELS_MM_H])
    bar.set_label("mm/h")
    if chance is not None:
        bar = figure.colorbar(chance, cax=spare.inset_axes((0.62, 0.05, 0.1, 0.9)))
        bar.set_label("share of members")
    return figure


def of_ensembles(
    rows: Sequence[ForecastRow],
) -> list[tuple[ForecastRow, EnsembleMetrics, EnsembleTileScores]]:
    """The rows of ensembles, each with what it alone has."""
    return [
        (row, row.ensemble, row.ensemble_tiles)
        for row in rows
        if row.ensemble is not None and row.ensemble_tiles is not None
    ]


def reliability(rows: Sequence[ForecastRow], look: dict[str, dict[str, Any]]) -> Figure:
    """Observed frequency against forecast probability, with how often each was forecast below."""
    figure = _figure(10.5, 4.6)
    panels = figure.subplots(2, len(RELIABILITY_MM_H), height_ratios=(3, 1), sharex=True)
    for column, threshold in enumerate(RELIABILITY_MM_H):
        axes, below = panels[:, column]
        axes.plot((0, 1), (0, 1), color="#9ca3af", linewidth=1)
        for row, _, tiles in of_ensembles(rows):
            counts = tiles.reliability.sum(axis=0)[THRESHOLDS_MM_H.index(threshold)]
            cells, events = counts.T
            enough = cells >= LEAST_CELLS
            chance = np.linspace(0, 1, len(cells))
            frequency = events[enough] / cells[enough]
            axes.plot(chance[enough], frequency, marker="o", markersize=4, **look[row.name])
            below.plot(chance, np.where(cells > 0, cells, np.nan), marker=".", **look[row.name])
            axes.axhline(events.sum() / cells.sum(), color="#d1d5db", linestyle=":")
        _dress(axes, "", "observed frequency" if column == 0 else "", f"≥ {threshold:g} mm/h")
        _dress(below, "forecast probability", "cells" if column == 0 else "")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        below.set_yscale("log")
    _legend_below(figure, panels[0, 0])
    return figure


def ranks(rows: Sequence[ForecastRow], look: dict[str, dict[str, Any]]) -> Figure:
    """Share of cells at each rank of the truth, over that of a flat histogram."""
    figure = _figure(5.1, 3.6)
    axes = figure.subplots()
    for row, ensemble, _ in of_ensembles(rows):
        counts = np.array(ensemble.rank_histogram)
        flat = counts / counts.sum() * counts.size
        if look[row.name]["color"] == _MEAN:
            axes.bar(range(counts.size), flat, width=0.86, color=_MEAN, label=row.name)
        else:
            axes.plot(range(counts.size), flat, marker="o", markersize=3, **look[row.name])
    axes.axhline(1, color="#111827", linewidth=1)
    _dress(axes, "members below the truth, ties at random", "cells / cells if flat", "Ranks")
    axes.legend(fontsize="x-small", frameon=False)
    return figure


def spread_skill(rows: Sequence[ForecastRow], look: dict[str, dict[str, Any]]) -> Figure:
    """RMSE of the mean against spread, in classes of spread."""
    figure = _figure(5.1, 3.6)
    axes = figure.subplots()
    ends = (SPREAD_EDGES_MM_H[0] / 3, SPREAD_EDGES_MM_H[-1] * 3)
    axes.plot(ends, ends, color="#9ca3af", linewidth=1)
    for row, ensemble, tiles in of_ensembles(rows):
        cells, variance, error = tiles.spread.sum(axis=0).T
        members = len(ensemble.rank_histogram) - 1
        enough = cells >= LEAST_CELLS
        spread = np.sqrt((members + 1) / members * variance[enough] / cells[enough])
        rmse = np.sqrt(error[enough] / cells[enough])
        axes.plot(spread, rmse, marker="o", markersize=4, **look[row.name])
    axes.set(xscale="log", yscale="log")
    _dress(axes, "spread [mm/h]", "RMSE of the mean [mm/h]", "Spread and skill")
    axes.legend(fontsize="x-small", frameon=False)
    return figure


def spectra(evaluation: Evaluation, look: dict[str, dict[str, Any]]) -> Figure:
    """Mean radial spectra of z, and the mean over the tiles of each one's ratio to the truth's."""
    figure = _figure(10.5, 4.3)
    power, ratio = figure.subplots(1, 2)
    found = evaluation.mean_spectra()
    power.plot(found.wavelength_km, found.truth, color=_TRUTH, linewidth=2.2, label="truth")
    ratio.axhline(0, color=_TRUTH, linewidth=1.5)
    for name, values in found.power.items():
        power.plot(found.wavelength_km, values, **look[name])
        ratio.plot(found.wavelength_km, found.ratio_db[name], **look[name])
    for axes in (power, ratio):
        axes.set_xscale("log", base=2)
        axes.set_xlim(64, 2)
        axes.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
        for low, high in BANDS_KM[::2]:
            axes.axvspan(low, high, color="#f3f4f6", zorder=0)
    power.set_yscale("log")
    inside = found.truth[found.wavelength_km <= 64]
    power.set_ylim(inside.min() / 8, inside.max() * 3)
    ratio.set_ylim(-12, 6)
    _dress(power, "wavelength [km]", "power of z", "Spectra")
    _dress(ratio, "wavelength [km]", "over the truth's [dB]", "Spectra over the truth's")
    _legend_below(figure, power)
    return figure


def thresholds(evaluation: Evaluation, look: dict[str, dict[str, Any]]) -> Figure:
    """CSI and frequency bias over the threshold, and how often each intensity occurs."""
    figure = _figure(10.5, 4.3)
    csi, bias, intensity = figure.subplots(1, 3)
    middles = np.sqrt(INTENSITY_EDGES_MM_H[1:] * INTENSITY_EDGES_MM_H[:-1])
    for row in evaluation.rows:
        csi.plot(THRESHOLDS_MM_H, list(row.metrics.csi.values()), marker=".", **look[row.name])
        bias.plot(THRESHOLDS_MM_H, list(row.metrics.bias.values()), marker=".", **look[row.name])
        forecast, truth = row.tiles.intensity.sum(axis=0)
        intensity.plot(middles, np.where(forecast > 0, forecast, np.nan), **look[row.name])
    intensity.plot(middles, np.where(truth > 0, truth, np.nan), color=_TRUTH, label="truth")
    ticks = [0.1, 1, 5, 20, 50]
    for axes in (csi, bias, intensity):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    bias.set_yscale("log", base=2)
    bias.set_ylim(0.25, 4)
    bias.set_yticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
    bias.axhline(1, color=_TRUTH, linewidth=1)
    intensity.set_yscale("log")
    _dress(csi, "threshold [mm/h]", "", "CSI")
    _dress(bias, "threshold [mm/h]", "", "Frequency bias")
    _dress(intensity, "rate [mm/h]", "", "Cells in each tenth of a decade")
    _legend_below(figure, intensity)
    return figure
