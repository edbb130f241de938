"""`wdm-run`: downscale a file, make one again, show a bundle, plot a result."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from wdm_runtime import cli_bench, cli_engines, cli_tune, console, job, latency, panels
from wdm_runtime.bundle import Bundle
from wdm_runtime.cli_options import (
    BatchOption,
    BuildOption,
    BundleOption,
    FusedOption,
    KeyOption,
    QuietOption,
    ThreadsOption,
    check_report,
    engine_options,
)
from wdm_runtime.consistency import DEFAULT_CONSISTENCY, MODES
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines import AUTO, ENGINES, PRECISIONS, has_step, select, step_pays
from wdm_runtime.errors import InputError
from wdm_runtime.io.atomic import exit_on_signals, write_text
from wdm_runtime.io.reader import READ_TIMEOUT_S, ReaderProcess
from wdm_runtime.plan import Plan, parse_bytes
from wdm_runtime.settings import Settings
from wdm_runtime.shared_options import (
    AccumulationOption,
    NoiseScaleOption,
    PresetOption,
    SamplerOption,
    StepsOption,
    TimeGridOption,
    VariableOption,
    VersionOption,
)
from wdm_runtime.signing import required_key
from wdm_runtime.statistics import StatisticsSpec
from wdm_runtime.stepping import StepTime
from wdm_runtime.suspect import DEFAULT_POLICY, POLICIES

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.command()(cli_engines.build_engine)
app.command()(cli_engines.doctor)
app.command("selftest")(cli_engines.run_selftest)
app.command()(cli_bench.bench)
app.command("tune")(cli_tune.run_tune)
_SUFFIXES = (".gz", ".grib2", ".grb2", ".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".hdf", ".zarr")

_QUANTILES, _THRESHOLDS = (
    ",".join(f"{value:g}" for value in values)
    for values in (StatisticsSpec.quantiles, StatisticsSpec.thresholds_mm_h)
)

MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        help="Of this process, for example 2GiB, and as much again of the one that reads; default: "
        "what is free",
    ),
]


def main() -> None:
    """Entry point."""
    with exit_on_signals():
        console.run(app)


@app.callback()
def _options(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="-vv: tracebacks of errors")
    ] = 0,
    version: VersionOption = False,
) -> None:
    """Downscale precipitation from 10 km to 1 km with a wavelet diffusion model."""
    console.set_verbosity(verbose)


@app.command()
def infer(
    input: Annotated[
        Path, typer.Argument(help="Coarse precipitation: NetCDF, GRIB2, ODIM_H5, Zarr")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="NetCDF, .zarr or .grib2; default: <stem>_1km.nc in the current folder",
        ),
    ] = None,
    bundle: BundleOption = None,
    require_signature: KeyOption = None,
    engine: Annotated[str, typer.Option(help=" | ".join(ENGINES))] = AUTO,
    precision: Annotated[str, typer.Option(help=" | ".join(PRECISIONS))] = AUTO,
    members: Annotated[int, typer.Option(help="Ensemble size")] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same ensemble")] = 0,
    preset: PresetOption = None,
    steps: StepsOption = None,
    sampler: SamplerOption = None,
    noise_scale: NoiseScaleOption = None,
    time_grid: TimeGridOption = None,
    consistency: Annotated[
        str | None,
        typer.Option(help=f"Block means: {' | '.join(MODES)}; default: {DEFAULT_CONSISTENCY}"),
    ] = None,
    noise_decorrelation: Annotated[
        float,
        typer.Option(help="Minutes over which a member's noise changes; 0: frames are independent"),
    ] = 0.0,
    variable: VariableOption = None,
    time: Annotated[
        str | None,
        typer.Option(
            help="A time in UTC or its beginning (2022-08-09T15), a range A/B, or a number: 0 is "
            "the first, -1 the last"
        ),
    ] = None,
    bbox: Annotated[
        str | None,
        typer.Option(
            help="W,S,E,N in the grid's units; snaps outward to cells that are whole coefficients"
        ),
    ] = None,
    accumulation: AccumulationOption = None,
    assume_factor: Annotated[
        bool, typer.Option("--assume-factor", help="Take any grid spacing for the model's")
    ] = False,
    units: Annotated[
        str | None,
        typer.Option(help="Of the output, for example 'mm h-1'; default: the input's"),
    ] = None,
    stats: Annotated[
        str, typer.Option(help=f"Statistics over members: {' | '.join(job.STATS)}")
    ] = "none",
    quantiles: Annotated[
        str | None, typer.Option(help=f"For --stats; default: {_QUANTILES}")
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(help=f"For --stats, mm/h; default: {_THRESHOLDS}")
    ] = None,
    on_suspect: Annotated[
        str | None,
        typer.Option(
            help=f"Members that cannot be true: {' | '.join(POLICIES)}; default: {DEFAULT_POLICY}"
        ),
    ] = None,
    max_memory: MemoryOption = None,
    read_timeout: Annotated[
        float, typer.Option(help="Seconds that reading the input may make no progress")
    ] = READ_TIMEOUT_S,
    batch: BatchOption = None,
    threads: ThreadsOption = None,
    build: BuildOption = True,
    fused_step: FusedOption = None,
    report: Annotated[Path | None, typer.Option(help="Write the latency report as JSON")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output")] = False,
    no_pixel_probe: Annotated[
        bool, typer.Option("--no-pixel-probe", help="Do not time the pixel model")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Downscale a file and report the latency."""
    console.out.quiet = quiet
    max_bytes = _bytes(max_memory)
    reader = ReaderProcess(max_bytes, read_timeout, "--read-timeout")
    reader.start()  # now, to be ready when it is asked
    settings = Settings(
        members=members,
        seed=seed,
        steps=steps,
        sampler=sampler,
        noise_scale=noise_scale,
        time_grid=time_grid,
        preset=preset,
        consistency=consistency,
        noise_decorrelation_min=noise_decorrelation,
        variable=variable,
        accumulation=accumulation,
        time=time,
        bbox=bbox,
        assume_factor=assume_factor,
        units=units,
        stats=stats,
        quantiles=quantiles,
        thresholds=thresholds,
        on_suspect=on_suspect,
    )
    if stats == "none" and (quantiles or thresholds):
        raise InputError(
            f"Got --{'quantiles' if quantiles else 'thresholds'}, but --stats is none; expected "
            "also or only with it. Add --stats also."
        )
    target = output or Path(f"{_stem(input)}_1km.nc")
    opened = Bundle.open(bundle, require_signature)
    settings = job.settled(settings, opened.manifest.presets)
    coarse = job.load(input, settings, opened.manifest, reader)
    job.check(coarse, target, settings, opened.manifest, overwrite)
    check_report(report, opened, require_signature, input, target)
    options = engine_options(batch, threads, build, quiet, fused_step)
    with reader, Downscaler.open(opened, engine, precision, options) as downscaler:
        facts = job.provenance(downscaler, input, shlex.join(["wdm-run", *sys.argv[1:]]))
        with _Progress(downscaler, quiet) as progress:
            outcome = job.run(
                downscaler,
                coarse,
                target,
                settings,
                facts,
                overwrite,
                max_bytes,
                progress.on_plan,
                progress.on_step,
            )
        result = latency.report_of(downscaler, outcome)
        if not no_pixel_probe:
            result = latency.with_pixel_probe(result, downscaler, options)
    if report:
        write_text(report, result.to_json())
    console.out.print(panels.latency_panel(result, target))


@app.command()
def replay(
    output: Annotated[Path, typer.Argument(help="NetCDF or Zarr that 'wdm-run infer' wrote")],
    input: Annotated[
        Path | None, typer.Option("--input", help="Default: the input it names")
    ] = None,
    bundle: BundleOption = None,
    require_signature: KeyOption = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="Default: the one it was made with")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="Default: the one it was made with")
    ] = None,
    max_memory: MemoryOption = None,
    batch: BatchOption = None,
    threads: ThreadsOption = None,
    build: BuildOption = True,
    fused_step: FusedOption = None,
    quiet: QuietOption = False,
) -> None:
    """Make an output again from its own attributes, and say whether it matches."""
    from wdm_runtime.replay import open_record, repeat

    console.out.quiet = quiet
    record = open_record(output, input)
    engine, precision = engine or record.text("engine"), precision or record.text("precision")
    if fused_step is None:
        choice = select(engine, precision)
        fused_step = record.fused_step and has_step(choice.kind, choice.precision)
        if fused_step and step_pays(choice.kind):
            fused_step = None  # as by default, of which nothing needs to be said
    options = engine_options(batch, threads, build, quiet, fused_step)
    opened = Bundle.open(bundle, require_signature)
    with (
        Downscaler.open(opened, engine, precision, options) as downscaler,
        _Progress(downscaler, quiet) as progress,
    ):
        verdict = repeat(record, downscaler, _bytes(max_memory), progress.on_plan, progress.on_step)
    console.out.print(verdict, highlight=False, soft_wrap=True)


class _Progress:
    """The plan line, then a bar over tile evaluations."""

    def __init__(self, downscaler: Downscaler, quiet: bool) -> None:
        self._downscaler, self._bar = downscaler, panels.progress_bar(quiet)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_plan(self, plan: Plan, note: str | None) -> None:
        if not console.out.quiet:  # calls that only time the engine are for who reads it
            tiles = plan.evaluations // plan.steps
            seconds = self._downscaler.seconds_per_tile(tiles) if tiles else 0.0
            line = panels.plan_line(plan, seconds)
            console.out.print(line, highlight=False, soft_wrap=True)
            console.out.print(self._downscaler.choice.why, highlight=False, soft_wrap=True)
        if note:
            panels.note(note)
        self._task = self._bar.add_task("sampling", total=plan.evaluations)

    def on_step(self, step: StepTime) -> None:
        self._bar.advance(self._task, step.tiles)


def _bytes(text: str | None) -> int | None:
    return None if text is None else parse_bytes(text)


def _stem(path: Path) -> str:
    name = path.name
    while name.lower().endswith(_SUFFIXES):
        name = name.rpartition(".")[0]
    return name or path.name


@app.command()
def info(
    bundle: Annotated[Path | None, typer.Argument(help="Default: the shipped bundle")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest as JSON")] = False,
    require_signature: KeyOption = None,
) -> None:
    """Show a bundle after checking all its files."""
    opened = Bundle.open(bundle, require_signature)
    opened.verify()
    if as_json:
        values = {**json.loads(opened.manifest.to_json()), "sha256": opened.sha256}
        typer.echo(json.dumps(values, indent=1))
        return
    console.out.print(panels.bundle_table(opened))


@app.command()
def verify(
    bundle: Annotated[Path | None, typer.Argument(help="Default: the shipped bundle")] = None,
    key: Annotated[Path | None, typer.Option(help="Public key it must be signed for")] = None,
) -> None:
    """Check every file of a bundle against its manifest, and the manifest's signature."""
    opened = Bundle.open(bundle, key)
    opened.verify()
    trusted = key or required_key()
    signed = f"signed for {trusted}" if trusted else "its signature was not asked for"
    count = len(opened.manifest.graphs) + len(opened.manifest.files)
    line = f"{opened.path}: {count} files are as the manifest says, {signed}"
    console.out.print(line, highlight=False, soft_wrap=True)


@app.command()
def plot(
    output: Annotated[Path, typer.Argument(help="What 'wdm-run infer' wrote, NetCDF or Zarr")],
    figure: Annotated[Path, typer.Option("-o", "--figure", help="PNG, PDF, SVG or other picture")],
    coarse: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="The coarse input; default: where OUTPUT says, beside it or here, by its SHA-256",
        ),
    ] = None,
    time: Annotated[
        str,
        typer.Option(help="Which to draw, as infer's: 2022-08-09T15, or a number: 0 is the first"),
    ] = "0",
    member: Annotated[int, typer.Option(help="Member to show")] = 0,
    threshold: Annotated[float, typer.Option(help="Rate for the probability, mm/h")] = 5.0,
) -> None:
    """Draw the coarse input, one member, the ensemble mean and a probability."""
    from wdm_runtime.plot import plot_ensemble

    plot_ensemble(output, figure, coarse, time, member, threshold)
    console.out.print(f"Wrote {figure}", soft_wrap=True)
