"""`wdm-run`: downscale a file, show a bundle, plot a result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from wdm_runtime import console, latency
from wdm_runtime.bundle import Bundle
from wdm_runtime.downscale import Downscaler, StepTime
from wdm_runtime.engines import ENGINES, PRECISIONS
from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.io import read_field
from wdm_runtime.io.atomic import check_destination, write_text
from wdm_runtime.latency import Report, StepLatency
from wdm_runtime.samplers import DEFAULT_SAMPLER, DEFAULT_STEPS, SAMPLERS
from wdm_runtime.version import version

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
_SUFFIXES = (".gz", ".grib2", ".grb2", ".nc", ".nc4", ".cdf", ".h5", ".hdf5")


def main() -> None:
    """Entry point."""
    console.run(app)


@app.callback()
def _options(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="-vv: tracebacks")
    ] = 0,
) -> None:
    """Downscale precipitation from 10 km to 1 km with a wavelet diffusion model."""
    console.set_verbosity(verbose)


@app.command()
def infer(
    input: Annotated[Path, typer.Argument(help="Coarse precipitation: CF NetCDF, MRMS GRIB2")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: <stem>_1km.nc in this folder")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Default: the shipped bundle")] = None,
    engine: Annotated[str, typer.Option(help=" | ".join(ENGINES))] = "auto",
    precision: Annotated[str, typer.Option(help=" | ".join(PRECISIONS))] = "auto",
    members: Annotated[int, typer.Option(help="Ensemble size")] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same ensemble")] = 0,
    steps: Annotated[int | None, typer.Option(help=f"Network calls; {DEFAULT_STEPS}")] = None,
    sampler: Annotated[
        str | None, typer.Option(help=f"{' | '.join(SAMPLERS)}; {DEFAULT_SAMPLER}")
    ] = None,
    batch: Annotated[str, typer.Option(help="Tiles an engine call, or auto")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all")] = None,
    variable: Annotated[str | None, typer.Option(help="NetCDF variable to read")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the latency report as JSON")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output")] = False,
    no_pixel_probe: Annotated[
        bool, typer.Option("--no-pixel-probe", help="Do not time the pixel model")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only")] = False,
) -> None:
    """Downscale a file and report the latency."""
    from wdm_runtime.io.writer import EnsembleWriter

    console.out.quiet = quiet
    field = read_field(input, variable)
    target = output or Path.cwd() / f"{_stem(input)}_1km.nc"
    check_destination(target, str(input), overwrite)
    if report:
        check_destination(report, None, overwrite=True)
    with Downscaler.open(bundle, engine, precision, _batch(batch), threads) as downscaler:
        name, calls = sampler or DEFAULT_SAMPLER, DEFAULT_STEPS if steps is None else steps
        choices = {"seed": seed, "members": members, "sampler": name, "steps": calls}
        attributes = _provenance(downscaler, {"input": input.name, **choices})
        times: list[StepTime] = []
        with _progress(quiet) as progress:
            total = members * len(field.valid_times) * calls
            task = progress.add_task(f"{len(field.valid_times)} x {members} samples", total=total)
            samples = downscaler.downscale(
                field, members, seed, calls, name, lambda _: progress.advance(task)
            )
            with EnsembleWriter(
                target, field, downscaler.factor, members, attributes, overwrite
            ) as writer:
                for sample in samples:
                    writer.write(sample.time_index, sample.member, sample.rate_mm_h)
                    times += sample.steps
        wall_s, peak = latency.seconds_since_process_start(), latency.peak_rss_mib()
        result = _report(downscaler, field, members, (name, calls), times, wall_s, peak)
        if not no_pixel_probe:
            result = latency.with_pixel_probe(result, downscaler, threads)
    if report:
        write_text(report, result.to_json())
    console.out.print(_panel(result, target))


def _batch(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit():
        raise InputError(f"--batch got '{text}'; expected a number or 'auto'. Correct it.")
    return int(text)


def _stem(path: Path) -> str:
    name = path.name
    while name.lower().endswith(_SUFFIXES):
        name = name.rpartition(".")[0]
    return name or path.name


def _progress(quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console.err,
        disable=quiet or not console.err.is_terminal,
        transient=True,
    )


def _provenance(downscaler: Downscaler, values: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides the output's values, as global attributes."""
    facts = {
        **values,
        "bundle": downscaler.manifest.name,
        "bundle_sha256": downscaler.bundle.sha256,
        "engine": downscaler.engine.kind,
        "engine_version": downscaler.engine.version,
        "device": downscaler.engine.device,
        "precision": downscaler.precision,
        "version": version(),
    }
    return {f"wdm_{key}": value for key, value in facts.items()}


def _report(
    downscaler: Downscaler,
    field: PrecipField,
    members: int,
    choice: tuple[str, int],
    times: list[StepTime],
    wall_s: float,
    peak: float | None,
) -> Report:
    frames = len(field.valid_times)
    return Report(
        engine=downscaler.engine.kind,
        device=downscaler.engine.device,
        precision=downscaler.precision,
        sampler=choice[0],
        steps=choice[1],
        members=members,
        frames=frames,
        tiles_total=sum(t.tiles for t in times),
        step_latency_ms=StepLatency.of(times[1:]),
        outside_engine_fraction=latency.outside_engine_fraction(times),
        wall_s=round(wall_s, 3),
        probe_s=0.0,
        peak_rss_mib=peak,
        km2_per_s=round(field.grid.area_km2() * members * frames / wall_s, 1),
        pixel_step_latency_ms=None,
        pixel_attention_step_latency_ms=None,
        speedup_vs_pixel=None,
        bundle=downscaler.manifest.name,
        bundle_sha256=downscaler.bundle.sha256,
        versions={
            "wdm-edge": version(),
            "engine": downscaler.engine.version,
            "numpy": np.__version__,
        },
    )


def _panel(report: Report, target: Path) -> Panel:
    rows = Table.grid(padding=(0, 2))
    rows.add_column()
    rows.add_column(overflow="fold")
    rows.add_row("engine", f"{report.engine}, {report.precision}, {report.device}")
    rows.add_row(
        "work",
        f"{report.frames} frames x {report.members} members x {report.steps} steps "
        f"({report.sampler}), {report.tiles_total} tile evaluations",
    )
    step = report.step_latency_ms
    if step:
        rows.add_row(
            "step latency", f"p50 {step.p50:.1f}  p95 {step.p95:.1f}  p99 {step.p99:.1f} ms a tile"
        )
    if report.outside_engine_fraction is not None:
        rows.add_row("outside engine", f"{report.outside_engine_fraction:.1%} of the loop")
    if report.pixel_step_latency_ms:
        rows.add_row(
            "pixel model",
            f"{report.pixel_step_latency_ms:.0f} ms a tile on the same engine: "
            f"this one is {report.speedup_vs_pixel:.1f} x faster",
        )
    memory = f", peak memory {report.peak_rss_mib:.0f} MiB" if report.peak_rss_mib else ""
    rows.add_row("total", f"{report.wall_s:.1f} s, {report.km2_per_s:,.0f} km2/s{memory}")
    rows.add_row("output", os.path.relpath(target))
    return Panel(rows, title=f"wdm-run {report.bundle}", expand=False)


@app.command()
def info(
    bundle: Annotated[Path | None, typer.Argument(help="Default: the shipped bundle")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest as JSON")] = False,
) -> None:
    """Show a bundle after checking all its files."""
    opened = Bundle.open(bundle)
    opened.verify()
    manifest = opened.manifest
    if as_json:
        values = {**json.loads(manifest.to_json()), "sha256": opened.sha256}
        typer.echo(json.dumps(values, indent=1))
        return
    table = Table(title=f"{manifest.name} ({opened.path})", show_header=False)
    wavelet, training = manifest.wavelet, manifest.training
    table.add_row("sha256", opened.sha256)
    table.add_row("licence", manifest.licence)
    table.add_row("wavelet", f"{wavelet.name}, {wavelet.levels} levels")
    table.add_row("factor, tile", f"{manifest.factor}, {manifest.tile_px} x {manifest.tile_px} px")
    transform = manifest.transform
    table.add_row("transform", f"{transform.name}, dry below {transform.dry_threshold_mm_h} mm/h")
    schedule = manifest.schedule
    ends = f"log SNR {schedule.logsnr_start:g} to {schedule.logsnr_end:g}"
    table.add_row("schedule", f"{schedule.name}, {ends}, predicts {manifest.prediction}")
    table.add_row("training", f"{training.get('steps')} steps, {training.get('seconds')} s")
    for role, entry in manifest.graphs.items():
        table.add_row(role, f"{entry.file}, {entry.bytes / 1e6:.1f} MB, sha256 {entry.sha256[:12]}")
    console.out.print(table)


@app.command()
def plot(
    output: Annotated[Path, typer.Argument(help="A file that 'wdm-run infer' wrote")],
    figure: Annotated[Path, typer.Option("-o", "--figure", help="PNG, PDF or SVG to write")],
    coarse: Annotated[Path | None, typer.Option("--input", help="The coarse input file")] = None,
    time: Annotated[int, typer.Option(help="Frame number from 0")] = 0,
    member: Annotated[int, typer.Option(help="Member to show")] = 0,
    threshold: Annotated[float, typer.Option(help="Rate for the probability, mm/h")] = 5.0,
) -> None:
    """Draw the coarse input, one member, the ensemble mean and a probability."""
    from wdm_runtime.plot import plot_ensemble

    plot_ensemble(output, figure, coarse, time, member, threshold)
    console.out.print(f"Wrote {figure}")
