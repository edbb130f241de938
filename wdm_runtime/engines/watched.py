"""An engine whose answers are looked at: what half precision cannot hold is computed in fp32."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from wdm_runtime.engines import Engine
from wdm_runtime.errors import EngineError

Array = npt.NDArray[np.float32]


class WatchedEngine:
    """An engine that never gives NaN or Inf.

    Parameters
    ----------
    engine
        Runs the graph.
    open_full
        Opens the graph in fp32 where ``engine`` computes in less, None if there is no such. Called
        at most once, when first needed.
    note
        Told once that a batch was computed again.
    """

    def __init__(
        self, engine: Engine, open_full: Callable[[], Engine] | None, note: Callable[[str], None]
    ) -> None:
        self._engine, self._open_full, self.note = engine, open_full, note
        self._full: Engine | None = None
        self._lock = threading.Lock()  # threads may share an engine, and one is enough
        self.kind, self.device, self.version = engine.kind, engine.device, engine.version
        self.precision, self.inputs, self.outputs = engine.precision, engine.inputs, engine.outputs
        self.fp32_reruns = 0

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """The graph's output, all of it finite.

        Raises
        ------
        EngineError
            Not even fp32 gives finite values, or there is none to ask.
        """
        answer, precision = self._engine.run(feeds), self.precision
        if np.isfinite(answer).all():
            return answer
        full = self.full
        if full is not None:
            with self._lock:
                self.fp32_reruns += 1
                first = self.fp32_reruns == 1
            if first:
                self.note(
                    f"{self.kind} in {self.precision} gave values that are not finite; such "
                    "batches are computed again in fp32, and the report counts them."
                )
            answer, precision = full.run(feeds), full.precision
            if np.isfinite(answer).all():
                return answer
        bad = int(answer.size - np.isfinite(answer).sum())
        raise EngineError(
            f"{self.version} in {precision} gave {bad} of {answer.size} values that are not "
            "finite; expected none. Check the input's rates, try --engine ort-cpu, or export the "
            "bundle again."
        )

    @property
    def full(self) -> Engine | None:
        """The same graph in fp32, opened when first asked for; None if this is all there is."""
        with self._lock:
            if self._full is None and self._open_full is not None:
                self._full = self._open_full()
            return self._full

    def close(self) -> None:
        """Free both engines."""
        self._engine.close()
        if self._full is not None:
            self._full.close()
