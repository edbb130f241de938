"""Scores of a downscaler against baselines, on tiles cut from full-domain runs.

A field of 1 km truth is averaged to the coarse grid, refined by each method in turn, and scored on
the non-overlapping tiles that have rain. Whole domains are dropped one by one, members' tiles with
their valid time; for the percentiles the rates of every forecast stay, 330 kB a tile and forecast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_export import metrics, scores
from wdm_export.bootstrap import DRAWS, intervals
from wdm_export.coarsen import coarsen
from wdm_export.evaluation import Evaluation, ForecastRow
from wdm_export.gallery import Gallery
from wdm_export.methods import (
    REFERENCE,
    DownscalerLike,
    Ensemble,
    Interpolation,
    Method,
    nearest,
)
from wdm_export.metrics import TruthTile
from wdm_export.scores import EnsembleTileScores, TileScores
from wdm_export.texture import PHASE_PX
from wdm_export.tiles import Region, TilePlace, centre_of, truth_tile
from wdm_runtime.conditioning import valid_cells
from wdm_runtime.consistency import DEFAULT_CONSISTENCY
from wdm_runtime.errors import EngineError, InputError
from wdm_runtime.field import PrecipField, each_time
from wdm_runtime.grid import interpolate
from wdm_runtime.presets import FAST, PRESETS, Preset
from wdm_runtime.skill import (
    MAX_MISSING_SHARE,
    MIN_WET_SHARE,
    TILE_PX,
    WET_MM_H,
    Array,
    Places,
    find_tiles,
    window,
)

SHOWN_PROBABILITY_MM_H = 5.0
_LEAST_TILE_PX = 12  # SSIM's window and one block more


@dataclass
class _Scorer:
    """One forecast's scores so far; ``values`` are its valid rates, for the percentiles."""

    name: str
    tiles: list[TileScores] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    ensemble: list[EnsembleTileScores] = field(default_factory=list)

    def add(self, forecast: Array, truth: TruthTile) -> None:
        self.tiles.append(scores.score_tile(forecast, truth))
        self.values.append(forecast[truth.valid])

    def row(self, truth_percentiles: Array) -> ForecastRow:
        tiles = scores.stack(self.tiles)
        error = metrics.percentiles(np.concatenate(self.values)) - truth_percentiles
        row = ForecastRow(self.name, scores.pool(tiles, error), tiles, math.nan)
        if not self.ensemble:
            return row
        ensemble = scores.stack(self.ensemble)
        pooled = scores.pool_ensemble(ensemble)
        return replace(row, ensemble=pooled, ensemble_tiles=ensemble)


class _Scoreboard:
    """Scores of all forecasts, fed tile by tile. A random method has a member, median and mean."""

    def __init__(self, methods: Sequence[Method], members: int, seed: int) -> None:
        self.seed = seed
        self.scorers: list[list[_Scorer]] = []
        for method in methods:
            names = [method.name]
            if method.random:
                before = f"{method.name}, " if method.name else ""
                names = [f"{before}one member"]
                names += [f"{before}{kind} of {members} members" for kind in ("median", "mean")]
            self.scorers.append([_Scorer(name) for name in (names if members > 1 else names[:1])])
        self.places: list[TilePlace] = []
        self.truth: list[Array] = []
        self.spectra: list[Array] = []

    def begin(self, place: TilePlace, truth: TruthTile) -> int:
        """The number of a new tile."""
        self.places.append(place)
        self.truth.append(truth.rate_mm_h[truth.valid])
        self.spectra.append(truth.spectrum)
        return len(self.places) - 1

    def add(self, method: int, tile: int, truth: TruthTile, members: Array) -> None:
        scorers = self.scorers[method]
        scorers[0].add(members[0], truth)
        if len(scorers) > 1:
            scorers[1].add(np.median(members, axis=0), truth)
            scorers[2].add(mean_of(members), truth)
            # Addressed by the tile's number, so that ties in ranks fall alike in every run.
            rng = np.random.default_rng([abs(self.seed), tile])
            scorers[2].ensemble.append(scores.score_ensemble_tile(members, truth, rng))

    def result(self, settings: dict[str, Any], draws: int) -> Evaluation:
        truth = np.concatenate(self.truth)
        percentiles = metrics.percentiles(truth)
        rows = [s.row(percentiles) for scorers in self.scorers for s in scorers]
        reference = next(row for row in rows if row.name == REFERENCE)
        rows = [row.relative_to(reference) for row in rows]
        cells = int(reference.tiles.cells.sum())
        return Evaluation(
            tuple(rows),
            tuple(self.places),
            cells,
            {**settings, "bootstrap_draws": draws, "bootstrap_seed": self.seed},
            intervals(rows, draws, self.seed),
            truth=_levels(truth, percentiles),
            truth_spectra=np.stack(self.spectra),
        )


def _levels(truth: Array, percentiles: Array) -> dict[str, float]:
    """What a forecast's percentiles and wet fraction are compared with, by their labels."""
    found = zip(metrics.PERCENTILES, percentiles, strict=True)
    wet = float((truth >= WET_MM_H).mean())
    return {f"p{key:g} [mm/h]": float(value) for key, value in found} | {"wet fraction": wet}


def mean_of(members: Array) -> npt.NDArray[np.float32]:
    """Mean of members (member, ...), as float32.

    A float32 sum would push the mean of equal rates off the very threshold they stand on.
    """
    return members.mean(axis=0, dtype=np.float64).astype(np.float32)


def evaluate(
    downscaler: DownscalerLike,
    fields: Iterable[PrecipField],
    members: int,
    seed: int,
    way: Preset = PRESETS[FAST],
    consistency: str = DEFAULT_CONSISTENCY,
    tile_px: int = TILE_PX,
    on_progress: Callable[[str], None] | None = None,
    baselines: Sequence[Method] | None = None,
    region: Region | None = None,
    gallery: Gallery | None = None,
    bootstrap_draws: int = DRAWS,
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
        Ensemble size and seed. With one member there are no rows for the ensemble.
    way, consistency
        How members are drawn.
    tile_px
        Tile edge in fine cells, a multiple of 4 from 12: of what a checkerboard repeats in, and
        wide enough for SSIM's window.
    on_progress
        Called with one line of text after every member.
    baselines
        What it is compared with, on the same tiles, bicubic interpolation among them; by default
        that alone.
    region
        Which of the tiles count.
    gallery
        Where to keep the fields that the report's maps show.
    bootstrap_draws
        Redraws of the tiles behind the intervals.

    Raises
    ------
    InputError
        No members, a tile of another size, or no field has a tile with rain.
    EngineError
        A method left a cell that counts without a finite rate.
    """
    if members < 1:
        raise InputError(f"Got {members} members; expected at least 1. Set --members.")
    if tile_px < _LEAST_TILE_PX or tile_px % PHASE_PX:
        raise InputError(
            f"Got tiles of {tile_px} cells; expected a multiple of {PHASE_PX}, at least "
            f"{_LEAST_TILE_PX}. Correct --tile."
        )
    if baselines is None:
        baselines = (Interpolation(REFERENCE, interpolate, downscaler.factor),)
    model = Ensemble("", downscaler, way, consistency)
    methods = (*baselines, model)
    run = _Run(
        methods, model, downscaler.factor, members, seed, tile_px, region, gallery, on_progress
    )
    seen = 0
    for frame in each_time(fields):
        seen += 1
        run.score(frame)
    if not run.board.places:
        raise InputError(
            f"{seen} fields have no tile to score; expected one of {tile_px} x {tile_px} cells "
            f"with more than {MIN_WET_SHARE:.0%} wet and under {MAX_MISSING_SHARE:.0%} missing"
            f"{' in the region' if region else ''}, cells near a missing coarse one among them. "
            f"{_gap_advice(run.gaps) or 'Hand in larger or wetter fields, score'} smaller tiles "
            f"with --tile{', or name another --bbox' if region else ''}."
        )
    settings = {"members": members, "seed": seed, **asdict(way)}
    settings |= {"consistency": consistency, "tile_px": tile_px}
    return run.board.result(settings, bootstrap_draws)


def _gap_advice(places: int) -> str:
    """What helps a radar's disc, whose corners miss; the sentence goes on."""
    if not places:
        return ""
    return (
        f"{places} places have rain enough, but missing cells: cut a square without any first "
        "(wdm-export coarsen FINE -o coarse.nc --truth fine.nc --crop ROW,COLUMN,HEIGHT,WIDTH, in "
        "coarse cells) and hand in fine.nc, or score"
    )


class _Run:
    """What all frames of an evaluation share."""

    def __init__(
        self,
        methods: Sequence[Method],
        model: Method,
        factor: int,
        members: int,
        seed: int,
        tile_px: int,
        region: Region | None,
        gallery: Gallery | None,
        on_progress: Callable[[str], None] | None,
    ) -> None:
        self.methods, self.model, self.factor = methods, model, factor
        self.members, self.seed, self.tile_px = members, seed, tile_px
        self.region, self.gallery, self.on_progress = region, gallery, on_progress
        self.board = _Scoreboard(methods, members, seed)
        self.gaps = 0  # places of frames without a tile that had rain enough, but missing cells

    def score(self, frame: PrecipField) -> None:
        """Draw and score every method on one frame's tiles."""
        rows, columns = (n // self.factor * self.factor for n in frame.grid.shape)
        fine, size, time = frame.frame(0)[:rows, :columns], self.tile_px, frame.valid_times[0]
        coarse = coarsen(frame, self.factor)
        blocks = coarse.frame(0)
        reached = valid_cells(blocks, self.factor)
        counted = np.where(reached, fine, np.nan)
        places = self._inside(frame, find_tiles(counted, size))
        if not places:
            self.gaps += len(self._inside(frame, find_tiles(fine, size, missing_share=1)))
            return
        truths = {}
        for place, centre in places.items():
            at = window(place, size)
            truth = truth_tile(fine[at], reached[at], blocks, place, self.factor)
            tile = self.board.begin(TilePlace(time, *place, centre), truth)
            truths[tile] = truth
            if self.gallery is not None:
                self.gallery.put(tile, "coarse input", nearest(blocks, self.factor)[at])
                self.gallery.put(tile, "truth", np.where(truth.valid, truth.rate_mm_h, np.nan))
        for number, method in enumerate(self.methods):
            drawn = self._draw(method, coarse, list(places))
            for (tile, truth), place, members in zip(truths.items(), places, drawn, strict=True):
                self._check(method, truth, members, f"the tile at {place}, {time}")
                self.board.add(number, tile, truth, members)
                self._keep(method, tile, members)

    def _draw(
        self, method: Method, coarse: PrecipField, places: list[tuple[int, int]]
    ) -> npt.NDArray[np.float32]:
        """(tile, member, y, x): full domains are dropped one by one."""
        count, size = self.members if method.random else 1, self.tile_px
        drawn = np.full((len(places), count, size, size), np.nan, dtype=np.float32)
        for member, tiles in enumerate(method.draw(coarse, places, size, count, self.seed)):
            drawn[:, member] = tiles
            if self.on_progress and method.random:
                done = f"member {member + 1} of {count}, {len(places)} tiles"
                who = f"{method.name}, " if method.name else ""
                self.on_progress(f"{coarse.valid_times[0]}: {who}{done}")
        return drawn

    def _check(self, method: Method, truth: TruthTile, members: Array, where: str) -> None:
        lost = np.count_nonzero(~np.isfinite(members[:, truth.valid]))
        if lost:
            who = method.name or "The downscaler"
            raise EngineError(
                f"{who} gave no finite rate in {lost} cells of {where}; expected one wherever the "
                "input is valid. Check the bundle with 'wdm-export check'."
            )

    def _inside(self, frame: PrecipField, places: Places) -> dict[tuple[int, int], Any]:
        """The places within the region, with their centres."""
        centres = {place: centre_of(frame.grid, place, self.tile_px) for place in places}
        if self.region is None:
            return centres
        degrees = frame.grid.is_latlon
        return {p: c for p, c in centres.items() if self.region.holds(c, degrees)}

    def _keep(self, method: Method, tile: int, members: Array) -> None:
        """What the report's maps show."""
        if self.gallery is None:
            return
        if method.name == REFERENCE:
            self.gallery.put(tile, REFERENCE, members[0])
        elif method is self.model:
            for number, member in enumerate(members[:2]):
                self.gallery.put(tile, f"member {number}", member)
            self.gallery.put(tile, f"mean of {len(members)}", mean_of(members))
            share = (members >= SHOWN_PROBABILITY_MM_H).mean(axis=0)
            self.gallery.put(
                tile, f"probability of at least {SHOWN_PROBABILITY_MM_H:g} mm/h", share
            )
