"""`wdm-export evaluate` and `identity`: what a bundle is worth, and whether it adds up."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wdm_export.bootstrap import DRAWS
from wdm_export.cli_parts import (
    Files,
    LeftOut,
    SkipUnreadable,
    Threads,
    command_line,
    given,
    progress_bars,
)
from wdm_runtime import console
from wdm_runtime.consistency import DEFAULT_CONSISTENCY, MODES
from wdm_runtime.engines import PRECISIONS
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import InputError, MissingDependencyError
from wdm_runtime.presets import Preset, chosen
from wdm_runtime.records import to_json
from wdm_runtime.shared_options import (
    AccumulationOption,
    NoiseScaleOption,
    PresetOption,
    SamplerOption,
    StepsOption,
    TimeGridOption,
    VariableOption,
)
from wdm_runtime.skill import TILE_PX

if TYPE_CHECKING:
    from wdm_export.evaluation import Evaluation
    from wdm_export.methods import Method
    from wdm_export.truth import TruthFiles
    from wdm_runtime.downscale import Downscaler


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="A bundle")],
    files: Files,
    members: Annotated[int, typer.Option(help="Ensemble size")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of ensembles and intervals")] = 0,
    preset: PresetOption = None,
    steps: StepsOption = None,
    sampler: SamplerOption = None,
    noise_scale: NoiseScaleOption = None,
    time_grid: TimeGridOption = None,
    consistency: Annotated[
        str | None, typer.Option(help=f"{' | '.join(MODES)}; default: {DEFAULT_CONSISTENCY}")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="As of wdm-run; default: the best")] = None,
    precision: Annotated[
        str | None, typer.Option(help=" | ".join(PRECISIONS) + "; default: auto")
    ] = None,
    threads: Threads = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Another bundle, or weights of a regression, on the same tiles"),
    ] = None,
    rainfarm: Annotated[
        bool | None,
        typer.Option("--rainfarm/--no-rainfarm", help="Default: where pysteps is installed"),
    ] = None,
    bbox: Annotated[
        str | None, typer.Option(help="W,S,E,N: only tiles whose centre lies in it")
    ] = None,
    variable: VariableOption = None,
    accumulation: AccumulationOption = None,
    outside: Annotated[bool, typer.Option("--outside", help="Only tiles outside --bbox")] = False,
    tile: Annotated[
        int | None,
        typer.Option(help=f"Edge of the scored tiles in fine cells; default: {TILE_PX}"),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            "--bootstrap", help=f"Redraws of the tiles behind the intervals; default: {DRAWS}"
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.html, the scores as CSV and JSON")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--json", help="Write the scores as JSON")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write the scores into the bundle's manifest and card")
    ] = False,
    skip_unreadable: SkipUnreadable = False,
) -> None:
    """Score a bundle against baselines on tiles of 1 km truth."""
    from wdm_export.evaluate import evaluate as score
    from wdm_export.gallery import Gallery
    from wdm_export.package import rewrite_manifest
    from wdm_export.report import make_folder, write_report
    from wdm_export.score_table import ScoreTable
    from wdm_export.tiles import Region
    from wdm_export.truth import TruthFiles
    from wdm_runtime.bundle import Bundle
    from wdm_runtime.downscale import Downscaler
    from wdm_runtime.io.atomic import check_destination, write_text
    from wdm_runtime.io.units import parse_period
    from wdm_runtime.manifest import MANIFEST_NAME
    from wdm_runtime.signing import required_key

    region = Region.parse(bbox, outside)
    read = (*files, bundle, *(against or []), required_key())
    if report:
        make_folder(report, read)
    if output:
        check_destination(output, read, overwrite=True)
    if keep:
        check_destination(bundle / MANIFEST_NAME, overwrite=True)
    commanded = partial(
        command_line, "evaluate", bundle,
        members=members, seed=seed, preset=preset, steps=steps, sampler=sampler,
        noise_scale=noise_scale, time_grid=time_grid, consistency=consistency, engine=engine,
        precision=precision, threads=threads, bbox=bbox, bootstrap=draws, variable=variable,
        accumulation=accumulation, tile=tile, against=against, rainfarm=rainfarm,
        outside=outside or None,
    )  # fmt: skip
    asked = {
        "preset": preset, "sampler": sampler, "steps": steps, "noise_scale": noise_scale,
        "time_grid": time_grid,
    }  # fmt: skip
    consistency, hours = consistency or DEFAULT_CONSISTENCY, parse_period(accumulation)
    opening: dict[str, Any] = given(engine=engine, precision=precision)
    opening["options"] = EngineOptions(threads=threads, note=_note)
    left_out, opened = LeftOut(), Bundle.open(bundle)
    truths = TruthFiles(
        files, opened.manifest, variable, hours, left_out if skip_unreadable else None
    )
    for note in truths.notes():
        _note(note)
    with ExitStack() as stack:
        gallery = stack.enter_context(Gallery()) if report else None
        downscaler = stack.enter_context(Downscaler.open(opened, **opening))
        console.err.print(downscaler.choice.why, style="dim", highlight=False)
        baselines = _baselines(
            downscaler,
            [file.cells for file in truths.files],
            against or [],
            rainfarm,
            opening,
            asked,
            consistency,
            stack,
        )
        with progress_bars() as progress:
            task = progress.add_task("Evaluating", total=None, note="")
            result = score(
                downscaler,
                truths,
                members,
                seed,
                _way(downscaler, asked),
                consistency,
                on_progress=lambda line: progress.update(task, note=line),
                baselines=baselines,
                region=region,
                gallery=gallery,
                on_unreadable=truths.leave_out if skip_unreadable else None,
                **given(bootstrap_draws=draws, tile_px=tile),
            )
        result = _named(result, downscaler, truths)
        command = commanded([file.path for file in truths.files])
        console.out.print(ScoreTable(result))  # first of all: nothing that fails below takes it
        if report and gallery:
            write_report(report, result, gallery, command)
    left_out.tell(len(files))
    if output:
        write_text(output, to_json(result.to_dict()))
    if keep:
        scores = {**result.to_dict(), "command": command}
        line = rewrite_manifest(opened, replace(opened.manifest, scores=scores))
        console.out.print(line, highlight=False, soft_wrap=True)
    if report:
        console.out.print(f"Wrote {report}: open {report / 'report.html'}", highlight=False)


def _way(downscaler: Downscaler, asked: dict[str, Any]) -> Preset:
    """How a bundle's members are drawn: what is asked for, or else its own preset."""
    return chosen(downscaler.manifest.presets, **asked)


def _note(line: str) -> None:
    console.err.print(line, style="yellow", highlight=False, soft_wrap=True)


def _baselines(
    downscaler: Downscaler,
    fields: list[tuple[int, int]],
    against: list[Path],
    rainfarm: bool | None,
    opening: dict[str, Any],
    asked: dict[str, Any],
    consistency: str,
    stack: ExitStack,
) -> list[Method]:
    """Interpolations, bare and dressed, RainFARM if wanted or to be had, and what was named.

    ``fields`` are the sizes of the truth's grids, which RainFARM has a least of.
    """
    from wdm_export.baselines import DressedBicubic, RainFarm
    from wdm_export.methods import Ensemble, interpolations
    from wdm_runtime.grid import same_spacing

    factor, spacing_km = downscaler.factor, downscaler.manifest.domain.spacing_km
    dressed = DressedBicubic(downscaler.manifest, consistency)
    methods: list[Method] = [*interpolations(factor), dressed]
    if rainfarm is not False:
        try:
            both = RainFarm.both(factor)
            for cells in fields:
                RainFarm.require_size((cells[0] // factor, cells[1] // factor))
            methods.extend(both)
        except (MissingDependencyError, InputError) as error:
            if rainfarm:
                raise
            _note(f"Without RainFARM: {error}")
    for path in against:
        if path.is_dir():
            other = stack.enter_context(type(downscaler).open(path, **opening))
            method: Method = Ensemble(other.manifest.name, other, _way(other, asked), consistency)
            its_factor, its_km = other.factor, other.manifest.domain.spacing_km
        else:
            from wdm_export.regression import Regression

            tile_px = downscaler.manifest.tile_px
            method = Regression.load(path, tile_px, consistency)
            its_factor, its_km = method.manifest.factor, method.manifest.domain.spacing_km
        if its_factor != factor or not same_spacing(its_km, spacing_km):
            raise InputError(
                f"{path}: refines by a factor of {its_factor} to {its_km:g} km; expected {factor} "
                f"and {spacing_km:g} km, as the bundle that is evaluated. Leave it out of "
                "--against."
            )
        if method.name in {known.name for known in methods}:
            raise InputError(
                f"{path}: is called '{method.name}', as another method; expected names of their "
                "own. Rename the run's folder, or export the bundle again with --name."
            )
        methods.append(method)
    return methods


def _named(result: Evaluation, downscaler: Downscaler, truths: TruthFiles) -> Evaluation:
    """With what was evaluated, and on what it ran. The bundle is as it was before --keep."""
    from wdm_runtime.version import version

    notes = truths.notes()
    facts = {
        "bundle": downscaler.manifest.name,
        "bundle_sha256": downscaler.bundle.sha256,
        "files": [file.path.name for file in truths.files],
        "files_sha256": [file.sha256 for file in truths.files],
        **({"notes": notes} if notes else {}),
        "wdm_version": version(),
        "engine": downscaler.engine.version,
        "precision": downscaler.choice.precision,
    }
    return replace(result, settings={**facts, **result.settings})


def identity(
    bundle: Annotated[Path, typer.Argument(help="A bundle")],
    files: Files,
    tile: Annotated[
        int | None, typer.Option(help=f"Tile edge in fine cells; default: {TILE_PX}")
    ] = None,
    variable: VariableOption = None,
    accumulation: AccumulationOption = None,
) -> None:
    """Check that a fine field equal to the interpolated coarse one leaves no detail to draw."""
    from wdm_export import identity as check
    from wdm_export.truth import read_truth
    from wdm_runtime.bundle import Bundle
    from wdm_runtime.io.units import parse_period

    opened = Bundle.open(bundle)
    hours = parse_period(accumulation)
    spacing_km = opened.manifest.domain.spacing_km
    fields = (read_truth(file, spacing_km, variable, hours) for file in files)
    result = check.measure(opened, fields, **given(tile_px=tile))
    console.out.print(check.render(result))
    result.require()
