"""Whether reduced precision is safe for a bundle: magnitudes, and whole runs against fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from wdm_export.check_graphs import ROLE, PeakEngine, open_rounded
from wdm_export.check_sampling import Array, Draws, compare, draw, wettest_tiles
from wdm_export.parity import Comparison
from wdm_runtime.bundle import Bundle
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines import Choice, Engine, open_graph, open_transforms
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.watched import WatchedEngine
from wdm_runtime.errors import EngineError, MissingDependencyError
from wdm_runtime.field import PrecipField
from wdm_runtime.opening import OpenedEngines
from wdm_runtime.precision import PrecisionCheck, PrecisionRun, Ranges
from wdm_runtime.version import version

LARGEST = 65504 / 8  # an eighth of what fp16 holds: margin for rain no file here has
SHOWN = 10
_CPU = "ort-cpu"
# A few cells above a high rate are no statistic: fewer count as this many.
_LEAST_CELLS = 1000

OnSample = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """What a precision may change. Shares are of fp32's value, or of what is named."""

    mean: float  # of the mean rate
    largest: float  # of the largest rate, anywhere
    spread: float  # of the difference of two members
    spectrum_db: float
    wet_fraction: float
    cells: float


# Of the sample in this repository the shipped model gave, in fp16, 0.0003, 0.009, 0.001, 0.004 dB,
# 0.00002 and 0.0003, and about ten times as much in bf16.
LIMITS = {
    "fp16": Limits(0.005, 0.1, 0.01, 0.05, 0.0005, 0.005),
    "bf16": Limits(0.05, 0.25, 0.1, 0.25, 0.005, 0.05),
}


def check_precision(
    bundle: Bundle,
    fields: Iterable[PrecipField],
    draws: Draws,
    tiles: int,
    options: EngineOptions | None = None,
    on_sample: OnSample = lambda _: None,
) -> PrecisionCheck:
    """Measure a bundle's fp16 graph, and bf16 where this machine has it, on real rain.

    Parameters
    ----------
    bundle
        With a score graph in fp16.
    fields
        Coarse fields, or fine ones that are averaged; the wettest tiles are taken.
    draws
        Members and seed of every tile.
    tiles
        Tiles at most.
    on_sample
        Called with the precision after every sample.

    Returns
    -------
    The numbers, with no command and files yet. `comparisons` judges them.

    Raises
    ------
    BundleError, InputError, EngineError
    """
    options = options or EngineOptions()
    chosen = wettest_tiles(fields, bundle.manifest, tiles)

    def sampled(downscaler: Downscaler, name: str) -> Array:
        with downscaler:
            return draw(downscaler, chosen, draws, lambda: on_sample(name))

    reference, watched = _reference(bundle, options)
    fp32 = sampled(reference, "fp32")
    reduced, missing = [(_rounded(bundle, options), ", every result rounded to fp16")], {}
    try:
        reduced.append((Downscaler.open(bundle, "openvino", "bf16", options), ""))
    except (EngineError, MissingDependencyError) as error:
        missing["bf16"] = str(error)
    runs = []
    for downscaler, how in reduced:
        engine = downscaler.engine
        rates = sampled(downscaler, engine.precision)
        how = f"{engine.version}{how}"
        runs.append(compare(engine.precision, how, fp32, rates, engine.fp32_reruns))
    return PrecisionCheck(
        command="",
        files=(),
        versions={"wdm-edge": version(), "numpy": np.__version__, "fp32": watched.version},
        tiles=len(chosen),
        members=draws.members,
        seed=draws.seed,
        steps=draws.way.steps,
        sampler=draws.way.sampler,
        noise_scale=draws.way.noise_scale,
        time_grid=draws.way.time_grid,
        consistency=draws.consistency,
        ranges=_ranges(watched),
        runs=tuple(runs),
        not_measured=missing,
    )


def _reference(bundle: Bundle, options: EngineOptions) -> tuple[Downscaler, PeakEngine]:
    """fp32, with the magnitudes of what fp16 has to hold on its way."""
    engine = PeakEngine(_fp32(bundle, options), bundle, options)
    watched = WatchedEngine(engine, None, options.note)
    return _downscaler(bundle, watched, options), engine


def _rounded(bundle: Bundle, options: EngineOptions) -> Downscaler:
    engine = open_rounded(bundle.graph(ROLE), bundle.manifest.graphs[ROLE], options)
    watched = WatchedEngine(engine, lambda: _fp32(bundle, options), options.note)
    return _downscaler(bundle, watched, options)


def _fp32(bundle: Bundle, options: EngineOptions) -> Engine:
    return open_graph(bundle, "score_fp32", _CPU, options=options)


def _downscaler(bundle: Bundle, engine: WatchedEngine, options: EngineOptions) -> Downscaler:
    precision = engine.precision
    choice = Choice(_CPU, precision, precision, f"{_CPU} in {precision}", (precision,))
    transforms = open_transforms(bundle, _CPU, options)
    return Downscaler(bundle, OpenedEngines(engine, transforms, choice, batch=1))


def _ranges(engine: PeakEngine) -> Ranges:
    # NaN first: it compares with nothing.
    falling = sorted(engine.peaks(), key=lambda pair: -np.nan_to_num(pair[1].largest, nan=np.inf))
    norms = [peak for site, peak in falling if site.into_norm]
    results = [peak for site, peak in falling if not site.moved]
    return Ranges(len(results), tuple(results[:SHOWN]), norms[0])


def comparisons(check: PrecisionCheck) -> list[Comparison]:
    """What was measured beside its limits."""
    peak = check.ranges.largest[0]
    name = f"largest in fp16: {peak.tensor} ({peak.op}, {peak.part})"
    found = [Comparison(name, peak.largest, LARGEST)]
    for run in check.runs:
        found += _compared(run, LIMITS[run.precision])
    return found


def _compared(run: PrecisionRun, limits: Limits) -> list[Comparison]:
    # Not max(): it loses NaN.
    worst_db = float(np.abs([0.0, *run.spectrum_db.values()]).max())
    cells = max(
        abs(run.cells[rate] - count) / max(count, _LEAST_CELLS)
        for rate, count in run.cells_fp32.items()
    )
    return [
        Comparison(f"{run.precision} against fp32: {what}", got, limit)
        for what, got, limit in (
            ("mean difference / mean rate", run.mean_difference_mm_h / run.mean_rate_mm_h,
             limits.mean),
            ("largest difference / largest rate",
             run.max_difference_mm_h / run.largest_rate_mm_h, limits.largest),
            ("difference / spread of members", run.spread_share, limits.spread),
            ("spectrum, worst band, dB", worst_db, limits.spectrum_db),
            ("wet fraction", abs(run.wet_fraction - run.wet_fraction_fp32), limits.wet_fraction),
            (f"cells above {', '.join(run.cells)} mm/h, worst share", cells, limits.cells),
            ("batches that were not finite", float(run.fp32_reruns), 0.0),
        )
    ]  # fmt: skip
