"""`wdm-run doctor`, `selftest` and `build-engine`: what engines this machine has, and proof."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wdm_runtime import console, panels
from wdm_runtime.bundle import Bundle
from wdm_runtime.cache import cache_folder
from wdm_runtime.cli_options import (
    BundleOption,
    KeyOption,
    QuietOption,
    ThreadsOption,
    check_report,
    engine_options,
)
from wdm_runtime.doctor import diagnose
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines import AUTO, ENGINES
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import EngineError, InputError, ParityError
from wdm_runtime.io.atomic import write_text
from wdm_runtime.latency import pixel_times
from wdm_runtime.selftest import report, selftest


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The diagnosis as JSON")] = False,
) -> None:
    """Say which engines work on this machine, and what to install for the rest."""
    found = diagnose()
    if as_json:
        typer.echo(found.to_json(), nl=False)
    else:
        console.out.print(panels.diagnosis_table(found))
    if not found.healthy:
        raise typer.Exit(EngineError.exit_code)


def run_selftest(
    bundle: BundleOption = None,
    require_signature: KeyOption = None,
    engine: Annotated[
        str, typer.Option(help=f"{' | '.join(ENGINES)}; auto: all that work here")
    ] = AUTO,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the report as JSON")
    ] = None,
    threads: ThreadsOption = None,
) -> None:
    """Compare engines on this machine with the bundle's golden outputs, and time them."""
    opened = Bundle.open(bundle, require_signature)
    check_report(output, opened, require_signature)
    checks = []
    for check in selftest(opened, engine, engine_options(threads=threads)):
        checks.append(check)
        console.out.print(panels.check_line(check), highlight=False, soft_wrap=True)
    result = report(opened, checks)
    if output:
        write_text(output, result.to_json())
        console.out.print(f"Wrote {output}; attach it to a report of a problem.", soft_wrap=True)
    failed = [f"{c.engine} in {c.precision}" for c in checks if not c.passed]
    if failed or not checks:
        raise ParityError(
            f"{len(failed)} of {len(checks)} checks failed ({', '.join(failed) or 'no engine'}); "
            "expected none. Choose another --engine, and report this with the file of --output."
        )


def _rescue(opened: Downscaler, options: EngineOptions) -> bool:
    """Build the plan that computes again what fp16 cannot hold; without it all others still serve.

    Whether there is one.
    """
    kind, precision = opened.choice.kind, opened.choice.precision
    problem = f"{kind} has none on this machine."
    try:
        if opened.engine.full is not None:
            return True
    except EngineError as error:
        problem = str(error)
    if precision != "fp32":
        options.note(
            f"Batches that {precision} cannot hold cannot be computed again in fp32: {problem}"
        )
    return False


def build_engine(
    bundle: BundleOption = None,
    require_signature: KeyOption = None,
    engine: Annotated[str, typer.Option(help="tensorrt | tensorrt-rtx")] = "tensorrt",
    precision: Annotated[str, typer.Option(help="auto | fp16 | fp32")] = AUTO,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Tiles a launch; repeatable; default: 1")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Build TensorRT plans on this machine, so that no later run has to."""
    console.out.quiet = quiet
    if not engine.startswith("tensorrt"):
        raise InputError(
            f"--engine got '{engine}'; expected tensorrt or tensorrt-rtx, which alone have plans. "
            "Choose one of them, or run 'wdm-run infer' with yours."
        )
    cache_folder()  # without one there is nothing to build for
    opened_bundle = Bundle.open(bundle, require_signature)
    for size in batch or [1]:
        options = engine_options(str(size), quiet=quiet)
        with Downscaler.open(opened_bundle, engine, precision, options) as opened:
            seconds = opened.seconds_per_tile()
            rescue = _rescue(opened, options)
            if opened.fused:
                opened.fused.available()  # builds its plan too; what keeps it from that is noted
            pixel = pixel_times(opened, options)  # that of the model a run is compared with
            console.out.print(
                f"{opened.engine.kind} in {opened.choice.precision}"
                f"{' (and fp32)' if rescue else ''}, batch {size}: "
                f"{1e3 * seconds:.2f} ms a tile on {opened.engine.device}"
                f"{f', the pixel model {pixel.pixel_ms:.2f} ms' if pixel else ''}",
                highlight=False,
                soft_wrap=True,
            )
