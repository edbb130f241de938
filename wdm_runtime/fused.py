"""The loop in which the engine does the sampler's update, for frames that one tile covers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from wdm_runtime.engines.step import StepEngine
from wdm_runtime.errors import EngineError, MissingDependencyError, OutputError
from wdm_runtime.samplers import Noise, Step
from wdm_runtime.stepping import StepTime

Array = npt.NDArray[np.float32]


class FusedStep:
    """A step engine that is opened when first needed: most domains have more tiles than one.

    Parameters
    ----------
    open_engine
        Opens it.
    required
        Whether an engine that does not open is an error; else the loop in NumPy goes on alone.
    note
        Told, once each, what made the loop in NumPy do the work.
    """

    def __init__(
        self, open_engine: Callable[[], StepEngine], required: bool, note: Callable[[str], None]
    ) -> None:
        self._open, self._required, self._note = open_engine, required, note
        self._engine: StepEngine | None = None
        self._failed = self._overflowed = self._skipped = False
        self._lock = threading.Lock()  # the engine holds the states of one caller at a time

    def available(self) -> bool:
        """Whether the engine opens, or is open.

        Raises
        ------
        BundleError
            The bundle's fused graph is not what it should be.
        EngineError, MissingDependencyError, OutputError
            It does not open and is required.
        """
        with self._lock:
            if self._engine is None and not self._failed:
                try:
                    self._engine = self._open()
                except (EngineError, MissingDependencyError, OutputError) as error:
                    if self._required:
                        raise
                    self._failed = True
                    self._note(f"The sampler's update is done in NumPy, not on the engine. {error}")
            return self._engine is not None

    def integrate(
        self,
        x: Array,
        condition: Array,
        steps: Sequence[Step],
        noise: Noise,
        on_step: Callable[[StepTime], None] | None,
    ) -> tuple[Array, npt.NDArray[np.bool_]]:
        """As `integrate_on_engine`, where `available`, and which estimates are finite (n,).

        Steps are told of once that is known, and of the finite alone.
        """
        assert self._engine is not None, "available() comes first"
        taken: list[StepTime] = []
        with self._lock:
            found = integrate_on_engine(self._engine, x, condition, steps, noise, taken.append)
        finite = np.asarray(np.isfinite(found).all(axis=(1, 2, 3)))
        share = float(finite.mean())
        if on_step and share:
            for step in taken:
                on_step(
                    StepTime(
                        share * step.seconds,
                        share * step.engine_seconds,
                        int(finite.sum()),
                        fused=True,
                    )
                )
        if not finite.all() and not self._overflowed:
            self._overflowed = True
            self._note(
                "Fused steps gave values that are not finite; such samples are computed again "
                "by the loop in NumPy, which watches every batch."
            )
        return found, finite

    def skipped(self) -> None:
        """Note that a draw covers more tiles than one, where fused steps were asked for."""
        if self._required and not self._skipped:
            self._skipped = True
            self._note(
                "Members that more than one tile covers are drawn by the loop in NumPy, not by "
                "fused steps: their tiles are blended between steps."
            )

    def close(self) -> None:
        """Free the engine if it was opened."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()


def integrate_on_engine(
    engine: StepEngine,
    x: Array,
    condition: Array,
    steps: Sequence[Step],
    noise: Noise,
    on_step: Callable[[StepTime], None] | None,
) -> Array:
    """What `wdm_runtime.samplers.integrate` does, for states of one tile each.

    Parameters
    ----------
    engine
        Keeps the states. The noise of a step is drawn while it computes the one before.
    x, condition
        States at the first step's time and their conditions, (n, c, h, w).
    steps, noise
        As for `integrate`.
    on_step
        Called after each step is queued, and after the last is done.

    Returns
    -------
    The last denoised estimates, (n, c, h, w).
    """
    began = time.perf_counter()
    engine.load(x, condition)
    for i, step in enumerate(steps):
        last = i + 1 == len(steps)
        fresh = noise(i) if step.of_noise else None
        called = time.perf_counter()
        engine.step(step.t, step.scalars, fresh)
        if last:
            denoised = engine.read()
        ended = time.perf_counter()
        if on_step:
            on_step(StepTime(ended - began, ended - called, len(x), fused=True))
        began = ended
    return denoised
