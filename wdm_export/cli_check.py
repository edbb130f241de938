"""`wdm-export check`: whether a bundle is whole, right and safe in reduced precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from wdm_export.cli_parts import (
    Threads,
    command_line,
    comparison_table,
    progress_bars,
)
from wdm_runtime import console
from wdm_runtime.presets import chosen
from wdm_runtime.shared_options import AccumulationOption, VariableOption


def check(
    bundle: Annotated[Path, typer.Argument(help="A bundle")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Real rain at 10 km, or 1 km truth to average: measures precision"),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The weights it was exported from: compares with torch")
    ] = None,
    tiles: Annotated[int, typer.Option(help="How many of the wettest tiles of FILES")] = 6,
    members: Annotated[int, typer.Option(help="Members a tile, at least 2")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the members")] = 0,
    variable: VariableOption = None,
    accumulation: AccumulationOption = None,
    threads: Threads = None,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Write what was measured into the bundle")
    ] = True,
) -> None:
    """Check a bundle's files and graphs and, with FILES, that reduced precision is safe.

    Magnitudes of all fp16 tensors over whole sampling runs, and whole runs in fp16 and bf16
    against fp32 with the same noise, go into the manifest and the model card.
    """
    from wdm_export import package, parity
    from wdm_export.checkpoint import Checkpoint
    from wdm_runtime.bundle import Bundle
    from wdm_runtime.io import read_field
    from wdm_runtime.io.atomic import check_destination
    from wdm_runtime.io.units import parse_period
    from wdm_runtime.manifest import MANIFEST_NAME

    opened = Bundle.open(bundle)
    if files and keep:
        check_destination(bundle / MANIFEST_NAME, overwrite=True)
    found = package.check_bundle(opened, Checkpoint.load(weights) if weights else None)
    console.out.print(comparison_table(found))
    parity.require_all(found)
    if not files:
        console.out.print(
            "Ranges and sampling in reduced precision were not measured: that takes files of real "
            f"rain. wdm-export check {bundle} FILES...",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        return
    hours = parse_period(accumulation)
    fields = (read_field(file, variable, hours) for file in files)
    measured = _measure_precision(opened, fields, tiles, members, seed, threads)
    if keep:
        command = command_line(
            "check", bundle, files, tiles=tiles, members=members, seed=seed, variable=variable,
            accumulation=accumulation,
        )  # fmt: skip
        names = tuple(file.name for file in files)
        measured = replace(measured, command=command, files=names)
        line = package.rewrite_manifest(opened, replace(opened.manifest, precision_check=measured))
        console.out.print(line, highlight=False, soft_wrap=True)


def _measure_precision(
    bundle: Any, fields: Iterator[Any], tiles: int, members: int, seed: int, threads: int | None
) -> Any:
    from wdm_export import parity
    from wdm_export.check import check_precision, comparisons
    from wdm_export.check_sampling import Draws
    from wdm_export.check_table import peaks_table, remarks
    from wdm_runtime.engines.options import EngineOptions

    with progress_bars() as progress:
        task = progress.add_task("Sampling", total=None, note="")
        measured = check_precision(
            bundle,
            fields,
            Draws(members, seed, chosen(bundle.manifest.presets)),
            tiles,
            EngineOptions(threads=threads),
            lambda line: progress.update(task, note=line),
        )
    console.out.print(peaks_table(measured.ranges))
    found = comparisons(measured)
    console.out.print(comparison_table(found))
    for line in remarks(measured):
        console.out.print(line, highlight=False, soft_wrap=True)
    parity.require_all(found)
    return measured
