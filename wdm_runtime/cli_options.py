"""Options that several commands of `wdm-run` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wdm_runtime import panels
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import InputError

BundleOption = Annotated[Path | None, typer.Option("--bundle", help="Default: the shipped bundle")]
BatchOption = Annotated[str, typer.Option("--batch", help="Tiles an engine call, or auto")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads; default: all")]
BuildOption = Annotated[
    bool,
    typer.Option("--build/--no-build", help="Build a TensorRT plan that is not there yet"),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only")]


def engine_options(
    batch: str = "auto", threads: int | None = None, build: bool = True, quiet: bool = False
) -> EngineOptions:
    """How engines are opened from the command line: notes and progress on the error stream."""
    return EngineOptions(
        threads=threads,
        batch=_batch(batch),
        build=build,
        progress=panels.build_line(quiet),
        note=panels.note,
    )


def _batch(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit():
        raise InputError(f"--batch got '{text}'; expected a number or 'auto'. Correct it.")
    return int(text)
