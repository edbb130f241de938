"""`wdm-run tune`: which preset serves a bundle best on this site's own rain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from wdm_runtime import console, panels
from wdm_runtime.bundle import Bundle
from wdm_runtime.cli_options import (
    BundleOption,
    KeyOption,
    QuietOption,
    ThreadsOption,
    check_report,
    engine_options,
)
from wdm_runtime.diffusion import GRIDS, LOGSNR
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines import AUTO, ENGINES, PRECISIONS
from wdm_runtime.errors import InputError
from wdm_runtime.io.atomic import check_destination, write_text
from wdm_runtime.job import load
from wdm_runtime.manifest import MANIFEST_NAME
from wdm_runtime.picture import check_picture
from wdm_runtime.presets import Preset
from wdm_runtime.samplers import SAMPLERS
from wdm_runtime.select import check_spacing, crop_alike, outside_training
from wdm_runtime.settings import Settings
from wdm_runtime.shared_options import AccumulationOption, VariableOption
from wdm_runtime.tune import keep_presets, tune, ways
from wdm_runtime.tune_report import draw_tuning, tune_tables

_N = TypeVar("_N", int, float)


def run_tune(
    input: Annotated[Path, typer.Argument(help="Coarse precipitation, as for infer")],
    truth: Annotated[Path, typer.Argument(help="The same domain and times on the fine grid")],
    bundle: BundleOption = None,
    require_signature: KeyOption = None,
    engine: Annotated[str, typer.Option(help=" | ".join(ENGINES))] = AUTO,
    precision: Annotated[str, typer.Option(help=" | ".join(PRECISIONS))] = AUTO,
    samplers: Annotated[
        str, typer.Option(help=f"Some of {', '.join(SAMPLERS)}, or all")
    ] = "second-order,dpm-solver-2m",
    steps: Annotated[str, typer.Option(help="Network calls to try")] = "4,6,8,12,20",
    noise_scales: Annotated[
        str, typer.Option(help="Factors of the noise to try")
    ] = "1,1.05,1.1,1.15",
    time_grids: Annotated[str, typer.Option(help=f"Some of {', '.join(GRIDS)}, or all")] = LOGSNR,
    members: Annotated[int, typer.Option(help="Ensemble size, at least 2")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the ensembles")] = 0,
    tiles: Annotated[int, typer.Option(help="Tiles with rain to score at most")] = 12,
    variable: VariableOption = None,
    time: Annotated[str | None, typer.Option(help="As for infer")] = None,
    bbox: Annotated[str | None, typer.Option(help="As for infer")] = None,
    accumulation: AccumulationOption = None,
    threads: ThreadsOption = None,
    json: Annotated[Path | None, typer.Option(help="Write everything as JSON")] = None,
    chart: Annotated[
        Path | None, typer.Option(help="Draw it, as PNG, PDF, SVG or another format")
    ] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Write the suggested presets into the bundle, without --bundle the installed one",
        ),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Weigh skill against cost of samplers, steps and noise on known truth, and suggest presets."""
    console.out.quiet = quiet
    tried = ways(
        _names(samplers, tuple(SAMPLERS)),
        _numbers(steps, "--steps", int),
        _numbers(noise_scales, "--noise-scales", float),
        _names(time_grids, GRIDS),
    )
    opened = Bundle.open(bundle, require_signature)
    # What a suggestion would replace is weighed beside it.
    tried = tuple(dict.fromkeys((*tried, *opened.manifest.presets.values())))
    check_report(json, opened, require_signature, input, truth, chart)
    check_report(chart, opened, require_signature, input, truth)
    if chart:
        check_picture(chart, "--chart")
    if keep:
        check_destination(opened.path / MANIFEST_NAME, overwrite=True)
    manifest = opened.manifest
    selected = Settings(variable=variable, accumulation=accumulation, time=time)
    coarse = load(input, replace(selected, bbox=bbox), manifest)
    fine = load(truth, selected, manifest)
    if bbox is not None:  # snapped to coarse cells: only the input says where
        fine = crop_alike(fine, coarse, manifest.factor)
    check_spacing(coarse, manifest.domain.spacing_km, manifest.factor, assume=None)
    note = outside_training(coarse, manifest.domain.latitudes)
    if note:
        panels.note(note)
    options = engine_options(threads=threads, quiet=quiet)
    with Downscaler.open(opened, engine, precision, options) as downscaler:
        console.err.print(downscaler.choice.why, style="dim", highlight=False)
        with console.err.status("") as status:

            def on_way(way: Preset) -> None:
                status.update(f"{way}: {members} members")

            found = tune(downscaler, coarse, fine, tried, members, seed, tiles, on_way)
    for part in tune_tables(found):
        console.out.print(part, highlight=False)
    if json:
        write_text(json, found.to_json())
    if keep:  # before the picture, whose failure must not lose it
        line = keep_presets(opened, found.suggested)
        console.out.print(line, highlight=False, soft_wrap=True)
    if chart:
        draw_tuning(found, chart)


def _names(text: str, all_of_them: tuple[str, ...]) -> tuple[str, ...]:
    return all_of_them if text == "all" else tuple(part.strip() for part in text.split(","))


def _numbers(text: str, option: str, kind: Callable[[str], _N]) -> list[_N]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{option} got '{text}'; expected numbers such as 1,2. Correct it."
        ) from None
