"""What commands of `wdm-export` share: arguments, bars, tables and what the user set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from wdm_runtime import console

Files = Annotated[list[Path], typer.Argument(help="1 km rates: MRMS GRIB2 (.gz) or CF NetCDF")]
Threads = Annotated[int | None, typer.Option(help="CPU threads")]


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars with a note each, on the error stream."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console.err,
    ) as progress:
        yield progress


def given(**values: Any) -> dict[str, Any]:
    """Only what the user set: defaults live in the configuration's dataclasses."""
    return {name: value for name, value in values.items() if value is not None}


def comparison_table(comparisons: list[Any]) -> Table:
    """Each `wdm_export.parity.Comparison` on a line."""
    table = Table("check", "difference", "limit", "")
    for c in comparisons:
        mark = "passed" if c.passed else "FAILED"
        table.add_row(c.name, f"{c.difference:.3g}", f"{c.limit:.4g}", mark)
    return table
