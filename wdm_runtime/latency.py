"""Step times and the latency report of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields, replace
from datetime import datetime, timezone

import numpy as np

from wdm_runtime.began import seconds_since_began
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines import open_graph
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import WdmError
from wdm_runtime.job import Outcome
from wdm_runtime.machine import peak_rss_mib
from wdm_runtime.presets import Preset
from wdm_runtime.records import to_json
from wdm_runtime.remembered import measured
from wdm_runtime.stepping import StepTime
from wdm_runtime.timing import feeds_of, percentiles_ms, timed_call
from wdm_runtime.version import version

_PROBE_CALLS = 2


@dataclass(frozen=True)
class StepLatency:
    """Percentiles of a sampler step's wall time per tile evaluation [ms]."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, steps: Iterable[StepTime]) -> StepLatency | None:
        """From steps without the warm-up; None without any."""
        seconds = [s.seconds / s.tiles for s in steps if s.tiles]
        return cls(*percentiles_ms(seconds)) if seconds else None


@dataclass(frozen=True)
class Report:
    """What ``--report`` writes.

    ``tiles_total``: network evaluations of single tiles; ``untiled_share``: share of the domain's
    fine cells that needed none; ``missing_share``: of the input's cells, over all frames, that
    are missing. ``step_latency_ms``: wall time of a sampler step over its tile
    evaluations, the first step (warm-up) excluded. ``outside_engine_fraction``: (sampling loop -
    engine calls) / sampling loop, without load, I/O, interpolation and probe. ``fp32_reruns``:
    batches that half precision could not hold and fp32 computed again. ``fused_steps``: sampler
    steps whose update the engine did too, with the state kept there. ``suspect_members``: members
    that cannot be true as they were written, ``fp32_redrawn_members`` those that fp32 drew again
    because of it, see `wdm_runtime.suspect`. ``wall_s``: import of the package to renamed output,
    ``probe_s`` beside it. ``pixel_step_latency_ms``: one evaluation of the pixel model without
    attention on one tile; ``score_step_latency_ms`` one of the score network, whose calls took
    turns with those, at ``pixel_measured`` (ISO 8601, UTC; may be an earlier run's);
    ``speedup_vs_pixel`` their ratio, which a busy machine leaves as it is.
    """

    engine: str
    device: str
    precision: str
    sampler: str
    steps: int
    noise_scale: float
    time_grid: str
    members: int
    frames: int
    tiles_total: int
    untiled_share: float
    missing_share: float
    step_latency_ms: StepLatency | None
    outside_engine_fraction: float | None
    fp32_reruns: int
    fused_steps: int
    suspect_members: int
    fp32_redrawn_members: int
    wall_s: float
    probe_s: float
    peak_rss_mib: float | None
    km2_per_s: float
    pixel_step_latency_ms: float | None
    score_step_latency_ms: float | None
    pixel_measured: str | None
    speedup_vs_pixel: float | None
    bundle: str
    bundle_sha256: str
    versions: dict[str, str]

    @property
    def way(self) -> Preset:
        """How the members were drawn."""
        return Preset(self.sampler, self.steps, self.noise_scale, self.time_grid)

    def to_json(self) -> str:
        """The report as JSON."""
        return to_json(asdict(self))


def report_of(downscaler: Downscaler, outcome: Outcome) -> Report:
    """The report of a run that just ended, without the pixel model."""
    plan, steps = outcome.plan, list(outcome.steps)
    wall_s, frames = seconds_since_began(), len(plan.tiles)
    return Report(
        engine=downscaler.engine.kind,
        device=downscaler.engine.device,
        precision=downscaler.choice.precision,
        **asdict(outcome.way),
        members=plan.members,
        frames=frames,
        tiles_total=sum(step.tiles for step in steps),
        untiled_share=round(plan.untiled_share, 4),
        missing_share=round(plan.missing_share, 4),
        step_latency_ms=StepLatency.of(steps[1:]),
        outside_engine_fraction=outside_engine_fraction(steps),
        fp32_reruns=outcome.fp32_reruns,
        fused_steps=outcome.fused_steps,
        suspect_members=outcome.suspects.members,
        fp32_redrawn_members=outcome.suspects.redrawn,
        wall_s=round(wall_s, 3),
        probe_s=0.0,
        peak_rss_mib=peak_rss_mib(),
        km2_per_s=round(outcome.area_km2 * plan.members * frames / wall_s, 1),
        pixel_step_latency_ms=None,
        score_step_latency_ms=None,
        pixel_measured=None,
        speedup_vs_pixel=None,
        bundle=downscaler.manifest.name,
        bundle_sha256=downscaler.bundle.sha256,
        versions={
            "wdm-edge": version(),
            "engine": downscaler.engine.version,
            "numpy": np.__version__,
        },
    )


def outside_engine_fraction(steps: list[StepTime]) -> float | None:
    """Share of the sampling loop that is not spent in engine calls.

    Noise is drawn beside them: on a CPU its time is part of what the engine then takes longer.
    """
    total = sum(s.seconds for s in steps)
    return round(1 - sum(s.engine_seconds for s in steps) / total, 4) if total else None


@dataclass(frozen=True)
class PixelProbe:
    """Calls of the pixel model's and of the score network in turns.

    ``pixel_ms``, ``score_ms``: the best of a few, on one tile [ms]; ``measured_s``: when [s since
    1970].
    """

    pixel_ms: float
    score_ms: float
    measured_s: float

    @property
    def measured(self) -> str:
        """When, in ISO 8601 and UTC, to the second."""
        return datetime.fromtimestamp(self.measured_s, timezone.utc).isoformat(timespec="seconds")


def measure_pixel(downscaler: Downscaler, options: EngineOptions) -> PixelProbe | None:
    """Times of the pixel model's score network and of the engine's own on one tile.

    Calls take turns, so that a busy machine slows both alike, and the best of a few counts.
    Measured once per bundle, engine, precision and machine; None if the bundle has no pixel graph
    of this precision.
    """
    bundle, engine, choice = downscaler.bundle, downscaler.engine, downscaler.choice
    role, graphs = f"pixel_{choice.graph}", bundle.manifest.graphs
    if role not in graphs:
        return None
    batch = downscaler.batch
    probes = measured("pixel", bundle, engine, options)
    names = [f"{batch}|{field.name}" for field in fields(PixelProbe)]
    known = [number for number in map(probes.get, names) if number is not None and number > 0]
    if len(known) == len(names) and max(known) <= time.time():  # damaged ones are not
        return PixelProbe(*known)
    options = replace(options, batch=1, measure_batch=False)
    pixel = open_graph(bundle, role, choice.kind, choice.precision, options)
    timed = (
        (pixel, feeds_of(graphs[role].inputs, 1), 1),
        (engine, feeds_of(graphs[f"score_{choice.graph}"].inputs, batch), batch),
    )
    best = [math.inf, math.inf]
    try:
        for _ in range(_PROBE_CALLS):
            for number, (network, feeds, tiles) in enumerate(timed):
                network.run(feeds)
                best[number] = min(best[number], timed_call(network, feeds) / tiles)
    finally:
        pixel.close()
    pixel_ms, score_ms = (round(1e3 * seconds, 3) for seconds in best)
    found = PixelProbe(pixel_ms, score_ms, round(time.time(), 3))
    probes.put(dict(zip(names, astuple(found), strict=True)))
    return found


def pixel_times(downscaler: Downscaler, options: EngineOptions) -> PixelProbe | None:
    """As `measure_pixel`; None, and a note, where something keeps the pixel model from running."""
    try:
        return measure_pixel(downscaler, options)
    except WdmError as error:
        options.note(f"The pixel model was not timed: {error}")
        return None


def with_pixel_probe(report: Report, downscaler: Downscaler, options: EngineOptions) -> Report:
    """A report with the pixel model's time and its ratio to the score network's beside it."""
    began = time.perf_counter()
    found = pixel_times(downscaler, options)
    report = replace(report, probe_s=round(time.perf_counter() - began, 3))
    if found is None:
        return report
    return replace(
        report,
        pixel_step_latency_ms=found.pixel_ms,
        score_step_latency_ms=found.score_ms,
        pixel_measured=found.measured,
        speedup_vs_pixel=round(found.pixel_ms / found.score_ms, 2),
    )
