"""The score function over the tiles of several samples at once, and the time its steps take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wdm_runtime.conditioning import Condition
from wdm_runtime.engines import Engine
from wdm_runtime.orientation import restored, turned
from wdm_runtime.tiling import Tiling

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StepTime:
    """Wall time of one sampler step, the engine's share of it, and its tile evaluations.

    ``fused``: the engine did the sampler's update too.
    """

    seconds: float
    engine_seconds: float
    tiles: int
    fused: bool = False


class TileNetwork:
    """v over the states of several samples: cut, evaluate in batches across samples, blend.

    Parameters
    ----------
    engine
        Runs the score graph.
    batch
        Tiles an engine call.
    samples
        Each sample's tiling and condition.
    on_step
        Called after each sampler step.
    """

    def __init__(
        self,
        engine: Engine,
        batch: int,
        samples: Sequence[tuple[Tiling, Condition]],
        on_step: Callable[[StepTime], None] | None,
    ) -> None:
        self.engine, self.batch, self.samples, self.on_step = engine, batch, samples, on_step
        self._jobs = [
            (sample, tile)
            for sample, (tiling, _) in enumerate(samples)
            for tile in range(len(tiling.tiles))
        ]

    def start(self) -> None:
        """Begin the first step."""
        self._began, self._in_engine = time.perf_counter(), 0.0

    def __call__(self, x: Array, t: float) -> Array:
        """v of states x (sample, c, h, w) at time t, 0 where no tile is."""
        v = np.zeros_like(x)
        when = np.array([t], dtype=np.float32)
        for first in range(0, len(self._jobs), self.batch):
            jobs = self._jobs[first : first + self.batch]
            feeds = {
                "x": np.stack([self._cut(x[s], s, tile) for s, tile in jobs]),
                "condition": np.stack(
                    [self._cut(self.samples[s][1].standardised, s, tile) for s, tile in jobs]
                ),
                "t": when,
            }
            began = time.perf_counter()
            tiles = self.engine.run(feeds)
            self._in_engine += time.perf_counter() - began
            for values, (s, tile) in zip(tiles, jobs, strict=True):
                tiling, given = self.samples[s]
                tiling.blend(restored(values, given.orientation), tile, v[s])
        return v

    def _cut(self, field: Array, sample: int, tile: int) -> Array:
        """A tile (c, size, size) as the network is to see it."""
        tiling, given = self.samples[sample]
        return turned(tiling.cut(field, tile), given.orientation)

    def step(self, _: int) -> None:
        """Note the step that just ended and begin the next."""
        seconds = time.perf_counter() - self._began
        if self.on_step:
            self.on_step(StepTime(seconds, self._in_engine, len(self._jobs)))
        self.start()
