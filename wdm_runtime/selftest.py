"""Engines against the bundle's golden inputs and outputs, on the machine that has the engines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from wdm_runtime.bundle import Bundle
from wdm_runtime.doctor import Diagnosis, diagnose
from wdm_runtime.engines import (
    AUTO,
    Engine,
    has_step,
    open_graph,
    open_step,
    select,
    survey,
)
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import WdmError
from wdm_runtime.fused import integrate_on_engine
from wdm_runtime.golden import TOLERANCES, Golden, read_golden
from wdm_runtime.manifest import STEP_ROLE
from wdm_runtime.presets import Preset
from wdm_runtime.records import to_json
from wdm_runtime.samplers import integrate
from wdm_runtime.timing import percentiles_ms, timed_call

Array = npt.NDArray[np.float32]
_CALLS = 10
_BATCH = 3
_FUSED_STEPS = 4


@dataclass(frozen=True)
class Check:
    """One engine in one precision.

    ``difference``: largest over all golden outputs, relative to the largest value;
    ``batch_difference``: the same between tiles in a batch and alone; ``fused_difference``: the
    same between a few fused steps and the loop in NumPy around the same engine, None where there
    is no fused step. Times are of one call with one tile, after warm-up. ``plain_ms``: median
    without a CUDA graph, for engines that have them.
    ``problem`` says why it failed.
    """

    engine: str
    precision: str
    tolerance: float
    device: str | None = None
    library: str | None = None
    open_s: float | None = None
    difference: float | None = None
    batch_difference: float | None = None
    fused_difference: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    cuda_graph: bool | None = None
    plain_ms: float | None = None
    notes: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it does what the bundle says."""
        return self.problem is None


@dataclass(frozen=True)
class SelfTest:
    """What `wdm-run selftest` found, with the machine it was found on."""

    bundle: str
    bundle_sha256: str
    checks: tuple[Check, ...]
    machine: Diagnosis

    @property
    def passed(self) -> bool:
        """Whether there is an engine, and every one did what the bundle says."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> str:
        """The report to attach to a bug."""
        return to_json({**asdict(self), "passed": self.passed})


def selftest(bundle: Bundle, engine: str, options: EngineOptions) -> Iterator[Check]:
    """Check one engine in all its precisions, or with ``"auto"`` all that work here.

    Raises
    ------
    EngineError, MissingDependencyError
        The engine that was asked for cannot be had.
    BundleError
        The bundle has no golden file.
    """
    golden = read_golden(bundle)
    if engine == AUTO:
        found = [(f.kind, p) for f in survey() for p in f.precisions]
    else:
        found = [(engine, p) for p in select(engine).works]
    for kind, precision in found:
        yield _check(bundle, golden, kind, precision, options)


def report(bundle: Bundle, checks: list[Check]) -> SelfTest:
    """The checks with the bundle and machine they were made on."""
    return SelfTest(bundle.manifest.name, bundle.sha256, tuple(checks), diagnose())


def _check(
    bundle: Bundle, golden: Golden, kind: str, precision: str, options: EngineOptions
) -> Check:
    notes: list[str] = []
    options = replace(options, note=notes.append)
    check = Check(kind, precision, TOLERANCES[precision])
    try:
        check = _measured(bundle, golden, check, options)
    except WdmError as error:  # what failed is the result
        check = replace(check, problem=str(error))
    return replace(check, notes=tuple(notes))


def _measured(bundle: Bundle, golden: Golden, check: Check, options: EngineOptions) -> Check:
    began = time.perf_counter()
    with ExitStack() as opened:
        engine = _open(bundle, check, options)
        opened.callback(engine.close)
        replays = getattr(engine, "replays", None)
        check = replace(
            check,
            device=engine.device,
            library=engine.version,
            open_s=round(time.perf_counter() - began, 3),
            cuda_graph=replays,
            difference=_difference(engine, golden),
            fused_difference=_fused_difference(bundle, engine, golden, check, options),
        )
        p50, p95 = _latency(engine, golden)
        t = float(golden.t[0])
        alone = np.concatenate([engine.run(golden.feeds(x[None], t)) for x in _tiles(golden)])
    check = replace(check, p50_ms=p50, p95_ms=p95)
    if replays:
        plain = _open(bundle, check, replace(options, cuda_graph=False))
        try:
            check = replace(check, plain_ms=_latency(plain, golden)[0])
        finally:
            plain.close()
    try:
        together = _together(bundle, golden, check, options)
    except WdmError as error:  # of several tiles: what was found of one stands
        return replace(check, problem=f"A batch of {_BATCH}: {error}")
    difference = float(np.abs(together - alone).max() / np.abs(alone).max())
    check = replace(check, batch_difference=difference)
    return replace(check, problem=_problem(check))


def _open(bundle: Bundle, check: Check, options: EngineOptions) -> Engine:
    role = f"score_{select(check.engine, check.precision).graph}"
    return open_graph(bundle, role, check.engine, check.precision, options)


def _problem(check: Check) -> str | None:
    found = [
        ("the golden outputs", check.difference),
        ("itself in a batch", check.batch_difference),
        ("itself in fused steps", check.fused_difference),  # None where there are none
    ]
    for what, got in found:
        if got is not None and not got <= check.tolerance:  # NaN fails too
            return f"differs from {what} by {got:.1e}; expected at most {check.tolerance:.0e}"
    return None


def _difference(engine: Engine, golden: Golden) -> float:
    answers = np.stack([engine.run(golden.feeds(golden.x, t))[0] for t in golden.t])
    return float(np.abs(answers - golden.v).max() / np.abs(golden.v).max())


def _tiles(golden: Golden) -> Array:
    """A batch of tiles that differ from each other."""
    return np.concatenate([np.roll(golden.x, shift, axis=-1) for shift in range(_BATCH)])


def _together(bundle: Bundle, golden: Golden, check: Check, options: EngineOptions) -> Array:
    """The batch in one call, on an engine opened for it: some have a plan for each size."""
    engine = _open(bundle, check, replace(options, batch=_BATCH))
    try:
        return engine.run(golden.feeds(_tiles(golden), float(golden.t[0])))
    finally:
        engine.close()


def _fused_difference(
    bundle: Bundle, engine: Engine, golden: Golden, check: Check, options: EngineOptions
) -> float | None:
    """A few steps of a run: the state after each depends on all of the update before it."""
    if STEP_ROLE not in bundle.manifest.graphs or not has_step(check.engine, check.precision):
        return None
    steps = Preset(steps=_FUSED_STEPS).plan(bundle.manifest.schedule)
    random = np.random.default_rng(0)
    noise = random.standard_normal((len(steps), *golden.x.shape), dtype=np.float32)

    def network(x: Array, t: float) -> Array:
        return engine.run(golden.feeds(x, t))

    looped = integrate(network, golden.x, steps, noise.__getitem__, lambda step: None)
    fused = open_step(bundle, select(check.engine, check.precision), options)
    try:
        found = integrate_on_engine(
            fused, golden.x, golden.condition, steps, noise.__getitem__, None
        )
    finally:
        fused.close()
    return float(np.abs(found - looped).max() / np.abs(looped).max())


def _latency(engine: Engine, golden: Golden) -> tuple[float, float]:
    """Median and 95th percentile of warm calls with one tile [ms]."""
    feeds = golden.feeds(golden.x, float(golden.t[0]))
    engine.run(feeds)
    p50, p95, _ = percentiles_ms(timed_call(engine, feeds) for _ in range(_CALLS))
    return p50, p95
