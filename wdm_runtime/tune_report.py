"""How `wdm-run tune` shows what it found: a table, the suggested presets, and a chart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from wdm_runtime.diffusion import GRIDS
from wdm_runtime.picture import save_picture
from wdm_runtime.presets import Preset
from wdm_runtime.skill import BANDS_KM
from wdm_runtime.tune import FAST_STEPS, LARGEST_BAND_DB, SPREAD_SKILL, Trial, Tuning

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = dict(zip(GRIDS, ("-", "--", ":"), strict=True))
_SIZE_INCHES = (11.5, 7.5)


def tune_tables(tuning: Tuning) -> Iterator[RenderableType]:
    """The trials, cheapest first, and what they suggest."""
    yield Text(
        f"{tuning.bundle} on {tuning.engine}: {tuning.members} members on {tuning.tiles} tiles"
    )
    table = Table(box=None, padding=(0, 1), collapse_padding=True)
    table.add_column("sampler", no_wrap=True)
    bands = ", ".join(f"{low}-{high}" for low, high in BANDS_KM)
    scores = ("CRPS /\nbicubic", "spread/\nskill", f"spectrum (dB) in\n{bands} km")
    # A column that says the same of all would cost the others their room.
    grids = len({trial.way.time_grid for trial in tuning.trials}) > 1
    ways = (*(["grid"] if grids else []), "steps", "noise")
    for name in (*ways, "s a\nmember", *scores, "p99.9 /\ntruth"):
        table.add_column(name, justify="right")
    names: dict[Preset, str] = {}
    for name, way in tuning.suggested.items():
        names[way] = f"{names[way]}, {name}" if way in names else name
    for trial in sorted(tuning.trials, key=lambda t: (t.way.steps, t.crps_mm_h)):
        table.add_row(*_cells(trial, grids), style="bold green" if trial.way in names else None)
    yield table
    for way, name in names.items():
        yield Text(f"{name}: {way}", style="bold")
    if tuning.fast_over_best is not None:
        yield Text(f"CRPS of fast over best: {tuning.fast_over_best:.3f}", style="bold")
    yield Text(
        f"Lowest CRPS of the trials within {LARGEST_BAND_DB:g} dB in every band and with spread/"
        f"skill of {SPREAD_SKILL[0]:g} to {SPREAD_SKILL[1]:g}, if there are any; fast: at most "
        f"{FAST_STEPS} steps; of those within half a percent the one with fewest.",
        style="dim",
    )


def _cells(trial: Trial, grids: bool) -> tuple[str, ...]:
    return (
        trial.way.sampler,
        *([trial.way.time_grid] if grids else []),
        str(trial.way.steps),
        f"{trial.way.noise_scale:g}",
        f"{trial.seconds:.2f}",
        f"{trial.crps_ratio:.3f}",
        f"{trial.spread_skill:.2f}",
        " ".join(f"{db:+.1f}" for db in trial.bands_db),
        f"{trial.extremes:.2f}",
    )


def draw_tuning(tuning: Tuning, path: Path) -> None:
    """CRPS, spread/skill, spectrum and extremes against network calls."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    panels = figure.subplots(2, 2)
    # A line for each way but for its steps.
    kinds: dict[Preset, list[Trial]] = {}
    for trial in sorted(tuning.trials, key=lambda t: t.way.steps):
        kinds.setdefault(replace(trial.way, steps=FAST_STEPS), []).append(trial)
    for number, (kind, trials) in enumerate(kinds.items()):
        calls = [t.way.steps for t in trials]
        label = str(kind).replace(f", {FAST_STEPS} steps", "")
        values = (
            [t.crps_ratio for t in trials],
            [t.spread_skill for t in trials],
            [max(t.bands_db, key=abs) for t in trials],
            [t.extremes for t in trials],
        )
        for axes, series in zip(panels.flat, values, strict=True):
            axes.plot(
                calls, series, "o", ls=_LINES[kind.time_grid], color=f"C{number % 10}",
                label=label, ms=4,
            )  # fmt: skip
    names = (
        ("CRPS / bicubic's MAE", None),
        ("spread / skill", 1.0),
        ("largest spectral error (dB)", 0.0),
        ("p99.9 / truth", 1.0),
    )
    for axes, (name, target) in zip(panels.flat, names, strict=True):
        _finish(axes, name, target)
    panels.flat[0].legend(fontsize=8)
    title = f"{tuning.bundle}: {tuning.members} members on {tuning.tiles} tiles"
    figure.suptitle(title, fontsize=11)
    save_picture(figure, path)


def _finish(axes: Axes, name: str, target: float | None) -> None:
    axes.set(xlabel="network calls a member", ylabel=name)
    axes.grid(alpha=0.3)
    if target is not None:
        axes.axhline(target, color="0.4", lw=1, ls="--")
