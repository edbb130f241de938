"""A bundle's graphs on their engines, each seen to compute what the bundle says."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from wdm_runtime.batching import fastest_batch
from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import (
    AUTO,
    Choice,
    Engine,
    open_graph,
    open_step,
    open_transforms,
    select,
    step_pays,
)
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.step import StepEngine
from wdm_runtime.engines.watched import WatchedEngine
from wdm_runtime.errors import EngineError, MissingDependencyError, WdmError
from wdm_runtime.fused import FusedStep
from wdm_runtime.golden import check_engine, check_step
from wdm_runtime.manifest import STEP_ROLE
from wdm_runtime.remembered import measured


@dataclass(frozen=True)
class OpenedEngines:
    """What sampling runs on.

    ``score`` is the score graph, ``transforms`` the wavelet transform and its inverse, ``choice``
    says which engine and why, ``batch`` how many tiles a call takes, and ``fused`` is the sampler's
    update on the engine where that pays.
    """

    score: WatchedEngine
    transforms: tuple[Engine, Engine]
    choice: Choice
    batch: int
    fused: FusedStep | None = None


def open_engines(
    bundle: Bundle, engine: str, precision: str, options: EngineOptions
) -> OpenedEngines:
    """Open everything a `Downscaler` needs, with the batch that is asked for or measured.

    Raises
    ------
    BundleError, EngineError, MissingDependencyError
    """
    with ExitStack() as opened:
        choice, score = _open_score(bundle, engine, precision, options)
        opened.callback(score.close)
        # A CPU gains little from batches, as the caches are the limit, and starts later with them.
        batch = options.batch or 1
        if options.measure_batch:
            batch, score, found = fastest_batch(
                score,
                lambda batch: _watched(bundle, choice, replace(options, batch=batch)),
                measured("batch", bundle, score, options),
            )
            opened.callback(score.close)
            choice = replace(choice, why=f"{choice.why} {found}")
        transforms = open_transforms(bundle, choice.kind, options)
        for transform in transforms:
            opened.callback(transform.close)
        fused = _fused(bundle, choice, replace(options, batch=batch))
        opened.pop_all()  # nothing failed: they are the caller's
    return OpenedEngines(score, transforms, choice, batch, fused)


def _open_score(
    bundle: Bundle, engine: str, precision: str, options: EngineOptions
) -> tuple[Choice, WatchedEngine]:
    """The score graph on the engine asked for, or on the best that really opens it."""

    rejected: dict[tuple[str, str], str] = {}
    while True:
        choice = select(engine, precision, rejected)
        try:
            return choice, _watched(bundle, choice, options)
        except (EngineError, MissingDependencyError) as error:
            if engine != AUTO:
                raise
            rejected[choice.kind, choice.precision] = str(error)


def _watched(bundle: Bundle, choice: Choice, options: EngineOptions) -> WatchedEngine:
    """The score graph on its engine; it and its fp32 are seen to compute what the bundle says.

    Not every engine has fp32 everywhere.
    """

    def opened(graph: str, computes_in: str) -> Engine:
        role = f"score_{graph}"
        if role not in bundle.manifest.graphs:
            raise EngineError(
                f"{bundle.path}: has no graph '{role}' for {choice.kind} in {computes_in}; "
                f"expected one of {', '.join(bundle.manifest.graphs)}. Choose another --precision, "
                "or export the bundle again."
            )
        engine = open_graph(bundle, role, choice.kind, computes_in, options)
        try:
            check_engine(bundle, engine)
        except WdmError:
            engine.close()
            raise
        return engine

    rescued = choice.precision != "fp32" and "fp32" in choice.works
    full = partial(opened, "fp32", "fp32") if rescued else None
    return WatchedEngine(opened(choice.graph, choice.precision), full, options.note)


def _fused(bundle: Bundle, choice: Choice, options: EngineOptions) -> FusedStep | None:
    """The sampler's update on the engine, where asked for or faster; bundles may be without."""
    asked = options.fused_step
    if not (
        asked or (asked is None and step_pays(choice.kind) and STEP_ROLE in bundle.manifest.graphs)
    ):
        return None

    def opened() -> StepEngine:
        step = open_step(bundle, choice, options)
        try:
            check_step(bundle, step, choice, options.batch or 1)
        except WdmError:
            step.close()
            raise
        return step

    fused = FusedStep(opened, bool(asked), options.note)
    if asked:
        fused.available()  # what was asked for and cannot be had is an error at once
    return fused
