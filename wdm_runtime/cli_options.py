"""Options that several commands of `wdm-run` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wdm_runtime import panels
from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import AUTO
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import InputError
from wdm_runtime.io.atomic import check_destination
from wdm_runtime.signing import REQUIRE_VARIABLE, required_key

_MOST_DIGITS = 9  # digits of --batch that are parsed; EngineOptions refuses what is too large

BundleOption = Annotated[Path | None, typer.Option("--bundle", help="Default: the shipped bundle")]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--require-signature",
        help=f"Public key the bundle must be signed for; default: ${REQUIRE_VARIABLE}",
    ),
]
BatchOption = Annotated[
    str | None,
    typer.Option(
        "--batch", help="Tiles an engine call; default: 1; auto: measures once which is fastest"
    ),
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads; default: all")]
BuildOption = Annotated[
    bool,
    typer.Option("--build/--no-build", help="Build a TensorRT plan that is not there yet"),
]
FusedOption = Annotated[
    bool | None,
    typer.Option(
        "--fused-step/--numpy-step",
        help="Who does the sampler's update where one tile covers a frame's rain: the engine "
        "(default on GPUs) or NumPy",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print notes and errors only")]


def check_report(path: Path | None, bundle: Bundle, key: Path | None, *others: Path | None) -> None:
    """Refuse a report, chart or table, if one is asked for, that would replace what is read.

    Parameters
    ----------
    bundle, key
        What the command reads: nothing is written into the bundle's folder. None is the key of the
        environment, if there is one.
    others
        Further files it reads or writes.

    Raises
    ------
    OutputError
        It would, or cannot be written there.
    """
    if path:
        check_destination(path, (*others, bundle.path, key or required_key()), overwrite=True)


def engine_options(
    batch: str | None = None,
    threads: int | None = None,
    build: bool = True,
    quiet: bool = False,
    fused_step: bool | None = None,
) -> EngineOptions:
    """How engines are opened from the command line: notes and progress on the error stream."""
    return EngineOptions(
        threads=threads,
        batch=None if batch is None or batch == AUTO else _number(batch),
        measure_batch=batch == AUTO,
        build=build,
        fused_step=fused_step,
        progress=panels.build_line(quiet),
        note=panels.note,
    )


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise InputError(f"--batch got '{text}'; expected a number or '{AUTO}'. Correct it.")
    return int(text)
