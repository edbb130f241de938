"""A picture of what `wdm-run bench` found, drawn with matplotlib's `Figure` alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wdm_runtime.bench.report import BenchReport
from wdm_runtime.picture import save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE_INCHES = (11.5, 5.0)
# Told apart by lightness as well as by hue; the same model has the same colour in both panels.
_COLOURS = ("#1b6ca8", "#e08e2b", "#3f9b6f", "#8d4b9f", "#5b5b5b")


def draw_chart(report: BenchReport, path: Path) -> None:
    """Time a tile by engine and batch, and a member of one tile by engine and model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    left, right = figure.subplots(1, 2)
    _batches(left, report)
    _models(right, report)
    figure.suptitle(f"{report.bundle} on {report.machine}", fontsize=11)
    if report.verdict:
        figure.supxlabel(report.verdict, fontsize=8, wrap=True)
    save_picture(figure, path)


def _batches(axes: Axes, report: BenchReport) -> None:
    own = [row for row in report.steps if row.model == report.bundle]
    engines = list(dict.fromkeys((row.engine, row.precision) for row in own))
    for engine in engines:
        rows = [row for row in own if (row.engine, row.precision) == engine]
        batches = [row.batch for row in rows]
        axes.plot(batches, [row.tile_ms for row in rows], "o-", label=" ".join(engine))
    axes.set_xscale("log", base=2)
    sizes = sorted({row.batch for row in own})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(xlabel="tiles a call", ylabel="ms a tile and step", title="Engines and batches")
    axes.set_ylim(bottom=0)
    _finish(axes, bool(own))


def _models(axes: Axes, report: BenchReport) -> None:
    rows = report.end_to_end
    engines = list(dict.fromkeys((row.engine, row.precision) for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    height = 0.8 / max(1, len(models))
    for number, model in enumerate(models):
        mine = [row for row in rows if row.model == model]
        places = [engines.index((r.engine, r.precision)) + height * number for r in mine]
        colour = _COLOURS[number % len(_COLOURS)]
        bars = axes.barh(places, [r.p50_s for r in mine], 0.9 * height, color=colour, label=model)
        axes.bar_label(bars, [f"{r.p50_s:.2f} s" for r in mine], padding=3, fontsize=8)
    centre = height * (len(models) - 1) / 2
    axes.set_yticks([i + centre for i in range(len(engines))], [" ".join(e) for e in engines])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(
        xlabel="s a member of one tile",
        title=f"Models, end to end, {report.steps_a_member} steps",
    )
    _finish(axes, bool(rows))


def _finish(axes: Axes, any_data: bool) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    if any_data:
        axes.legend(frameon=False, fontsize=8)
