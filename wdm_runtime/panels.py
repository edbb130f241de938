"""What `wdm-run` prints: the plan before a run, the latency panel after it, a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from wdm_runtime import console
from wdm_runtime.bundle import Bundle
from wdm_runtime.doctor import Diagnosis
from wdm_runtime.engines.ort_libraries import Provider
from wdm_runtime.latency import Report
from wdm_runtime.plan import Plan
from wdm_runtime.precision import PrecisionCheck
from wdm_runtime.selftest import Check


def progress_bar(quiet: bool) -> Progress:
    """A bar over tile evaluations, on the error stream and on terminals only."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} tiles"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console.err,
        disable=quiet or not console.err.is_terminal,
        transient=True,
    )


def build_line(quiet: bool) -> Callable[[str, int, int], None]:
    """What shows the phases of a TensorRT build, a line each, on the error stream."""
    shown: set[str] = set()

    def show(phase: str, _: int, __: int) -> None:
        if not quiet and phase not in shown:
            shown.add(phase)
            console.err.print(f"building the plan: {phase}", highlight=False)

    return show


def note(text: str) -> None:
    """One line on the error stream."""
    console.err.print(f"note: {text}", highlight=False, soft_wrap=True)


def plan_line(plan: Plan, seconds_per_tile: float) -> str:
    """One line: tiles, the shares that need none or are missing, memory and expected time."""
    frames, tiles = len(plan.tiles), sum(plan.tiles)
    seconds = plan.evaluations * seconds_per_tile
    return (
        f"plan: {_count(frames, 'frame')}, {_count(tiles, 'tile')} x "
        f"{_count(plan.members, 'member')} x {plan.steps} steps, {plan.untiled_share:.0%} needs no "
        f"tile{_missing(plan.missing_share)}; about {_duration(seconds)}, "
        f"{plan.memory_bytes / 2**20:,.0f} MiB of arrays"
    )


def _missing(share: float) -> str:
    return f", {share:.1%} of the input is missing" if share else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def diagnosis_table(found: Diagnosis) -> Table:
    """What `wdm-run doctor` shows."""
    rows = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")

    def add(name: str, text: str) -> None:
        rows.add_row(name, Text(text))

    add("wdm-edge", f"{found.version}, {found.python}, {found.platform}")
    add("CPU", f"{_count(found.cpu_threads, 'thread')} for this process")
    if found.jetson:
        add("Jetson", found.jetson)
    if found.gpu:
        gpu = found.gpu
        add("GPU", f"{gpu}, {gpu.memory_bytes / 2**30:.1f} GiB")
        add("driver", f"runs CUDA up to {gpu.cuda[0]}.{gpu.cuda[1]}")
    else:
        add("GPU", f"none. {found.gpu_problem}")
    add("packages", ", ".join(f"{name} {text}" for name, text in found.packages.items()))
    for provider in found.providers:
        if needs := _needs(provider):
            add(provider.file.removeprefix("libonnxruntime_").removesuffix(".so"), needs)
    said = {found.gpu_problem: "GPU"}  # several engines have the same in their way: once is enough
    for engine in found.engines:
        if engine.precisions:
            add(engine.kind, ", ".join(engine.precisions))
        elif engine.problem in said:
            add(engine.kind, f"no, for the same reason as {said[engine.problem]}")
        else:
            said[engine.problem] = engine.kind
            add(engine.kind, f"no. {engine.problem}")
    for text in found.advice:
        add("advice", text)
    add("auto", found.auto or "no engine works here")
    return rows


def _needs(provider: Provider) -> str:
    """What a part of ONNX Runtime needs, with what fits; parts of the system only if missing."""
    shown = [
        library.name
        + (f" -> {library.install}" if library.install else "")
        + ("" if library.found else " (not found)")
        for library in provider.needs
        if library.install or not library.found
    ]
    return ", ".join(shown)


def check_line(check: Check) -> str:
    """One line of `wdm-run selftest`."""
    name = f"{check.engine} in {check.precision}"
    if check.difference is None:
        return f"FAILED {name}: {check.problem}"
    graph = "" if check.plain_ms is None else f" ({check.plain_ms:.2f} without a CUDA graph)"
    line = (
        f"{'passed' if check.passed else 'FAILED'} {name}, {check.library}, {check.device}: "
        f"difference {check.difference:.1e}, limit {check.tolerance:.0e}; opened in "
        f"{check.open_s:.1f} s; p50 {check.p50_ms:.2f}, p95 {check.p95_ms:.2f} ms{graph}"
    )
    return "; ".join([line, *filter(None, [check.problem]), *check.notes])


def latency_panel(report: Report, target: Path) -> Panel:
    """The latency report of a run."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column()
    rows.add_column(overflow="fold")
    rows.add_row("engine", f"{report.engine}, {report.precision}, {report.device}")
    rows.add_row(
        "work",
        f"{_count(report.frames, 'frame')} x {_count(report.members, 'member')}, {report.way}; "
        f"{report.tiles_total} tile evaluations, {report.untiled_share:.0%} of the domain needed "
        f"no tile{_missing(report.missing_share)}",
    )
    step = report.step_latency_ms
    if step:
        rows.add_row(
            "step latency", f"p50 {step.p50:.1f}  p95 {step.p95:.1f}  p99 {step.p99:.1f} ms a tile"
        )
    if report.outside_engine_fraction is not None:
        rows.add_row("outside engine", f"{report.outside_engine_fraction:.1%} of the loop")
    if report.fused_steps:
        rows.add_row("fused", f"{_count(report.fused_steps, 'sampler step')} wholly on the engine")
    if report.fp32_reruns:
        rows.add_row("again in fp32", f"{report.fp32_reruns} x a batch that was not finite")
    if report.fp32_redrawn_members:
        rows.add_row("drawn again", f"{_count(report.fp32_redrawn_members, 'member')} in fp32")
    if report.suspect_members:
        rows.add_row("suspect", f"{_count(report.suspect_members, 'member')} cannot be true")
    if report.pixel_step_latency_ms:  # often of an earlier run, whose machine was busier or not
        rows.add_row(
            "pixel model",
            f"{report.speedup_vs_pixel:.1f} x this one's time on the same engine: "
            f"{report.pixel_step_latency_ms:.0f} and {report.score_step_latency_ms:.1f} ms a tile, "
            f"in turns, at {report.pixel_measured}",
        )
    memory = f", peak memory {report.peak_rss_mib:.0f} MiB" if report.peak_rss_mib else ""
    rows.add_row("total", f"{report.wall_s:.1f} s, {report.km2_per_s:,.0f} km2/s{memory}")
    rows.add_row("output", str(target))
    return Panel(rows, title=f"wdm-run {report.bundle}", expand=False)


def bundle_table(bundle: Bundle) -> Table:
    """What a bundle is and holds."""
    manifest = bundle.manifest
    table = Table(title=f"{manifest.name} ({bundle.path})", show_header=False)
    wavelet, training, domain = manifest.wavelet, manifest.training, manifest.domain
    table.add_row("sha256", bundle.sha256)
    table.add_row("licence", manifest.licence)
    table.add_row("wavelet", f"{wavelet.name}, {wavelet.levels} levels")
    table.add_row("factor, tile", f"{manifest.factor}, {manifest.tile_px} x {manifest.tile_px} px")
    south, north = domain.latitudes
    table.add_row("trained at", f"{domain.spacing_km:g} km, {south:g} to {north:g} degrees north")
    transform = manifest.transform
    of_rate = f"{transform.name} of rate + {transform.offset_mm_h:g} mm/h"
    table.add_row("transform", f"{of_rate}, dry below {transform.dry_threshold_mm_h} mm/h")
    schedule = manifest.schedule
    ends = f"log SNR {schedule.logsnr_start:g} to {schedule.logsnr_end:g}"
    table.add_row("schedule", f"{schedule.name}, {ends}, predicts {manifest.prediction}")
    table.add_row("training", f"{training.get('steps')} steps, {training.get('seconds')} s")
    for line in _precision_lines(manifest.precision_check):
        table.add_row("precision", line)
    for role, entry in manifest.graphs.items():
        table.add_row(role, f"{entry.file}, {entry.bytes / 1e6:.1f} MB, sha256 {entry.sha256[:12]}")
    return table


def _precision_lines(check: PrecisionCheck | None) -> Iterator[str]:
    """One line of magnitudes and one for each precision."""
    if check is None:
        yield "not measured: wdm-export check BUNDLE FILES..."
        return
    peak = check.ranges.largest[0]
    yield (
        f"on {_count(check.tiles, 'tile')} x {_count(check.members, 'member')} of "
        f"{', '.join(check.files)}, {check.way}: "
        f"largest activation {peak.largest:.1f}, fp16 holds 65504"
    )
    for run in check.runs:
        yield (
            f"{run.precision} against fp32: mean difference {run.mean_difference_mm_h:.2g} mm/h of "
            f"{run.mean_rate_mm_h:.2f}, {run.spread_share:.2%} of the members' spread"
        )
    for name, why in check.not_measured.items():
        yield f"{name} not measured: {why}"
