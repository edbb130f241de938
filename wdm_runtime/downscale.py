"""`Downscaler`: a bundle, its engines, a sampler and tiles, as one object.

The state of the reverse SDE covers the whole domain. At each step the score function cuts it into
overlapping tiles, evaluates them on the engine and blends them, so samplers never hear of tiles
and no border can show.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import Engine, choose, open_engine
from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import interpolate
from wdm_runtime.noise import INITIAL_STEP, NoiseSource
from wdm_runtime.samplers import DEFAULT_SAMPLER, DEFAULT_STEPS, Sampler, get_sampler
from wdm_runtime.tiling import Tiling

Array = npt.NDArray[np.float32]

OVERLAP_PX = 32


@dataclass(frozen=True)
class StepTime:
    """Wall time of one sampler step, the engine's share of it, and its tile evaluations."""

    seconds: float
    engine_seconds: float
    tiles: int


@dataclass(frozen=True)
class Sample:
    """One member of one frame: (y, x) [mm h-1] in the input's row order, NaN where missing."""

    time_index: int
    member: int
    rate_mm_h: Array
    steps: tuple[StepTime, ...]


@dataclass(frozen=True)
class _Frame:
    """What all members of one valid time share, north first."""

    valid: npt.NDArray[np.bool_] | None
    coarse_coeffs: Array
    condition: Array
    tiling: Tiling


class Downscaler:
    """Turns coarse fields into fine ensembles. Open it once, use it for many fields.

    Examples
    --------
    >>> with Downscaler.open() as downscaler:  # doctest: +SKIP
    ...     for sample in downscaler.downscale(field, members=4, seed=1):
    ...         use(sample.rate_mm_h)
    """

    def __init__(
        self, bundle: Bundle, score: Engine, transforms: tuple[Engine, Engine], precision: str,
        batch: int,
    ) -> None:  # fmt: skip
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.engine = score
        self.precision = precision
        self.batch = batch
        self._dwt, self._idwt = transforms

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle | None = None,
        engine: str = "auto",
        precision: str = "auto",
        batch: int | None = None,
        threads: int | None = None,
    ) -> Downscaler:
        """Load a bundle onto an engine.

        Parameters
        ----------
        bundle
            Folder or opened bundle; by default the one shipped with the package.
        engine, precision
            Names from `wdm_runtime.engines`; ``"auto"`` takes the best that works.
        batch
            Tiles per engine call; None lets the engine decide.
        threads
            CPU threads; None takes all this process may use.

        Raises
        ------
        BundleError, EngineError, MissingDependencyError
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle)
        if batch is not None and batch < 1:
            raise InputError(f"Got a batch of {batch} tiles; expected at least 1. Set --batch.")
        kind, precision = choose(engine, precision)
        graphs = bundle.manifest.graphs
        engines = [
            open_engine(bundle.graph(role), graphs[role], kind, threads)
            for role in (f"score_{precision}", "dwt", "idwt")
        ]
        # A CPU gains nothing from batches: the caches are the limit, and batch 1 is the fastest.
        return cls(bundle, engines[0], (engines[1], engines[2]), precision, batch or 1)

    def __enter__(self) -> Downscaler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines."""
        for engine in (self.engine, self._dwt, self._idwt):
            engine.close()

    @property
    def factor(self) -> int:
        """Fine cells per coarse cell along one axis."""
        return self.manifest.factor

    def tiles(self, field: PrecipField) -> int:
        """Tiles each sampling step evaluates for one member of one frame of a field."""
        return len(self._tiling(field.grid.shape, None).tiles)

    def downscale(
        self,
        field: PrecipField,
        members: int = 1,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        on_step: Callable[[StepTime], None] | None = None,
        wanted: npt.NDArray[np.bool_] | None = None,
    ) -> Iterator[Sample]:
        """Draw an ensemble, frame by frame and member by member.

        Parameters
        ----------
        field
            Coarse rates (time, y, x) [mm h-1]. NaN is missing: a fine cell is missing wherever its
            interpolation reads a missing coarse cell.
        members
            Ensemble size. More members never change the first ones.
        seed
            Any integer. With the frame's valid time, the member, the step and the position it
            fixes all noise.
        steps, sampler
            Network calls and a name from `wdm_runtime.samplers`; None takes the defaults.
        on_step
            Called after each sampler step.
        wanted
            Optional fine mask (y * factor, x * factor) in the field's row order: tiles touching
            none of it are skipped, and cells outside all tiles come back as NaN.

        Returns
        -------
        Iterator of `Sample`, times outermost; same bytes for any batch size or order. Arguments
        are checked at once, samples computed as they are asked for.

        Raises
        ------
        InputError
            No members, unknown sampler, too few steps, or nothing but missing cells.
        """
        if members < 1:
            raise InputError(f"Got {members} members; expected at least 1. Set --members.")
        integrate = get_sampler(sampler or DEFAULT_SAMPLER)
        times = self.manifest.schedule.times(DEFAULT_STEPS if steps is None else steps)
        if not np.isfinite(field.load()).any():
            raise InputError(
                "All cells of the field are missing; expected some rates. "
                "Check the variable and its fill value."
            )
        flip = slice(None) if field.grid.north_first else slice(None, None, -1)
        if wanted is not None:
            wanted = wanted[flip]

        def draw_all() -> Iterator[Sample]:
            for index, valid_time in enumerate(field.valid_times):
                frame = self._prepare(field.frame(index)[flip], wanted)
                for member in range(members):
                    source = NoiseSource(seed, valid_time, member)
                    residual, steps = self._integrate(frame, source, integrate, times, on_step)
                    rate = self._finish(frame, residual, field.grid.shape)
                    yield Sample(index, member, rate[flip], steps)

        return draw_all()

    def _integrate(
        self,
        frame: _Frame,
        source: NoiseSource,
        integrate: Sampler,
        times: npt.NDArray[np.float64],
        on_step: Callable[[StepTime], None] | None,
    ) -> tuple[Array, tuple[StepTime, ...]]:
        """One member's standardised residual coefficients and the time its steps took."""
        subbands, height, width = frame.condition.shape

        def noise(step: int) -> Array:
            return source.draw(step, subbands, (0, height), (0, width))

        clock = _StepClock(self.engine, self.batch, frame, on_step)
        start = noise(INITIAL_STEP)
        clock.start()
        schedule = self.manifest.schedule
        residual = integrate(clock.network, start, times, schedule, noise, clock.step)
        return residual, tuple(clock.times)

    def _tiling(
        self, coarse_shape: tuple[int, int], wanted: npt.NDArray[np.bool_] | None
    ) -> Tiling:
        stride = self.manifest.wavelet.stride
        size = self.manifest.tile_px // stride
        rows, columns = (max(size, -(-n * self.factor // stride)) for n in coarse_shape)
        if wanted is not None:
            wanted = _any_in_blocks(wanted, stride, (rows, columns))
        # Small tiles (tests) keep some of their own: a quarter is overlap enough.
        overlap = min(OVERLAP_PX // stride, size // 4)
        return Tiling((rows, columns), size, overlap, wanted)

    def _prepare(self, coarse: Array, wanted: npt.NDArray[np.bool_] | None) -> _Frame:
        """Interpolate, transform and standardise one coarse frame (y, x) [mm h-1]."""
        manifest = self.manifest
        tiling = self._tiling((coarse.shape[0], coarse.shape[1]), wanted)
        valid = None
        if np.isnan(coarse).any():
            # The network needs numbers: missing cells are dry to it, and masked in its output.
            valid = np.isfinite(interpolate(coarse, self.factor))
            coarse = np.nan_to_num(coarse, nan=0.0)
        fine = interpolate(coarse, self.factor)
        height, width = (n * manifest.wavelet.stride for n in tiling.shape)
        padding = ((0, height - fine.shape[0]), (0, width - fine.shape[1]))
        z = manifest.transform.forward(np.pad(fine, padding, mode="edge"))
        coeffs = self._dwt.run({"field": z[None, None]})[0]
        return _Frame(valid, coeffs, manifest.condition_scale.standardise(coeffs), tiling)

    def _finish(self, frame: _Frame, residual: Array, coarse_shape: tuple[int, int]) -> Array:
        """Standardised residual coefficients to rates (y, x) [mm h-1], north first."""
        manifest = self.manifest
        coeffs = manifest.residual_scale.restore(residual) + frame.coarse_coeffs
        z = self._idwt.run({"coeffs": coeffs[None]})[0, 0]
        height, width = (n * self.factor for n in coarse_shape)
        rate = manifest.transform.inverse(z[:height, :width])
        if frame.valid is not None:
            rate[~frame.valid] = np.nan
        if not frame.tiling.complete:
            stride = manifest.wavelet.stride
            covered = frame.tiling.covered.repeat(stride, 0).repeat(stride, 1)
            rate[~covered[:height, :width]] = np.nan
        return rate


def _any_in_blocks(
    mask: npt.NDArray[np.bool_], size: int, shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Whether a mask holds anywhere in each size x size block; missing blocks do not."""
    padded = np.zeros((shape[0] * size, shape[1] * size), dtype=bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    blocks = padded.reshape(shape[0], size, shape[1], size)
    return np.asarray(blocks.any(axis=(1, 3)))


class _StepClock:
    """The score function over tiles, and the time it takes."""

    def __init__(
        self,
        engine: Engine,
        batch: int,
        frame: _Frame,
        on_step: Callable[[StepTime], None] | None,
    ) -> None:
        self.engine, self.batch, self.frame, self.on_step = engine, batch, frame, on_step
        self.times: list[StepTime] = []

    def start(self) -> None:
        """Begin the first step."""
        self._began, self._in_engine = time.perf_counter(), 0.0

    def network(self, x: Array, t: float) -> Array:
        """v over the whole state: cut, evaluate, blend."""
        tiling = self.frame.tiling
        v = np.zeros_like(x)
        when = np.array([t], dtype=np.float32)
        for first in range(0, len(tiling.tiles), self.batch):
            last = first + self.batch
            feeds = {
                "x": tiling.cut(x, first, last),
                "condition": tiling.cut(self.frame.condition, first, last),
                "t": when,
            }
            began = time.perf_counter()
            tiles = self.engine.run(feeds)
            self._in_engine += time.perf_counter() - began
            tiling.blend(tiles, first, v)
        return v

    def step(self, _: int) -> None:
        """Note the step that just ended and begin the next."""
        seconds = time.perf_counter() - self._began
        self.times.append(StepTime(seconds, self._in_engine, len(self.frame.tiling.tiles)))
        if self.on_step:
            self.on_step(self.times[-1])
        self.start()
