"""From draws of noise to rates: the reverse SDE of several samples at once, and what comes after.

Arrays are north first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wdm_runtime.conditioning import (
    Condition,
    Frame,
    condition,
    covered_cells,
    finish,
    interpolated,
    spread,
    valid_cells,
)
from wdm_runtime.consistency import block_residual, make_consistent, wet_fraction
from wdm_runtime.engines import Engine
from wdm_runtime.fused import FusedStep
from wdm_runtime.manifest import Manifest
from wdm_runtime.noise import INITIAL_STEP, Noise
from wdm_runtime.orientation import AS_IT_IS, restored, turned
from wdm_runtime.samplers import Step, integrate
from wdm_runtime.stepping import StepTime, TileNetwork
from wdm_runtime.suspect import (
    MINUTE_RECORD_MM_H,
    imbalance,
    not_finite,
    suspicion,
    unknown_cells,
)

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Balance:
    """A member against its coarse input.

    ``residual_mm_h`` and ``max_residual_mm_h`` are the mean and largest absolute difference of
    block means and input before the consistency step, faint rain included [mm h-1]; without one
    they are the output's. The wet fractions are shares of valid fine cells at or above the dry
    threshold, before it and after.
    """

    residual_mm_h: float
    max_residual_mm_h: float
    wet_fraction_before: float
    wet_fraction_after: float


@dataclass(frozen=True)
class Draw:
    """A member of a frame that waits to be sampled, in an orientation; without tiles it is dry."""

    frame: Frame
    time_index: int
    member: int
    noise: Noise
    orientation: int = AS_IT_IS


@dataclass(frozen=True)
class Member:
    """A finished draw: rates (y, x) [mm h-1], and what in them cannot be true, if anything.

    ``finite`` is whether all of them are numbers but those missing on purpose.
    """

    draw: Draw
    rate_mm_h: Array
    balance: Balance
    fault: str | None
    finite: bool


@dataclass(frozen=True)
class Sampling:
    """What all draws of a run share.

    Parameters
    ----------
    manifest, engine, transforms, batch
        The bundle's facts, the score graph and both transforms (forward, inverse) on their
        engines, and tiles an engine call.
    fused
        The sampler's update on the engine, for draws of one tile; None leaves all to NumPy.
    steps
        What a sampler gave for the time grid.
    noise_origin
        (row, column) of the coefficient grid's north-west corner in coefficients of the whole
        input.
    consistency
        A mode of `wdm_runtime.consistency`.
    on_step
        Called after each sampler step; of fused ones after the last.
    most_mm_h
        The highest rate that can be true.
    """

    manifest: Manifest
    engine: Engine
    transforms: tuple[Engine, Engine]
    batch: int
    fused: FusedStep | None
    steps: Sequence[Step]
    noise_origin: tuple[int, int]
    consistency: str
    on_step: Callable[[StepTime], None] | None
    most_mm_h: float = MINUTE_RECORD_MM_H

    def run(self, draws: Sequence[Draw]) -> Iterator[Member]:
        """Integrate the draws that have tiles together, and finish all."""
        dwt, idwt = self.transforms
        wet = [
            (draw, condition(draw.frame, self.manifest, dwt, draw.orientation))
            for draw in draws
            if draw.frame.tiling.tiles
        ]
        finished = zip(wet, self._residuals(wet), strict=True)
        for draw in draws:
            if draw.frame.tiling.tiles:
                (_, given), residual = next(finished)
                rate = finish(draw.frame, given, residual, self.manifest, idwt)
            else:
                size = [n * self.manifest.factor for n in draw.frame.coarse_mm_h.shape]
                rate = np.zeros(size, dtype=np.float32)
            yield self._put_right(draw, rate)

    def _residuals(self, draws: Sequence[tuple[Draw, Condition]]) -> Iterator[Array]:
        """Standardised residual coefficients (c, h, w) of each draw.

        Its own tiles alone decide who does a draw's updates, so that no other draw can change it.
        """
        single = [len(draw.frame.tiling.tiles) == 1 for draw, _ in draws]
        fused = self.fused if self.fused and any(single) and self.fused.available() else None
        if self.fused and not all(single):
            self.fused.skipped()
        if fused is None:
            single = [False] * len(draws)
        alone, others = (
            [draw for draw, is_single in zip(draws, single, strict=True) if is_single is wanted]
            for wanted in (True, False)
        )
        by_engine = iter(self._integrate_fused(fused, alone) if fused else ())
        by_loop = iter(self._integrate(others) if others else ())
        return (next(by_engine if is_single else by_loop) for is_single in single)

    def _integrate_fused(self, fused: FusedStep, draws: Sequence[tuple[Draw, Condition]]) -> Array:
        """As `_integrate`, for draws of one tile each: beyond it, state and result are 0."""
        subbands, height, width = draws[0][1].standardised.shape
        top, left = self.noise_origin
        tiles = [draw.frame.tiling.tiles[0] for draw, _ in draws]

        def noise(step: int) -> Array:
            found = []
            for (draw, given), tile in zip(draws, tiles, strict=True):
                rows = top + tile.row, top + tile.row + tile.size
                columns = left + tile.column, left + tile.column + tile.size
                values = draw.noise.draw(step, subbands, rows, columns)
                found.append(turned(values, given.orientation))
            return np.stack(found)

        cuts = [
            turned(draw.frame.tiling.cut(given.standardised, 0), given.orientation)
            for draw, given in draws
        ]
        start = noise(INITIAL_STEP)
        found, finite = fused.integrate(start, np.stack(cuts), self.steps, noise, self.on_step)
        out = np.zeros((len(draws), subbands, height, width), dtype=np.float32)
        for values, tile, whole, (_, given) in zip(found, tiles, out, draws, strict=True):
            whole[tile.window] = restored(values, given.orientation)
        if not finite.all():
            out[~finite] = self._integrate([draws[i] for i in np.flatnonzero(~finite).tolist()])
        return out

    def _integrate(self, draws: Sequence[tuple[Draw, Condition]]) -> Array:
        """Standardised residual coefficients (draw, c, h, w)."""
        subbands, height, width = draws[0][1].standardised.shape
        top, left = self.noise_origin

        def noise(step: int) -> Array:
            out = np.empty((len(draws), subbands, height, width), dtype=np.float32)
            for values, (draw, _) in zip(out, draws, strict=True):
                values[:] = draw.noise.draw(
                    step,
                    subbands,
                    (top, top + height),
                    (left, left + width),
                    draw.frame.tiling.covered,
                )
            return out

        tiles = [(draw.frame.tiling, given) for draw, given in draws]
        network = TileNetwork(self.engine, self.batch, tiles, self.on_step)
        start = [noise(INITIAL_STEP)]
        network.start()
        # Handed over, not kept: it would live beside the state that it becomes.
        return integrate(network, start.pop(), self.steps, noise, network.step)

    def _put_right(self, draw: Draw, rate: Array) -> Member:
        """Take out missing and uncomputed cells, make block means the input's, look for faults."""
        frame = draw.frame
        factor, coarse = self.manifest.factor, frame.coarse_mm_h
        unknown = unknown_cells(rate)
        if np.isnan(coarse).any():
            rate[~valid_cells(coarse, factor)] = np.nan
        if not frame.complete:
            covered = covered_cells(frame, self.manifest)
            rate[spread(frame.near_rain, factor) & ~covered] = np.nan
        dry_mm_h = self.manifest.transform.dry_threshold_mm_h
        missing = unknown_cells(rate) - unknown
        if self.consistency == "none":
            rate[rate < dry_mm_h] = 0  # what `make_consistent` does, without another field
        mean, largest = block_residual(rate, coarse, factor)
        wet_before = wet_after = wet_fraction(rate, dry_mm_h)
        if self.consistency != "none":
            smooth = interpolated(coarse, factor)
            rate = make_consistent(rate, coarse, smooth, factor, self.consistency, dry_mm_h)
            wet_after = wet_fraction(rate, dry_mm_h)
        void = not_finite(rate, missing)
        fault = void or suspicion(rate, self.most_mm_h)
        if fault is None and self.consistency == "none":
            fault = imbalance(mean, coarse, dry_mm_h)
        return Member(
            draw, rate, Balance(mean, largest, wet_before, wet_after), fault, void is None
        )
