"""Options that commands of both packages share."""

from __future__ import annotations

from typing import Annotated

import typer

from wdm_runtime.diffusion import GRIDS
from wdm_runtime.presets import FAST, PRESETS
from wdm_runtime.samplers import SAMPLERS
from wdm_runtime.version import version


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"wdm-edge {version()}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Print the version and exit"
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", help=f"Sampler, steps and noise: {' | '.join(PRESETS)}; default: {FAST}"
    ),
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", help="Network calls a member; default: the preset's")
]
SamplerOption = Annotated[
    str | None,
    typer.Option("--sampler", help=f"{' | '.join(SAMPLERS)}; default: the preset's"),
]
NoiseScaleOption = Annotated[
    float | None,
    typer.Option(
        "--noise-scale",
        help="Factor of the noise, more widens the ensemble; default: the preset's, or 1 with "
        "other steps, sampler or times",
    ),
]
TimeGridOption = Annotated[
    str | None,
    typer.Option(
        "--time-grid",
        help=f"Times of network calls: {' | '.join(GRIDS)} (even in log SNR, Karras's, even in "
        "t); default: the preset's",
    ),
]
VariableOption = Annotated[
    str | None,
    typer.Option(
        "--variable",
        help="Name of the variable, in GRIB2 also ecCodes' short name; default: the only "
        "precipitation",
    ),
]
AccumulationOption = Annotated[
    str | None,
    typer.Option(
        "--accumulation",
        help="Period of amounts where a file does not say it or has several, such as 1h or 30min",
    ),
]
