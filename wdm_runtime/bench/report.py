"""What `wdm-run bench` found, as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from wdm_runtime.records import to_json
from wdm_runtime.timing import percentiles_ms

PAPER_SPEEDUP = 9  # WDM-2 over the pixel model, arXiv 2507.01354


@dataclass(frozen=True)
class Opening:
    """Fresh processes, each of one engine.

    ``first_open_s`` without any cache, a plan's build included; ``open_s`` and ``cold_start_s``
    with one, medians; the rest as in `wdm_runtime.bench.child.Start`, largest. ``joules``: of one
    step on one tile, by device; None where no meter can be read.
    """

    engine: str
    precision: str
    first_open_s: float
    open_s: float
    cold_start_s: float
    loaded_mib: float | None
    peak_mib: float | None
    device_mib: float | None
    joules: dict[str, float] | None


@dataclass(frozen=True)
class Steps:
    """Calls of a score network; milliseconds a call, and a tile."""

    model: str
    engine: str
    precision: str
    batch: int
    calls: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    tile_ms: float

    @classmethod
    def of(
        cls, model: str, engine: str, precision: str, batch: int, seconds: Iterable[float]
    ) -> Steps:
        """From the times of calls."""
        times = list(seconds)
        p50, p95, p99 = percentiles_ms(times)
        tile_ms = round(p50 / batch, 3)
        return cls(model, engine, precision, batch, len(times), p50, p95, p99, tile_ms)


@dataclass(frozen=True)
class EndToEnd:
    """One tile, one member, from coarse rates to fine ones [s]."""

    model: str
    engine: str
    precision: str
    runs: int
    p50_s: float


@dataclass(frozen=True)
class Ratio:
    """A model's time over the bundle's own, on the same engine: medians of ratios in a round."""

    model: str
    engine: str
    precision: str
    step: float
    end_to_end: float | None


@dataclass(frozen=True)
class Problem:
    """What could not be measured, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class BenchReport:
    """Everything. ``complete`` is False if it was interrupted; ``verdict`` is the last line."""

    bundle: str
    bundle_sha256: str
    machine: str
    threads: int
    versions: dict[str, str]
    load_before: float | None
    load_after: float | None
    sampler: str
    steps_a_member: int
    complete: bool
    openings: tuple[Opening, ...]
    steps: tuple[Steps, ...]
    end_to_end: tuple[EndToEnd, ...]
    ratios: tuple[Ratio, ...]
    problems: tuple[Problem, ...]
    verdict: str | None

    def to_json(self) -> str:
        """The report as JSON."""
        return to_json(asdict(self))


def median_ratio(over: dict[int, float], under: dict[int, float]) -> float | None:
    """Median over common rounds of one's time over the other's."""
    common = sorted(over.keys() & under.keys())
    return round(float(np.median([over[i] / under[i] for i in common])), 2) if common else None


def verdict(own: str, ratio: Ratio, sampler: str, steps: int) -> str:
    """The paper's claim beside what was measured here."""
    end = "not measured" if ratio.end_to_end is None else f"{ratio.end_to_end:.1f} x"
    return (
        f"{own} against the pixel model of the same widths, {ratio.engine} in {ratio.precision}: "
        f"{ratio.step:.1f} x a step, {end} end to end ({steps} steps, {sampler}, one tile, one "
        f"member); the paper reports {PAPER_SPEEDUP} x."
    )
