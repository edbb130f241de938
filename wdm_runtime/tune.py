"""Which sampler, how many network calls and how much noise serve a model best, on known truth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from wdm_runtime.bundle import Bundle, rewritten
from wdm_runtime.conditioning import valid_cells
from wdm_runtime.diffusion import LOGSNR
from wdm_runtime.downscale import Downscaler
from wdm_runtime.errors import InputError, OutputError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import interpolate
from wdm_runtime.io.atomic import write_text
from wdm_runtime.manifest import MANIFEST_NAME
from wdm_runtime.presets import BEST, FAST, Preset
from wdm_runtime.records import to_json
from wdm_runtime.samplers import DETERMINISTIC
from wdm_runtime.signing import SIGNATURE_NAME
from wdm_runtime.skill import (
    MIN_WET_SHARE,
    WET_MM_H,
    Array,
    Float64,
    band_ratio_db,
    cut_tiles,
    fair_crps,
    find_tiles,
    radial_spectrum,
    scaled_z,
    wanted_cells,
)

FAST_STEPS = 8  # network calls of the fast preset at most
LARGEST_BAND_DB = 2.0
SPREAD_SKILL = (0.8, 1.25)
_CLOSE = 1.005  # of the CRPS: fewer calls are worth half a percent
_EXTREME = 99.9


@dataclass(frozen=True)
class Trial:
    """What one way to draw members is worth and costs.

    ``crps_mm_h`` is the fair CRPS over all cells [mm h-1], ``crps_ratio`` the same over the mean
    absolute error of bicubic interpolation. ``spread_skill`` has the (M + 1) / M factor.
    ``bands_db`` compare a member's spectrum of z with the truth's in `BANDS_KM`, ``extremes`` is
    the ratio of 99.9 percentiles. ``seconds`` is the wall time of a member of all tiles.
    """

    way: Preset
    crps_mm_h: float
    crps_ratio: float
    spread_skill: float
    bands_db: tuple[float, ...]
    extremes: float
    seconds: float

    @property
    def faithful(self) -> bool:
        """Whether spectrum and spread are near the truth's."""
        return (
            max(abs(db) for db in self.bands_db if math.isfinite(db)) <= LARGEST_BAND_DB
            and SPREAD_SKILL[0] <= self.spread_skill <= SPREAD_SKILL[1]
        )


@dataclass(frozen=True)
class Tuning:
    """All trials of a bundle, and which of them its presets should be."""

    bundle: str
    engine: str
    tiles: int
    members: int
    trials: tuple[Trial, ...]

    @property
    def suggested(self) -> dict[str, Preset]:
        """The preset of each name: lowest CRPS among the faithful, if there are any.

        ``"fast"`` has at most `FAST_STEPS` network calls. Of trials within half a percent the one
        with the fewest calls is taken.
        """
        found = {}
        for name, most in ((FAST, FAST_STEPS), (BEST, None)):
            within = [t for t in self.trials if most is None or t.way.steps <= most]
            within = [t for t in within if t.faithful] or within
            if within:
                lowest = min(t.crps_mm_h for t in within)
                close = [t for t in within if t.crps_mm_h <= _CLOSE * lowest]
                found[name] = min(close, key=lambda t: (t.way.steps, t.crps_mm_h)).way
        return found

    @property
    def fast_over_best(self) -> float | None:
        """CRPS of the suggested fast preset over the best one's; None unless there are both."""
        scores = {t.way: t.crps_mm_h for t in self.trials}
        crps = [scores[way] for way in self.suggested.values()]
        return crps[0] / crps[1] if len(crps) == 2 and crps[1] > 0 else None

    def to_json(self) -> str:
        """Everything, and what is suggested."""
        values = {**asdict(self), "fast_over_best": self.fast_over_best}
        values["suggested"] = {name: asdict(way) for name, way in self.suggested.items()}
        return to_json(values)


def keep_presets(bundle: Bundle, presets: Mapping[str, Preset]) -> str:
    """Make presets a bundle's own, beside those of other names; a signature is no longer one.

    Returns
    -------
    A line that says what the bundle's SHA-256 is now, and that a signature is gone.

    Raises
    ------
    OutputError
        The folder cannot be written, or a signature not removed.
    """
    manifest = replace(bundle.manifest, presets={**bundle.manifest.presets, **presets})
    signature = bundle.path / SIGNATURE_NAME
    signed = signature.exists()
    write_text(bundle.path / MANIFEST_NAME, manifest.to_json())
    try:  # after the manifest: what cannot be written leaves a bundle signed as it was
        signature.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{signature}: cannot be removed ({error.strerror}); it is of the manifest before "
            "the presets, which are written. Remove it, and sign the bundle again."
        ) from error
    return rewritten(bundle.path, Bundle.own(bundle.path).sha256, signed)


@dataclass(frozen=True)
class _Frame:
    """A coarse frame, its tiles of truth (tile, y, x), and which of their cells count."""

    coarse: PrecipField
    places: tuple[tuple[int, int], ...]
    truth: Array
    valid: npt.NDArray[np.bool_]
    bicubic: Array
    wanted: npt.NDArray[np.bool_]


def ways(
    samplers: Sequence[str],
    steps: Sequence[int],
    noise_scales: Sequence[float],
    time_grids: Sequence[str] = (LOGSNR,),
) -> tuple[Preset, ...]:
    """All combinations, deterministic samplers with the scale 1 alone.

    Raises
    ------
    InputError
        A sampler or grid is unknown, or a number out of range.
    """
    return tuple(
        Preset(sampler, count, scale, grid)
        for sampler in samplers
        for grid in time_grids
        for count in steps
        for scale in ((1.0,) if sampler in DETERMINISTIC else noise_scales)
    )


def tune(
    downscaler: Downscaler,
    coarse: PrecipField,
    truth: PrecipField,
    tried: Sequence[Preset],
    members: int = 8,
    seed: int = 0,
    tiles: int = 12,
    on_way: Callable[[Preset], None] = lambda way: None,
) -> Tuning:
    """Draw ensembles in every way, and score them on the tiles of truth with rain.

    Parameters
    ----------
    downscaler
        An open one.
    coarse, truth
        The same times of the same domain, ``factor`` times finer [mm h-1]. Where truth decides a
        preset it must not be what the model is judged on later.
    tried
        What to try.
    members, seed
        Of each ensemble; at least 2 members.
    tiles
        At most so many, taken evenly from all.
    on_way
        Called with each way before it is tried.

    Raises
    ------
    InputError
        The fields do not belong together, hold no tile with rain, or there are too few members.
    """
    if members < 2:
        raise InputError(f"Got {members} member; expected at least 2. Raise --members.")
    if tiles < 1:
        raise InputError(f"Got {tiles} tiles; expected at least 1. Raise --tiles.")
    frames = _frames(downscaler, coarse, truth, tiles)
    trials = []
    for way in tried:
        on_way(way)
        trials.append(_trial(downscaler, frames, way, members, seed))
    return Tuning(
        downscaler.manifest.name,
        f"{downscaler.engine.version}, {downscaler.choice.precision}",
        sum(len(frame.places) for frame in frames),
        members,
        tuple(trials),
    )


def _frames(
    downscaler: Downscaler, coarse: PrecipField, truth: PrecipField, most: int
) -> list[_Frame]:
    """Frames with tiles, north first."""
    factor, size = downscaler.factor, downscaler.manifest.tile_px
    _check_pair(coarse, truth, factor)
    found: list[tuple[int, tuple[int, int]]] = []
    for index in range(len(truth.valid_times)):  # read again where chosen: a day does not fit
        reached = valid_cells(coarse.alone(index).frame(0), factor)
        rates = np.where(reached, truth.alone(index).frame(0), np.float32(np.nan))
        found += [(index, place) for place in find_tiles(rates, size)]
    if not found:
        raise InputError(
            f"{truth.source.path or 'The truth'}: has no tile of {size} x {size} cells of which "
            f"more than {MIN_WET_SHARE:.0%} are wet and hardly one is missing; expected one at "
            "least. Hand in a larger or wetter field."
        )
    picks = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    chosen = [found[pick] for pick in picks]
    frames = []
    for index in sorted({index for index, _ in chosen}):
        places = tuple(place for number, place in chosen if number == index)
        alone = coarse.alone(index)
        smooth = interpolate(alone.frame(0), factor)
        smooth[smooth < WET_MM_H] = 0
        fine = truth.alone(index).frame(0)
        tiles, interpolated = (cut_tiles(rates, places, size) for rates in (fine, smooth))
        wanted = wanted_cells(smooth.shape, places, size)
        valid = np.isfinite(tiles) & np.isfinite(interpolated)
        frames.append(_Frame(alone, places, tiles, valid, interpolated, wanted))
    return frames


def _check_pair(coarse: PrecipField, truth: PrecipField, factor: int) -> None:
    expected = tuple(n * factor for n in coarse.grid.shape)
    if truth.grid.shape != expected or truth.valid_times != coarse.valid_times:
        raise InputError(
            f"The truth has {truth.grid.shape} cells (y, x) at {', '.join(truth.valid_times)}; "
            f"expected {expected} at {', '.join(coarse.valid_times)}: the input's domain and times "
            f"on a grid {factor} times finer. Average the truth itself, or cut both alike."
        )
    for axis in ("y", "x"):
        fine, wide = (getattr(field.grid, axis) for field in (truth, coarse))
        centres = np.sort(fine).reshape(-1, factor).mean(axis=1)
        apart = centres - np.sort(wide)
        if axis == "x" and coarse.grid.is_latlon:  # one counts from 0 to 360, the other from -180
            apart -= 360 * np.round(apart.mean() / 360)
        off = float(np.abs(apart).max())
        spacing = abs(float(wide[-1] - wide[0])) / max(1, len(wide) - 1)
        if off > 0.5 * spacing / factor:
            raise InputError(
                f"The truth's cells lie {off:.4g} off the input's along {axis}, where those are "
                f"{spacing:.4g} wide; expected {factor} to fill one. Hand in fields of one domain."
            )


def _drawn(
    downscaler: Downscaler, frame: _Frame, way: Preset, members: int, seed: int
) -> Iterator[Array]:
    """(tile, y, x) of each member."""
    for sample in downscaler.downscale(
        frame.coarse,
        members=members,
        seed=seed,
        preset=way,
        wanted=frame.wanted,
    ):
        yield cut_tiles(sample.rate_mm_h, frame.places, downscaler.manifest.tile_px)


def _trial(
    downscaler: Downscaler, frames: Sequence[_Frame], way: Preset, members: int, seed: int
) -> Trial:
    sums = np.zeros(4)  # CRPS, bicubic's error, members' variance, squared error of their mean
    cells, seconds = 0, 0.0
    bands: list[Float64] = []
    rates: list[Array] = []
    truths: list[Array] = []
    for frame in frames:
        began = time.perf_counter()
        drawn = np.stack(list(_drawn(downscaler, frame, way, members, seed)))
        seconds += time.perf_counter() - began
        for number, valid in enumerate(frame.valid):
            truth, ensemble = frame.truth[number][valid], drawn[:, number][:, valid]
            mean = ensemble.mean(axis=0, dtype=np.float64)
            sums += (
                fair_crps(ensemble, truth).sum(),
                np.abs(frame.bicubic[number][valid].astype(np.float64) - truth).sum(),
                ensemble.var(axis=0, ddof=1, dtype=np.float64).sum(),
                ((mean - truth) ** 2).sum(),
            )
            cells += truth.size
            spectrum = _spectrum(frame.truth[number], valid)
            bands += [band_ratio_db(_spectrum(m, valid), spectrum) for m in drawn[:, number]]
            rates.append(ensemble.ravel())
            truths.append(truth)
    crps, bicubic, variance, error = sums / cells
    highest = [float(np.percentile(np.concatenate(v), _EXTREME)) for v in (rates, truths)]
    return Trial(
        way,
        float(crps),
        float(crps / bicubic) if bicubic else math.nan,
        float(math.sqrt(variance * (members + 1) / members / error)) if error else math.nan,
        tuple(float(db) for db in np.mean(bands, axis=0)),
        highest[0] / highest[1] if highest[1] else math.nan,
        seconds / members,
    )


def _spectrum(rate_mm_h: Array, valid: npt.NDArray[np.bool_]) -> Float64:
    """Of z, with 0 where a cell does not count."""
    return radial_spectrum(scaled_z(np.where(valid, rate_mm_h, np.float32(0))))
