"""`wdm-export prepare` and `coarsen`: fields as training patches, and as inputs with an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from wdm_export.cli_parts import (
    FACTOR,
    FILES_HELP,
    Factor,
    Files,
    LeftOut,
    Overwrite,
    Patch,
    SkipUnreadable,
    given,
    progress_bars,
)
from wdm_runtime import console
from wdm_runtime.errors import InputError
from wdm_runtime.shared_options import AccumulationOption, VariableOption


def prepare(
    files: Files,
    store: Annotated[Path, typer.Option("-o", "--output", help="Store folder to write")],
    patch: Patch = None,
    factor: Factor = FACTOR,
    variable: VariableOption = None,
    accumulation: AccumulationOption = None,
    skip_unreadable: SkipUnreadable = False,
    augment_scale: Annotated[
        int | None,
        typer.Option(
            help="Cut patches of fields averaged over so many cells too, as rain of another scale; "
            "default: none"
        ),
    ] = None,
) -> None:
    """Cut training patches from 1 km fields."""
    from wdm_runtime.io.units import parse_period

    left_out = LeftOut()
    with progress_bars() as progress:
        prepared = prepared_store(
            *(files, store, progress, patch, variable, parse_period(accumulation), factor),
            left_out if skip_unreadable else None,
            augment_scale,
        )
    table = Table("storm day", "patches")
    for day, numbers in sorted(prepared.by_day().items()):
        table.add_row(day, str(len(numbers)))
    console.out.print(table)
    reasons = " and ".join(f"{count} for {why}" for why, count in sorted(prepared.left_out))
    cut = f"Cut {len(prepared.fine)} patches{f'; left out {reasons}' if reasons else ''}."
    console.out.print(cut, highlight=False, soft_wrap=True)
    if augment_scale and prepared.augment_scale is None:
        note = "No patch is of the fields' means: they are too small, or too dry, for that scale."
        console.out.print(note, highlight=False, soft_wrap=True)
    if len(prepared.periods_h) > 1:
        kinds = ["rates" if h is None else f"sums over {h:g} h" for h in prepared.periods_h]
        note = f"The fields are {' and '.join(kinds)}: the network will learn the detail of all."
        console.out.print(note, highlight=False, soft_wrap=True)
    left_out.tell(len(files))


def coarsen(
    fine: Annotated[Path, typer.Argument(help=FILES_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Coarse NetCDF to write")],
    truth: Annotated[Path | None, typer.Option(help="Also write the fine field it covers")] = None,
    crop: Annotated[
        str | None,
        typer.Option(
            help="Coarse cells row,column,height,width from the first row and column, 2 x 2 or more"
        ),
    ] = None,
    factor: Factor = FACTOR,
    variable: VariableOption = None,
    accumulation: AccumulationOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Block-average a 1 km field to 10 km: a test input with a known answer."""
    from wdm_export.coarsen import coarsen_file
    from wdm_runtime.io.units import parse_period

    hours = parse_period(accumulation)
    coarsen_file(fine, output, truth, crop, factor, overwrite, variable, hours)
    console.out.print(f"Wrote {output}" + (f" and {truth}" if truth else ""), soft_wrap=True)


def prepared_store(
    files: list[Path],
    store: Path,
    progress: Progress,
    size: int | None,
    variable: str | None,
    hours: float | None,
    factor: int,
    on_unreadable: Callable[[InputError], None] | None = None,
    augment_scale: int | None = None,
) -> Any:
    """A store cut from files, with a bar."""
    from wdm_export import data

    task = progress.add_task("Preparing", total=len(files), note="")

    def on_file(path: Path, count: int) -> None:
        progress.update(task, advance=1, note=f"{path.name}: {count} patches")

    prepared = data.prepare(
        files,
        store,
        on_file=on_file,
        variable=variable,
        accumulation_h=hours,
        on_unreadable=on_unreadable,
        factor=factor,
        augment_scale=augment_scale,
        **given(size=size),
    )
    progress.update(task, note=f"{len(prepared.fine)} patches")
    return prepared


def refuse_other_patches(
    store: Any,
    files: list[Path],
    size: int | None,
    variable: str | None,
    hours: float | None,
    factor: int,
    work: Path,
) -> None:
    """A run that is continued keeps its training fields: others must not be swallowed."""
    from wdm_runtime.input_hash import hash_of
    from wdm_runtime.skill import TILE_PX

    had = {source.sha256: source.file for source in store.sources}
    asked = {hash_of(file): file.name for file in files}
    other = [f"{asked[d]} (not of the run)" for d in asked.keys() - had.keys()]
    other += [f"no {had[d]}" for d in had.keys() - asked.keys()]
    edge, wanted = store.fine.shape[1], TILE_PX if size is None else size
    if wanted != edge:
        other.append(f"--patch {wanted} (the run has {edge})")
    if factor != store.factor:
        other.append(f"--factor {factor} (the run has {store.factor})")
    for option, value, known in (
        ("--variable", variable, store.variable),
        ("--accumulation", hours, store.accumulation_h),
    ):
        if value != known:
            other.append(f"{option} {value or 'nothing'} (the run has {known or 'nothing'})")
    if other:
        raise InputError(
            f"{work}: holds a run on other training data; got {', '.join(sorted(other))}. Give the "
            "run's own files, or begin anew with another --work folder."
        )
