"""What commands of `wdm-export` share: arguments, bars, tables and what the user set."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from wdm_runtime import console
from wdm_runtime.errors import InputError
from wdm_runtime.skill import TILE_PX

FACTOR = 10  # from 10 km to 1 km
FILES_HELP = "1 km precipitation, in any format that wdm-run infer reads"
Files = Annotated[list[Path], typer.Argument(help=FILES_HELP)]
Patch = Annotated[int | None, typer.Option(help=f"Patch edge in fine cells; default: {TILE_PX}")]
Factor = Annotated[int, typer.Option(help="Fine cells per coarse cell along an axis")]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads; default: all, in training those of OMP_NUM_THREADS")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there")]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out files that cannot be read, and say so")
]


@dataclass
class LeftOut:
    """Says of each file that it is left out, and in the end of how many."""

    count: int = 0

    def __call__(self, error: InputError) -> None:
        self.count += 1
        console.err.print(f"left out: {error}", highlight=False, soft_wrap=True, markup=False)

    def tell(self, files: int) -> None:
        """How many of all, if any."""
        if self.count:
            console.out.print(f"Left out {self.count} of {files} files.", highlight=False)


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


def command_line(name: str, bundle: Path, files: Iterable[Path], **options: Any) -> str:
    """The `wdm-export` command that makes the numbers again while the presets stay; files by names.

    A list is an option given several times, a bool a flag or its ``--no-`` form; None is left out.
    """
    words = ["wdm-export", name, bundle.as_posix(), *(file.name for file in files)]
    for option, value in given(**options).items():
        flag = f"--{option.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
            continue
        for one in value if isinstance(value, list) else [value]:
            text = one.as_posix() if isinstance(one, Path) else str(one)
            # A box begins with a minus west of Greenwich, which would be an option by itself.
            words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return shlex.join(words)


def comparison_table(comparisons: list[Any]) -> Table:
    """Each `wdm_export.parity.Comparison` on a line."""
    table = Table("check", "difference", "limit", "")
    for c in comparisons:
        mark = "passed" if c.passed else "FAILED"
        table.add_row(c.name, f"{c.difference:.3g}", f"{c.limit:.4g}", mark)
    return table
