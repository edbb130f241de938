"""How `wdm-run bench` shows what it found: tables that fit 100 columns, and the last line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from wdm_runtime.bench.report import BenchReport, Opening, Steps

_UNREADABLE = "not readable"
_BEST = "bold green"


def bench_tables(report: BenchReport) -> Iterator[RenderableType]:
    """Everything in order, top to bottom."""
    yield _facts(report)
    if report.openings:
        yield _openings(report.openings)
    own = [row for row in report.steps if row.model == report.bundle]
    if own:
        yield _batches(report.bundle, own)
    singles = [row for row in report.steps if row.batch == 1]
    if singles:
        yield _models(report, singles)
    for problem in report.problems:
        yield Text(f"not measured: {problem.what}: {problem.reason}", style="dim")
    if not report.complete:
        yield Text("Interrupted: what is above is what was measured until then.", style="yellow")
    if report.verdict:
        yield Text(report.verdict, style="bold")


def _facts(report: BenchReport) -> Text:
    versions = ", ".join(dict.fromkeys(report.versions.values()))
    load = (report.load_before, report.load_after)
    busy = " to ".join("unknown" if value is None else f"{value:.1f}" for value in load)
    return Text(
        f"{report.bundle}; {report.machine}, {report.threads} used; {versions}; load {busy}"
    )


def _openings(rows: Sequence[Opening]) -> Table:
    table = _table(
        "A fresh process",
        ("engine",),
        ("first open\n(s)", "open\n(s)", "cold start\n(s)", "loaded\n(MiB)", "peak\n(MiB)"),
    )
    optional: dict[str, Callable[[Opening], float | None]] = {
        "device\n(MiB)": lambda row: row.device_mib,
        "a step\n(J)": lambda row: sum(row.joules.values()) if row.joules else None,
    }
    shown = {h: value for h, value in optional.items() if any(value(r) is not None for r in rows)}
    for heading in shown:
        table.add_column(heading, justify="right")
    devices = dict.fromkeys(device for row in rows for device in row.joules or {})
    missing = [h.replace("\n", " ") for h in optional if h not in shown]
    table.caption = " ".join(
        [
            "First open: no cache, plans built. Cold start: process start to the end of its first "
            "step, cache and disk warm. Peak: one tile, one member.",
            *([f"Energy: of {', '.join(devices)}."] if devices else []),
            *([f"Not readable here: {', '.join(missing)}."] if missing else []),
        ]
    )
    for row in rows:
        table.add_row(
            f"{row.engine} {row.precision}",
            _best(rows, row, lambda r: r.first_open_s, "{:.2f}"),
            _best(rows, row, lambda r: r.open_s, "{:.2f}"),
            _best(rows, row, lambda r: r.cold_start_s, "{:.2f}"),
            _best(rows, row, lambda r: r.loaded_mib, "{:.0f}"),
            _best(rows, row, lambda r: r.peak_mib, "{:.0f}"),
            *(_best(rows, row, value, "{:.2f}") for value in shown.values()),
        )
    return table


def _batches(bundle: str, rows: Sequence[Steps]) -> Table:
    table = _table(
        f"A step of {bundle}",
        ("engine",),
        ("tiles\na call", "p50\n(ms)", "p95\n(ms)", "p99\n(ms)", "p50 a tile\n(ms)", "calls"),
    )
    before = None
    for row in rows:
        engine = f"{row.engine} {row.precision}"
        if before not in (None, engine):
            table.add_section()
        table.add_row(
            engine if engine != before else "",
            str(row.batch),
            *(f"{ms:.1f}" for ms in (row.p50_ms, row.p95_ms, row.p99_ms)),
            _best(rows, row, lambda r: r.tile_ms, "{:.1f}"),
            str(row.calls),
        )
        before = engine
    return table


def _models(report: BenchReport, singles: Sequence[Steps]) -> Table:
    own = report.bundle
    table = _table(
        "Models, one tile",
        ("engine", "model"),
        ("a step p50\n(ms)", f"over\n{own}", "end to end\n(s)", f"over\n{own}"),
    )
    table.caption = (
        f"End to end: condition, {report.steps_a_member} steps ({report.sampler}) and inverse, one "
        "member. Ratios are medians of the ratios within a round."
    )
    ends = {(e.engine, e.precision, e.model): e.p50_s for e in report.end_to_end}
    ratios = {(r.engine, r.precision, r.model): r for r in report.ratios}
    before = None
    for row in sorted(singles, key=lambda r: _order(report, r)):
        engine, key = f"{row.engine} {row.precision}", (row.engine, row.precision, row.model)
        if before not in (None, engine):
            table.add_section()
        ratio = ratios.get(key)
        table.add_row(
            engine if engine != before else "",
            row.model,
            f"{row.p50_ms:.1f}",
            f"{ratio.step:.1f} x" if ratio else "",
            f"{ends[key]:.2f}" if key in ends else "",
            f"{ratio.end_to_end:.1f} x" if ratio and ratio.end_to_end else "",
        )
        before = engine
    return table


def _order(report: BenchReport, row: Steps) -> int:
    """Engines as they were opened; a sort keeps the models' order."""
    return [(o.engine, o.precision) for o in report.openings].index((row.engine, row.precision))


def _table(title: str, names: Sequence[str], *numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for name in names:
        table.add_column(name, no_wrap=True)
    for heading in (h for group in numbers for h in group):
        table.add_column(heading, justify="right")
    return table


def _best(rows: Sequence[Any], row: Any, value: Callable[[Any], float | None], form: str) -> Text:
    """A number, marked where no other row's is smaller."""
    got = value(row)
    if got is None:
        return Text(_UNREADABLE)
    smallest = min(v for r in rows if (v := value(r)) is not None)
    return Text(form.format(got), style=_BEST if got == smallest and len(rows) > 1 else "")
