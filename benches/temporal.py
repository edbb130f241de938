"""How long should a member's noise live, that members evolve as rain does?

Truth and members are compared by their anomalies, z(rate) - z(interpolated input): what the coarse
input does not say. Their correlation between frames some minutes apart, at fixed places, is the
truth's own for the right --noise-decorrelation. Runs on the wettest window of the files' middle
frame, cut from all of them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from wdm_export.coarsen import coarsen
from wdm_runtime.consistency import DEFAULT_CONSISTENCY
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import block_mean, interpolate
from wdm_runtime.io import read_field
from wdm_runtime.machine import machine
from wdm_runtime.presets import chosen
from wdm_runtime.transform import PrecipTransform

Array = npt.NDArray[np.float32]

LAGS_MIN = (2, 4, 10, 20)
DECORRELATIONS_MIN = (0.0, 5.0, 10.0, 20.0, 40.0, 60.0)
CELLS = 28  # one usual tile of 288 fine cells, about 280 km wide: storms stay inside for an hour
TABLE_WIDTH = 100


@dataclass(frozen=True)
class Row:
    """Correlation by lag, None where no two frames are so far apart, and the anomalies' size."""

    name: str
    correlation: dict[int, float | None]
    rms: float


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="1 km truth by time")
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--cells", type=int, default=CELLS, help="window's edge in coarse cells")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: the bundle's own preset")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the table there too")
    options = parser.parse_args()
    for name, least in (("cells", 2), ("members", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} got {getattr(options, name)}; expected at least {least}")
    return options


def wettest(coarse: npt.NDArray[np.float64], size: int) -> tuple[int, int]:
    """First row and column of the size x size window with most rain and nothing missing.

    Raises
    ------
    InputError
        The field is smaller than the window, or no window has rain and nothing missing.
    """
    if min(coarse.shape) < size:
        raise InputError(
            f"The coarse field has {coarse.shape} cells; expected {size} along each axis. "
            "Set a smaller --cells."
        )
    windows = np.lib.stride_tricks.sliding_window_view(coarse, (size, size))
    total = np.nan_to_num(windows.sum(axis=(2, 3)), nan=-1.0)
    if total.max() <= 0:
        raise InputError(
            f"The middle frame has no {size} x {size} coarse cells with rain and nothing missing; "
            "expected some. Hand in another hour, or set a smaller --cells."
        )
    row, column = np.unravel_index(total.argmax(), total.shape)
    return int(row), int(column)


def read_window(files: Sequence[Path], size: int, factor: int) -> PrecipField:
    """The frames of all files within one window, fine, one after the other in time."""
    middle = read_field(files[len(files) // 2])
    row, column = (factor * n for n in wettest(block_mean(middle.frame(0), factor), size))
    window = slice(row, row + size * factor), slice(column, column + size * factor)
    frames = [
        (time, field.crop(*window).frame(index))
        for field in map(read_field, files)
        for index, time in enumerate(field.valid_times)
    ]
    times, rates = zip(*sorted(frames, key=lambda frame: frame[0]), strict=True)
    return PrecipField(np.stack(rates), middle.crop(*window).grid, times)


def baseline(coarse: PrecipField, factor: int, transform: PrecipTransform) -> Array:
    """z of the interpolated input, (time, y, x)."""
    return np.stack([transform.forward(interpolate(rate, factor)) for rate in coarse.load()])


def score(name: str, anomalies: list[Array], times: Sequence[str]) -> Row:
    """Correlations pooled over members, cells and all pairs of frames a lag apart.

    Not centred: where input and rate are both dry an anomaly is 0 and adds nothing.
    """
    minutes = np.array(times, dtype="datetime64[s]").astype(np.int64) / 60
    found: dict[int, float | None] = {}
    for lag in LAGS_MIN:
        early, late = np.nonzero(minutes[None] - minutes[:, None] == lag)
        if not early.size:
            found[lag] = None
            continue
        a, b = (
            np.concatenate([np.ravel(anomaly[frames]) for anomaly in anomalies]).astype(np.float64)
            for frames in (early, late)
        )
        both = np.isfinite(a) & np.isfinite(b)
        a, b = a[both], b[both]
        found[lag] = float(a @ b / np.sqrt((a @ a) * (b @ b)))
    rms = np.sqrt(np.mean([np.nanmean(np.square(a, dtype=np.float64)) for a in anomalies]))
    return Row(name, found, float(rms))


def member_rows(
    downscaler: Downscaler, coarse: PrecipField, smooth: Array, options: argparse.Namespace
) -> list[Row]:
    """One row for each decorrelation time."""
    transform, rows = downscaler.manifest.transform, []
    for minutes in DECORRELATIONS_MIN:
        anomalies = [np.empty_like(smooth) for _ in range(options.members)]
        for sample in downscaler.downscale(
            coarse,
            options.members,
            options.seed,
            options.steps,
            noise_decorrelation_min=minutes,
        ):
            z = transform.forward(sample.rate_mm_h)
            anomalies[sample.member][sample.time_index] = z - smooth[sample.time_index]
        rows.append(score(f"member, {minutes:g} min", anomalies, coarse.valid_times))
    return rows


def distance(row: Row, truth: Row) -> float:
    """Root mean square difference of two rows' correlations."""
    pairs = zip(row.correlation.values(), truth.correlation.values(), strict=True)
    gaps = [a - b for a, b in pairs if a is not None and b is not None]
    return float(np.sqrt(np.mean(np.square(gaps))))


def show(truth: Row, members: list[Row], title: str, console: Console) -> None:
    table = Table(
        title=title,
        caption="Correlation of anomalies in z at fixed places, by minutes between frames. RMS: "
        "the anomalies' size. from truth: root mean square difference of the correlations.",
    )
    table.add_column("anomaly")
    for heading in (*(f"{lag} min" for lag in LAGS_MIN), "RMS", "from truth"):
        table.add_column(heading, justify="right")
    for row in (truth, *members):
        cells = ("-" if v is None else f"{v:.3f}" for v in row.correlation.values())
        gap = "" if row is truth else f"{distance(row, truth):.3f}"
        table.add_row(row.name, *cells, f"{row.rms:.3f}", gap)
    console.print(table)
    best = min(members, key=lambda row: distance(row, truth))
    console.print(f"Nearest to the truth: {best.name}.", highlight=False)


def main() -> None:
    options = arguments()
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console = Console(width=TABLE_WIDTH)
    with Downscaler.open(options.bundle, options=EngineOptions(options.threads)) as downscaler:
        fine = read_window(options.files, options.cells, downscaler.factor)
        coarse = coarsen(fine, downscaler.factor)
        transform = downscaler.manifest.transform
        smooth = baseline(coarse, downscaler.factor, transform)
        truth = score("truth", [transform.forward(fine.load()) - smooth], fine.valid_times)
        if all(value is None for value in truth.correlation.values()):
            raise InputError(
                f"{len(fine.valid_times)} frames have no two {', '.join(map(str, LAGS_MIN))} "
                "minutes apart; expected some. Hand in successive files."
            )
        rows = member_rows(downscaler, coarse, smooth, options)
        way = chosen(downscaler.manifest.presets, steps=options.steps)
        facts = {
            "device": machine(),
            "engine": f"{downscaler.engine.version}, {downscaler.choice.precision}",
            "bundle": downscaler.manifest.name,
            "frames": f"{len(fine.valid_times)} from {fine.valid_times[0]}",
            "ensemble": f"{options.members} members, {way}, seed {options.seed}, "
            f"consistency {DEFAULT_CONSISTENCY}",
            "load": f"{os.getloadavg()[0]:.1f}",
        }
    console.print("; ".join(f"{key}: {value}" for key, value in facts.items()), highlight=False)
    show(truth, rows, f"{options.cells} x {options.cells} coarse cells", console)
    if options.json:
        content = {**facts, "rows": [asdict(row) for row in (truth, *rows)]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
