"""Who takes turns in `wdm-run bench`: which engines, and a model on each of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from wdm_runtime.bench.models import Model
from wdm_runtime.bench.report import Problem
from wdm_runtime.engines import AUTO, Choice, Engine, select, survey
from wdm_runtime.errors import WdmError
from wdm_runtime.timing import feeds_of

ALL = "all"
_METERED_S = 2.0


@dataclass
class Candidate:
    """A model on an engine at a batch; times by round [s]."""

    model: Model
    choice: Choice
    batch: int
    score: Engine
    seconds: dict[int, float] = field(default_factory=dict)
    ends: dict[int, float] = field(default_factory=dict)
    failed: bool = False

    @property
    def name(self) -> str:
        """In words."""
        return (
            f"{self.model.name} on {self.choice.kind} in {self.choice.precision}, "
            f"batch {self.batch}"
        )


def choices_of(names: str) -> tuple[list[Choice], list[Problem]]:
    """The engines and precisions to measure, and those that do not work here.

    Parameters
    ----------
    names
        ``"all"``, or names of engines with commas between, each with ``/precision`` or all of its.

    Raises
    ------
    EngineError, MissingDependencyError
        An engine asked for by name cannot be had.
    """
    if names == ALL:
        findings = survey()
        problems = [Problem(f.kind, f.problem) for f in findings if f.problem]
        return [select(f.kind, p) for f in findings for p in f.precisions], problems
    chosen = []
    for name in names.split(","):
        kind, _, precision = name.strip().partition("/")
        first = select(kind, precision or AUTO)
        wanted = (first.precision,) if precision or kind == AUTO else first.works
        chosen += [select(first.kind, p) for p in wanted]
    return list(dict.fromkeys(chosen)), []


class Repeated:
    """Steps on one tile for a while, counted."""

    def __init__(self, score: Engine) -> None:
        self._score, self._feeds, self.done = score, feeds_of(score.inputs, 1), 0

    def __call__(self) -> None:
        end = time.perf_counter() + _METERED_S
        while self.done == 0 or time.perf_counter() < end:
            self._score.run(self._feeds)
            self.done += 1


@contextmanager
def noting(candidate: Candidate, problems: list[Problem]) -> Iterator[None]:
    """What fails is a problem of one candidate, which then takes no more turns."""
    try:
        yield
    except WdmError as error:
        candidate.failed = True
        problems.append(Problem(candidate.name, str(error)))
