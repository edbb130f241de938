"""`wdm-run bench`: engines, precisions, batches and models on this machine, side by side.

Calls take turns: call i of each, then call i + 1 of each, and each timed call follows an untimed
one. So whatever else a machine does hits all alike, and ratios are medians of the ratios within a
round. What a process takes to start is measured on fresh processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from wdm_runtime.batching import BATCHES
from wdm_runtime.bench.meters import meters
from wdm_runtime.bench.models import PIXEL, Model, models_of, one_tile, wavelet_name
from wdm_runtime.bench.processes import measure_opening
from wdm_runtime.bench.report import (
    BenchReport,
    EndToEnd,
    Opening,
    Problem,
    Ratio,
    Steps,
    median_ratio,
    verdict,
)
from wdm_runtime.bench.turns import Candidate, Repeated, choices_of, noting
from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import Choice, gpu_of
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import EngineError, InputError, WdmError
from wdm_runtime.machine import load, machine
from wdm_runtime.presets import FAST, PRESETS
from wdm_runtime.timing import feeds_of, timed_call
from wdm_runtime.version import version

DEFAULT_CALLS = 10
_WAY = PRESETS[FAST]  # one for all models, whatever was fitted to a bundle
_ENDS = 3  # end to end: a pixel member takes a hundred steps' time of ours

Say = Callable[[str], None]


class Bench:
    """One run; what was measured when it is interrupted is still there for `report`.

    Parameters
    ----------
    bundle, against
        The bundle that everything is compared with, and other ones.
    names
        Engines, as for `choices_of`.
    calls
        Timed calls of each candidate.
    options
        How engines are opened; the batch is varied.
    say
        Told what is being done.
    key
        The public key that fresh processes, which read the bundle again, ask for.

    Raises
    ------
    WdmError
        Nothing that was asked for can be measured.
    """

    def __init__(
        self,
        bundle: Bundle,
        against: Sequence[Bundle],
        names: str,
        calls: int,
        options: EngineOptions,
        say: Say,
        key: Path | None = None,
    ) -> None:
        if calls < 1:
            raise InputError(f"--calls got {calls}; expected at least 1. Correct it.")
        self._bundle, self._options, self._say, self._calls = bundle, options, say, calls
        self._models = models_of(bundle, against)
        self._key = key
        self._choices, self._problems = choices_of(names)
        if not self._choices:
            reasons = " ".join(problem.reason for problem in self._problems)
            raise EngineError(f"No engine works here, so there is nothing to measure. {reasons}")
        self._openings: list[Opening] = []
        self._candidates: list[Candidate] = []
        self._versions = {"wdm-edge": f"wdm-edge {version()}", "numpy": f"numpy {np.__version__}"}
        self._load_before = load()
        self._complete = False

    def measure(self) -> None:
        """Measure everything: fresh processes, then calls in turn, members in turn, energy."""
        self._start_processes()
        with ExitStack() as stack:
            self._open(stack)
            self._take_turns()
            self._run_to_end(stack)
            self._meter()
        self._complete = True

    def report(self) -> BenchReport:
        """What was measured so far."""
        ratios = tuple(self._ratios())
        own = self._models[0]
        return BenchReport(
            bundle=own.name,
            bundle_sha256=self._bundle.sha256,
            machine=machine(),
            threads=self._options.cpu_threads,
            versions=self._versions,
            load_before=self._load_before,
            load_after=load(),
            sampler=_WAY.sampler,
            steps_a_member=_WAY.steps,
            complete=self._complete,
            openings=tuple(self._openings),
            steps=tuple(
                Steps.of(c.model.name, c.choice.kind, c.choice.precision, c.batch, values)
                for c in self._candidates
                if (values := c.seconds.values())
            ),
            end_to_end=tuple(
                EndToEnd(
                    c.model.name,
                    c.choice.kind,
                    c.choice.precision,
                    len(c.ends),
                    round(float(np.median(list(c.ends.values()))), 3),
                )
                for c in self._candidates
                if c.ends
            ),
            ratios=ratios,
            problems=tuple(self._problems),
            verdict=self._verdict(ratios),
        )

    def _start_processes(self) -> None:
        for choice in list(self._choices):
            name = f"{choice.kind} in {choice.precision}"
            self._say(f"{name}: fresh processes")
            try:
                opening = measure_opening(
                    self._bundle.path, choice, self._options.threads, self._key
                )
            except WdmError as error:
                self._problems.append(Problem(name, str(error)))
                self._choices.remove(choice)  # it would not open here either
            else:
                self._openings.append(opening)

    def _open(self, stack: ExitStack) -> None:
        """The bundle's own model at each batch, the others on single tiles."""
        for choice in self._choices:
            for model in self._models:
                for batch in BATCHES if model is self._models[0] else BATCHES[:1]:
                    self._add(stack, model, choice, batch)

    def _add(self, stack: ExitStack, model: Model, choice: Choice, batch: int) -> None:
        name = f"{model.name} on {choice.kind} in {choice.precision}, batch {batch}"
        self._say(f"{name}: opening")
        if not model.has(choice):
            reason = f"its bundle has no graph in {choice.graph}"
            self._problems.append(Problem(name, reason))
            return
        try:
            score = model.open_score(choice, replace(self._options, batch=batch))
        except WdmError as error:
            self._problems.append(Problem(name, str(error)))
            return
        stack.callback(score.close)
        self._versions[choice.kind] = score.version
        self._candidates.append(Candidate(model, choice, batch, score))

    def _take_turns(self) -> None:
        for i in range(self._calls):
            for candidate in self._working():
                self._say(f"round {i + 1} of {self._calls}: {candidate.name}")
                feeds = feeds_of(candidate.score.inputs, candidate.batch)
                with noting(candidate, self._problems):
                    candidate.score.run(feeds)
                    candidate.seconds[i] = timed_call(candidate.score, feeds)

    def _run_to_end(self, stack: ExitStack) -> None:
        singles = [c for c in self._working() if c.batch == 1]
        transforms = {}
        for c in singles:
            with noting(c, self._problems):
                transforms[c.name] = c.model.open_transforms(c.choice, self._options)
                for transform in transforms[c.name]:
                    stack.callback(transform.close)
        for i in range(min(_ENDS, self._calls)):
            for c in (c for c in singles if not c.failed):
                self._say(f"end to end, round {i + 1}: {c.name}")
                feeds = feeds_of(c.score.inputs, 1)
                with noting(c, self._problems):
                    c.score.run(feeds)
                    began = time.perf_counter()
                    one_tile(c.model.manifest, c.score, transforms[c.name], _WAY)
                    c.ends[i] = time.perf_counter() - began

    def _meter(self) -> None:
        """Energy of a step, over a few seconds of steps, for each meter that can be read."""
        for number, opening in enumerate(self._openings):
            single = self._single(self._models[0], opening.engine, opening.precision)
            if single is None or single.failed:
                continue
            joules = {}
            with noting(single, self._problems):
                for meter in meters(gpu_of(opening.engine)):
                    self._say(f"{single.name}: energy")
                    steps = Repeated(single.score)
                    energy = meter.joules(steps)
                    if energy is not None:
                        joules[meter.device] = round(energy / steps.done, 4)
            self._openings[number] = replace(opening, joules=joules or None)

    def _working(self) -> Iterator[Candidate]:
        return (c for c in self._candidates if not c.failed)

    def _single(self, model: Model, kind: str, precision: str) -> Candidate | None:
        """A model on single tiles, if it was timed, whatever failed later."""
        for c in self._candidates:
            engine = (c.choice.kind, c.choice.precision)
            if c.model is model and c.batch == 1 and c.seconds and engine == (kind, precision):
                return c
        return None

    def _ratios(self) -> Iterator[Ratio]:
        """The other models on single tiles over the bundle's own."""
        for choice in self._choices:
            own = self._single(self._models[0], choice.kind, choice.precision)
            for model in self._models[1:]:
                other = self._single(model, choice.kind, choice.precision)
                if own is None or other is None:
                    continue
                step = median_ratio(other.seconds, own.seconds)
                if step is not None:
                    end = median_ratio(other.ends, own.ends)
                    yield Ratio(model.name, choice.kind, choice.precision, step, end)

    def _verdict(self, ratios: Sequence[Ratio]) -> str | None:
        """On the engine that takes the bundle's own steps fastest."""
        own = self._models[0]
        found = [
            (float(np.median(list(single.seconds.values()))), ratio)
            for ratio in ratios
            if ratio.model == PIXEL and (single := self._single(own, ratio.engine, ratio.precision))
        ]
        if not found:
            return None
        _, best = min(found, key=lambda pair: pair[0])
        return verdict(wavelet_name(own.manifest), best, _WAY.sampler, _WAY.steps)
