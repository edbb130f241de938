"""What the commands of `wdm-export` share: options, the progress display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wdm_runtime import console

Files = Annotated[list[Path], typer.Argument(help="1 km rates: MRMS GRIB2 (.gz) or CF NetCDF")]
Threads = Annotated[int | None, typer.Option(help="CPU threads")]


@contextmanager
def progress_display() -> Iterator[Progress]:
    """Bars on the error stream, each with a note."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console.err,
    ) as progress:
        yield progress


def given(**values: Any) -> dict[str, Any]:
    """Only what the user set: defaults live in the configuration's dataclasses."""
    return {name: value for name, value in values.items() if value is not None}
