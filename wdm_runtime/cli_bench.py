"""`wdm-run bench`: what engines, precisions, batches and models cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wdm_runtime import console
from wdm_runtime.bench.chart import draw_chart
from wdm_runtime.bench.runner import DEFAULT_CALLS, Bench
from wdm_runtime.bench.tables import bench_tables
from wdm_runtime.bench.turns import ALL
from wdm_runtime.bundle import Bundle
from wdm_runtime.cli_options import (
    BundleOption,
    KeyOption,
    QuietOption,
    ThreadsOption,
    check_report,
    engine_options,
)
from wdm_runtime.engines import ENGINES
from wdm_runtime.io.atomic import write_text
from wdm_runtime.picture import check_picture

_INTERRUPTED = 130  # as shells count SIGINT


def bench(
    bundle: BundleOption = None,
    require_signature: KeyOption = None,
    engines: Annotated[
        str,
        typer.Option(
            help=f"{ALL}, or some of {', '.join(ENGINES)}, each alone or as engine/precision"
        ),
    ] = ALL,
    against: Annotated[
        list[Path] | None, typer.Option(help="Another bundle to time beside it; repeatable")
    ] = None,
    calls: Annotated[int, typer.Option(help="Timed calls of each")] = DEFAULT_CALLS,
    threads: ThreadsOption = None,
    json: Annotated[Path | None, typer.Option(help="Write everything as JSON")] = None,
    chart: Annotated[
        Path | None, typer.Option(help="Draw it, as PNG, PDF, SVG or another format")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Measure cold start, steps, memory and energy of every engine here, and the pixel model."""
    console.out.quiet = quiet
    own = Bundle.open(bundle, require_signature)
    others = [Bundle.open(path, require_signature) for path in against or []]
    for other in (own, *others):
        check_report(json, other, require_signature, chart)
        check_report(chart, other, require_signature)
    if chart:
        check_picture(chart, "--chart")
    options = engine_options(threads=threads, quiet=quiet)
    with console.err.status("") as status:
        run = Bench(own, others, engines, calls, options, status.update, require_signature)
        interrupted = False
        try:
            run.measure()
        except KeyboardInterrupt:
            interrupted = True
    report = run.report()
    for part in bench_tables(report):
        console.out.print(part, highlight=False)
    if json:
        write_text(json, report.to_json())
    if chart:
        draw_chart(report, chart)
    if interrupted:
        raise typer.Exit(_INTERRUPTED)
