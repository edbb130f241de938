"""`Downscaler`: a bundle, its engines, a sampler and tiles, as one object.

The state of the reverse SDE covers the whole domain. At each step the score function cuts it into
overlapping tiles, evaluates them on the engine and blends them, so samplers never hear of tiles
and no border can show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wdm_runtime.bundle import Bundle
from wdm_runtime.conditioning import Frame, grid_shape, look_at, most_tiles
from wdm_runtime.consistency import DEFAULT_CONSISTENCY, check_mode
from wdm_runtime.engines import AUTO
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import InputError, SuspectError, whole
from wdm_runtime.field import PrecipField
from wdm_runtime.noise import noise_of
from wdm_runtime.opening import OpenedEngines, open_engines
from wdm_runtime.orientation import AS_IT_IS, orientation_of
from wdm_runtime.plan import Plan, sampling_bytes
from wdm_runtime.presets import Preset, chosen
from wdm_runtime.sampling import Balance, Draw, Member, Sampling
from wdm_runtime.stepping import StepTime
from wdm_runtime.suspect import DEFAULT_POLICY, check_policy, highest_mm_h
from wdm_runtime.timing import feeds_of, timed_call

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """One member of one frame: (y, x) [mm h-1] in the input's row order, NaN where missing.

    ``balance`` compares the member with its input before and after the consistency step. ``fault``
    says what in it cannot be true, None if nothing; ``redrawn`` whether fp32 drew it again.
    """

    time_index: int
    member: int
    rate_mm_h: Array
    balance: Balance
    fault: str | None = None
    redrawn: bool = False


class Downscaler:
    """Turns coarse fields into fine ensembles. Open it once, use it for many fields.

    Examples
    --------
    >>> with Downscaler.open() as downscaler:  # doctest: +SKIP
    ...     for sample in downscaler.downscale(field, members=4, seed=1):
    ...         use(sample.rate_mm_h)
    """

    def __init__(self, bundle: Bundle, opened: OpenedEngines) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.engine = opened.score
        self.choice = opened.choice
        self.batch = opened.batch
        self.fused = opened.fused
        self._transforms = opened.transforms
        self._closed = False

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle | None = None,
        engine: str = AUTO,
        precision: str = AUTO,
        options: EngineOptions | None = None,
    ) -> Downscaler:
        """Load a bundle onto an engine.

        Parameters
        ----------
        bundle
            Folder or opened bundle; by default the one shipped with the package.
        engine, precision
            Names from `wdm_runtime.engines`; ``"auto"`` takes the best that works.
        options
            How the engine is opened.

        Raises
        ------
        BundleError, EngineError, MissingDependencyError
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle)
        return cls(bundle, open_engines(bundle, engine, precision, options or EngineOptions()))

    def __enter__(self) -> Downscaler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines. Nothing can be drawn any more."""
        self._closed = True
        for engine in (self.engine, *self._transforms):
            engine.close()
        if self.fused:
            self.fused.close()

    @property
    def factor(self) -> int:
        """Fine cells per coarse cell along one axis."""
        return self.manifest.factor

    def plan(
        self,
        field: PrecipField,
        members: int = 1,
        max_bytes: int | None = None,
        preset: str | Preset | None = None,
    ) -> Plan:
        """What a run would take, drawn as a preset or its name says. Reads every frame once.

        Raises
        ------
        InputError
            Sampling needs more than ``max_bytes``.
        """
        at_most = self._samples_at_most(field, max_bytes)  # looking at a frame takes memory too
        tiles, missing, covered = [], [], 0.0
        for index in range(len(field.valid_times)):
            frame = self._look(field, index, None)
            tiles.append(len(frame.tiling.tiles))
            missing.append(float(np.isnan(frame.coarse_mm_h).mean()))
            covered += float(frame.tiling.covered.mean())
        wet = [count for count in tiles if count]
        filling = -(-self.batch // min(wet)) if wet else 1
        return Plan(
            tiles=tuple(tiles),
            members=members,
            steps=chosen(self.manifest.presets, preset).steps,
            untiled_share=1.0 - covered / len(tiles),
            missing=tuple(missing),
            memory_bytes=self._sampling_bytes(field, min(filling, at_most)),
        )

    def seconds_per_tile(self, tiles: int | None = None) -> float:
        """Time the engine takes for one tile of a batch, after a warm-up.

        ``tiles`` is how many there are in all, where they may not fill a batch.
        """
        size = max(1, min(self.batch, tiles or self.batch))
        feeds = feeds_of(self.engine.inputs, size)
        self.engine.run(feeds)
        return timed_call(self.engine, feeds) / size

    def downscale(
        self,
        field: PrecipField,
        members: int = 1,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        consistency: str = DEFAULT_CONSISTENCY,
        noise_decorrelation_min: float = 0.0,
        max_bytes: int | None = None,
        on_step: Callable[[StepTime], None] | None = None,
        wanted: Mask | None = None,
        on_suspect: str = DEFAULT_POLICY,
        preset: str | Preset | None = None,
        noise_scale: float | None = None,
        time_grid: str | None = None,
    ) -> Iterator[Sample]:
        """Draw an ensemble, frame by frame and member by member.

        Parameters
        ----------
        field
            Coarse rates (time, y, x) [mm h-1]. NaN is missing: a fine cell is missing wherever its
            interpolation reads a missing coarse cell. Fine cells more than two coarse cells from
            rain are 0.
        members
            Ensemble size. More members never change the first ones. They are drawn in the eight
            orientations in turn, see `wdm_runtime.orientation`: multiples of 8 are balanced. All
            are drawn as the field lies by a bundle whose network knows that alone.
        seed
            Any integer. With the frame's valid time, the member, the step and the position it
            fixes all noise.
        steps, sampler
            Network calls and a name from `wdm_runtime.samplers`; None takes the preset's.
        consistency
            A mode of `wdm_runtime.consistency`: whether and how block means are made equal to the
            input.
        noise_decorrelation_min
            Time over which a member's noise changes, see `wdm_runtime.noise.noise_of` [min].
        max_bytes
            Memory for sampling; None sets no limit.
        on_step
            Called after each sampler step; of fused ones after the last.
        wanted
            Optional fine mask (y * factor, x * factor) in the field's row order: nothing is
            computed for other cells, and where that leaves them unknown they come back as NaN.
        on_suspect
            What to do with a member that cannot be true (see `wdm_runtime.suspect`): ``"warn"``
            gives it with its fault, ``"fp32"`` draws it again in fp32 first where the engine
            computes in less, ``"fail"`` raises. One with rates that are no finite numbers is
            never given: they would pass for missing.
        preset
            How members are drawn, a `Preset` or its name: ``"fast"`` is the default, ``"best"``
            may take more network calls.
        noise_scale
            Factor of the sampler's noise, which sets the ensemble's spread. None takes the
            preset's, or 1 where its steps, sampler or grid are not what is asked for.
        time_grid
            At which times the network is called, one of `wdm_runtime.diffusion.GRIDS`; None takes
            the preset's.

        Returns
        -------
        Iterator of `Sample`, times outermost; same bytes for any batch size or order. Arguments
        are checked at once, samples computed as they are asked for.

        Raises
        ------
        InputError
            A count or seed that is no whole number, no members, an unknown preset, sampler, grid
            or mode, steps or a scale out of range, noise for a sampler that takes none, wanted
            cells of another shape, times or an origin the noise cannot be addressed by, or more
            memory needed than given.
        SuspectError
            A member cannot be true, under ``"fail"``; or is not finite, under any.
        EngineError
            A call of the engine fails, while samples are computed.
        """
        self._require_open()
        # Plain ones: the seed's text addresses the noise, and 1.0 or True has another.
        members, seed = whole("members", members), whole("seed", seed)
        if members < 1:
            raise InputError(f"Got {members} members; expected at least 1. Set --members.")
        fine = tuple(n * self.factor for n in field.grid.shape)
        if wanted is not None and (wanted.shape != fine or wanted.dtype != np.bool_):
            raise InputError(
                f"The wanted cells are {wanted.dtype} of shape {wanted.shape}; expected bool of "
                f"{fine}, a fine cell each. Repeat a coarse mask along both axes."
            )
        check_mode(consistency)
        check_policy(on_suspect)
        way = chosen(self.manifest.presets, preset, sampler, steps, noise_scale, time_grid)
        sampling = Sampling(
            self.manifest,
            self.engine,
            self._transforms,
            self.batch,
            self.fused,
            way.plan(self.manifest.schedule),
            self._noise_origin(field),
            consistency,
            on_step,
            highest_mm_h(field.source.period_h),
        )
        for valid_time in field.valid_times:
            noise_of(seed, valid_time, 0, noise_decorrelation_min)  # raises before work is done
        at_most = self._samples_at_most(field, max_bytes)

        def draws() -> Iterator[Draw]:
            for index, valid_time in enumerate(field.valid_times):
                frame = self._look(field, index, wanted)
                for member in range(members):
                    noise = noise_of(seed, valid_time, member, noise_decorrelation_min)
                    orientation = orientation_of(member) if self.manifest.turns else AS_IT_IS
                    yield Draw(frame, index, member, noise, orientation)

        def draw_all() -> Iterator[Sample]:
            flip, noted = field.grid.to_north_first, False
            for group in self._groups(draws(), at_most):
                self._require_open()
                for found in sampling.run(group):
                    draw, redrawn = found.draw, False
                    if found.fault and on_suspect == "fp32" and self.engine.full is not None:
                        full = replace(sampling, engine=self.engine.full, fused=None, on_step=None)
                        found, redrawn = next(full.run([draw])), True
                    if found.fault:
                        self._report(found, field, on_suspect, noted)
                        noted = True
                    yield Sample(
                        draw.time_index,
                        draw.member,
                        np.ascontiguousarray(found.rate_mm_h[flip]),
                        found.balance,
                        found.fault,
                        redrawn,
                    )

        return draw_all()

    def _require_open(self) -> None:
        if self._closed:
            raise InputError(
                "The Downscaler was closed; expected an open one as long as samples are drawn. "
                "Iterate inside its 'with' block, or open it again."
            )

    def _report(self, found: Member, field: PrecipField, on_suspect: str, noted: bool) -> None:
        """Refuse a member that cannot be true, or say so once."""
        draw = found.draw
        time, path = field.valid_times[draw.time_index], field.source.path or "The field"
        fact = f"{path}: member {draw.member} of {time} has {found.fault}"
        if on_suspect == "fail" or not found.finite:  # as NaN it would pass for missing
            way_out = ", or take it with --on-suspect warn" if found.finite else ""
            raise SuspectError(
                f"{fact}; expected rates that can be true. Look at the input there, or try "
                f"--precision fp32 or another --seed{way_out}."
            )
        if not noted:
            self.engine.note(f"{fact}. Such members are counted in the report and in the output.")

    def _groups(self, draws: Iterator[Draw], at_most: int) -> Iterator[list[Draw]]:
        """Draws whose tiles fill an engine call, as far as memory goes."""
        waiting: list[Draw] = []
        tiles = 0
        for draw in draws:
            waiting.append(draw)
            tiles += len(draw.frame.tiling.tiles)
            if tiles >= self.batch or len(waiting) >= at_most:
                yield waiting
                waiting, tiles = [], 0
        if waiting:
            yield waiting

    def _look(self, field: PrecipField, index: int, wanted: Mask | None) -> Frame:
        flip = field.grid.to_north_first
        return look_at(
            field.frame(index)[flip], self.manifest, None if wanted is None else wanted[flip]
        )

    def _sampling_bytes(self, field: PrecipField, samples: int) -> int:
        fine = tuple(n * self.factor for n in field.grid.shape)
        rows, columns = grid_shape(fine, self.manifest)
        padded_cells = rows * columns * self.manifest.wavelet.stride**2
        tiles = min(self.batch, samples * most_tiles((rows, columns), self.manifest))
        return sampling_bytes(padded_cells, samples, tiles * self.manifest.tile_px**2)

    def _samples_at_most(self, field: PrecipField, max_bytes: int | None) -> int:
        """How many samples fit into memory at once."""
        if max_bytes is None:
            return self.batch
        one, two = self._sampling_bytes(field, 1), self._sampling_bytes(field, 2)
        if one > max_bytes:
            raise InputError(
                f"A domain of {field.grid.shape} coarse cells needs {one / 2**20:,.0f} MiB for "
                f"sampling; expected at most {max_bytes / 2**20:,.0f} MiB. Cut it with --bbox or "
                "raise --max-memory."
            )
        return min(self.batch, 1 + (max_bytes - one) // (two - one))

    def _noise_origin(self, field: PrecipField) -> tuple[int, int]:
        """The coefficient grid's north-west corner in coefficients of the whole input."""
        stride, margin = self.manifest.wavelet.stride, self.manifest.wavelet.margin
        fine = [cells * self.factor for cells in field.origin]
        if any(cells % stride for cells in fine):
            raise InputError(
                f"The field starts {field.origin} coarse cells from the whole input's corner; "
                f"expected multiples of {self.manifest.coefficient_cells}, so that noise "
                "keeps its place. Cut it with --bbox, or with select_box and snap_cells of "
                "wdm_runtime.select."
            )
        return fine[0] // stride - margin, fine[1] // stride - margin
