"""Scores of a downscaler against bicubic interpolation, on tiles cut from full-domain runs.

A field of 1 km truth is averaged to the coarse grid, downscaled as a whole, and scored on the
non-overlapping tiles that have rain. Only tiles are kept: 330 kB a tile and member, of one valid
time at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wdm_export import metrics, scores
from wdm_export.coarsen import coarsen
from wdm_export.data import MAX_MISSING_SHARE, MIN_WET_SHARE, PATCH_SIZE_PX, WET_MM_H
from wdm_export.metrics import TruthTile
from wdm_export.score_table import Evaluation, ForecastRow, TilePlace
from wdm_export.scores import EnsembleTileScores, TileScores
from wdm_runtime.consistency import DEFAULT_CONSISTENCY
from wdm_runtime.errors import EngineError, InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import Grid, interpolate

Array = npt.NDArray[np.floating]


class SampleLike(Protocol):
    """What is read of a `wdm_runtime.downscale.Sample`."""

    @property
    def member(self) -> int:
        """Member number, from 0."""

    @property
    def rate_mm_h(self) -> npt.NDArray[np.float32]:
        """(y, x) [mm h-1] over the whole fine domain, in the field's row order."""


class DownscalerLike(Protocol):
    """What is used of a `wdm_runtime.downscale.Downscaler`."""

    @property
    def factor(self) -> int:
        """Fine cells per coarse cell along one axis."""

    def downscale(
        self,
        field: PrecipField,
        *,
        members: int,
        seed: int,
        steps: int | None,
        sampler: str | None,
        consistency: str,
        wanted: npt.NDArray[np.bool_] | None,
    ) -> Iterator[SampleLike]:
        """Draw an ensemble; only the ``wanted`` fine cells need a result."""


def find_tiles(fine: Array, size: int = PATCH_SIZE_PX) -> list[tuple[int, int]]:
    """Non-overlapping tiles with rain and hardly a missing cell.

    Parameters
    ----------
    fine
        (y, x) [mm h-1], NaN where missing; tiles lie on a grid that starts at its first cell.
    size
        Tile edge in cells.

    Returns
    -------
    First (row, column) of every tile with under 1 % missing and over 5 % at 0.1 mm/h or more.
    """
    found = []
    for row in range(0, fine.shape[0] - size + 1, size):
        for column in range(0, fine.shape[1] - size + 1, size):
            tile = fine[row : row + size, column : column + size]
            missing = np.count_nonzero(np.isnan(tile))
            wet = np.count_nonzero(tile >= WET_MM_H)
            if missing < MAX_MISSING_SHARE * tile.size and wet > MIN_WET_SHARE * tile.size:
                found.append((row, column))
    return found


def bicubic(coarse: Array, factor: int) -> npt.NDArray[np.float32]:
    """The baseline: `interpolate` over the whole domain, rates below 0.1 mm/h made 0.

    (y, x) -> (y * factor, x * factor) [mm h-1], NaN where an interpolated cell reads a NaN.
    """
    fine = interpolate(coarse, factor)
    fine[fine < WET_MM_H] = 0
    return fine


@dataclass
class _Scorer:
    """One forecast's scores so far; ``values`` are its valid rates, for the percentiles."""

    name: str
    tiles: list[TileScores] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)

    def add(self, forecast: Array, truth: TruthTile) -> None:
        self.tiles.append(scores.score_tile(forecast, truth))
        self.values.append(forecast[truth.valid])

    def row(self, truth_percentiles: Array, bicubic_mae_mm_h: float | None) -> ForecastRow:
        tiles = scores.stack(self.tiles)
        error = metrics.percentiles(np.concatenate(self.values)) - truth_percentiles
        pooled = scores.pool(tiles, error)
        relative = _quotient(pooled.mae_mm_h, bicubic_mae_mm_h or pooled.mae_mm_h)
        return ForecastRow(self.name, pooled, tiles, relative)


class _Scoreboard:
    """Scores of all forecasts, fed tile by tile."""

    def __init__(self, members: int, seed: int) -> None:
        self.seed = seed
        names = ["bicubic", "one member", f"mean of {members} members"]
        self.scorers = [_Scorer(name) for name in (names if members > 1 else names[:2])]
        self.ensemble: list[EnsembleTileScores] = []
        self.places: list[TilePlace] = []
        self.truth: list[Array] = []

    def add(self, place: TilePlace, truth: TruthTile, baseline: Array, members: Array) -> None:
        # A float32 sum would push the mean of equal rates off the very threshold they stand on.
        mean = members.mean(axis=0, dtype=np.float64).astype(np.float32)
        forecasts = [baseline, members[0], mean]
        for scorer, forecast in zip(self.scorers, forecasts, strict=False):
            scorer.add(forecast, truth)
        if len(members) > 1:
            # Addressed by the tile's number, so that ties in ranks fall alike in every run.
            rng = np.random.default_rng([abs(self.seed), len(self.places)])
            self.ensemble.append(scores.score_ensemble_tile(members, truth, rng))
        self.places.append(place)
        self.truth.append(truth.rate_mm_h[truth.valid])

    def result(self, settings: dict[str, Any]) -> Evaluation:
        percentiles = metrics.percentiles(np.concatenate(self.truth))
        first = self.scorers[0].row(percentiles, None)
        mae = first.metrics.mae_mm_h
        rows = [first, *(scorer.row(percentiles, mae) for scorer in self.scorers[1:])]
        if self.ensemble:
            tiles = scores.stack(self.ensemble)
            pooled = scores.pool_ensemble(tiles)
            rows[-1] = replace(
                rows[-1],
                ensemble=pooled,
                ensemble_tiles=tiles,
                crps_over_bicubic_mae=_quotient(pooled.fair_crps_mm_h, mae),
            )
        cells = int(first.tiles.cells.sum())
        return Evaluation(tuple(rows), tuple(self.places), cells, settings)


def _quotient(value: float, reference: float) -> float:
    return value / reference if reference > 0 else math.nan


def evaluate(
    downscaler: DownscalerLike,
    fields: Iterable[PrecipField],
    members: int,
    seed: int,
    steps: int | None = None,
    sampler: str | None = None,
    consistency: str = DEFAULT_CONSISTENCY,
    tile_px: int = PATCH_SIZE_PX,
    on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Downscale the block means of 1 km truth, and score the result on tiles with rain.

    Cells count where the truth is valid and bicubic interpolation reads no missing coarse cell:
    the same ones for every forecast.

    Parameters
    ----------
    downscaler
        An open `wdm_runtime.downscale.Downscaler`.
    fields
        1 km truth; each is read when its turn comes, and each of its valid times is run alone.
    members, seed
        Ensemble size and seed. With one member there is no row for the ensemble.
    steps, sampler, consistency
        Handed on to the downscaler; None takes its defaults.
    tile_px
        Tile edge in fine cells.
    on_progress
        Called with one line of text after every member.

    Raises
    ------
    InputError
        No members, or no field has a tile with rain.
    EngineError
        The downscaler left a cell that counts without a finite rate.
    """
    if members < 1:
        raise InputError(f"Got {members} members; expected at least 1. Set --members.")
    board = _Scoreboard(members, seed)

    def draw(coarse: PrecipField, tiles: list[tuple[int, int]]) -> npt.NDArray[np.float32]:
        """Tiles of all members, (tile, member, y, x): full domains are dropped one by one."""
        time = coarse.valid_times[0]
        shape = tuple(n * downscaler.factor for n in coarse.grid.shape)
        wanted = np.zeros(shape, dtype=np.bool_)
        for place in tiles:
            wanted[_window(place, tile_px)] = True
        kept = np.full((len(tiles), members, tile_px, tile_px), np.nan, dtype=np.float32)
        for sample in downscaler.downscale(
            coarse,
            members=members,
            seed=seed,
            steps=steps,
            sampler=sampler,
            consistency=consistency,
            wanted=wanted,
        ):
            for i, place in enumerate(tiles):
                kept[i, sample.member] = sample.rate_mm_h[_window(place, tile_px)]
            if on_progress:
                done = f"member {sample.member + 1} of {members}"
                on_progress(f"{time}: {done}, {len(tiles)} tiles")
        return kept

    seen = 0
    for frame in frames(fields):
        seen += 1
        _score_frame(frame, downscaler.factor, tile_px, draw, board)
    if not board.places:
        raise InputError(
            f"{seen} fields have no tile to score; expected one of {tile_px} x {tile_px} cells "
            f"with more than {MIN_WET_SHARE:.0%} wet and under {MAX_MISSING_SHARE:.0%} missing. "
            "Hand in larger or wetter fields."
        )
    settings = {"members": members, "seed": seed, "steps": steps, "sampler": sampler}
    return board.result({**settings, "consistency": consistency, "tile_px": tile_px})


def frames(fields: Iterable[PrecipField]) -> Iterator[PrecipField]:
    """Each valid time as a field of its own, north first: tiles start in the north-west."""
    for one in fields:
        flip = slice(None) if one.grid.north_first else slice(None, None, -1)
        grid: Grid = replace(one.grid, y=one.grid.y[flip])
        for index, time in enumerate(one.valid_times):
            rates = one.frame(index)[None, flip]
            yield replace(one, rate_mm_h=rates, grid=grid, valid_times=(time,))


def _window(place: tuple[int, int], size: int) -> tuple[slice, slice]:
    return slice(place[0], place[0] + size), slice(place[1], place[1] + size)


def _score_frame(
    frame: PrecipField,
    factor: int,
    size: int,
    draw: Callable[[PrecipField, list[tuple[int, int]]], npt.NDArray[np.float32]],
    board: _Scoreboard,
) -> None:
    rows, columns = (n // factor * factor for n in frame.grid.shape)
    fine = frame.frame(0)[:rows, :columns]
    tiles = find_tiles(fine, size)
    if not tiles:
        return
    coarse = coarsen(frame, factor)
    blocks = coarse.frame(0)
    baseline = bicubic(blocks, factor)
    for place, members in zip(tiles, draw(coarse, tiles), strict=True):
        window = _window(place, size)
        truth = truth_tile(fine[window], np.isfinite(baseline[window]), blocks, place, factor)
        lost = np.count_nonzero(~np.isfinite(members[:, truth.valid]))
        if lost:
            raise EngineError(
                f"The downscaler gave no finite rate in {lost} cells of the tile at {place}, "
                f"{frame.valid_times[0]}; expected one wherever the input is valid. Check the "
                "bundle with 'wdm-export check'."
            )
        where = TilePlace(frame.valid_times[0], *place)
        board.add(where, truth, baseline[window], members)


def truth_tile(
    rate_mm_h: Array,
    covered: npt.NDArray[np.bool_],
    coarse_mm_h: Array,
    place: tuple[int, int],
    factor: int,
) -> TruthTile:
    """A tile of truth and the coarse blocks that lie wholly inside it.

    Parameters
    ----------
    rate_mm_h, covered
        (size, size) truth [mm h-1], NaN where missing, and the cells the input reaches.
    coarse_mm_h
        (y, x) the whole coarse field [mm h-1].
    place
        Row and column of the tile's first cell in the fine field.
    """
    size = rate_mm_h.shape[0]
    top, left = (-start % factor for start in place)
    window = tuple(
        slice(-(-start // factor), max((start + size) // factor, -(-start // factor)))
        for start in place
    )
    valid = np.isfinite(rate_mm_h) & covered
    return TruthTile(rate_mm_h, valid, coarse_mm_h[window], (top, left), factor)
