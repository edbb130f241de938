"""Scores of a downscaler against baselines, on tiles cut from full-domain runs.

A field of 1 km truth is averaged to the coarse grid, refined by each method in turn, and scored on
the non-overlapping tiles that have rain. Whole domains are dropped one by one, members' tiles with
their valid time. For the percentiles the rates of every forecast stay on disk, 330 kB a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_export.bootstrap import DRAWS
from wdm_export.coarsen import coarsen
from wdm_export.evaluation import Evaluation
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
from wdm_export.scoreboard import Scoreboard, mean_of
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
    Array,
    Places,
    find_tiles,
    window,
)

SHOWN_PROBABILITY_MM_H = 5.0
_LEAST_TILE_PX = 12  # SSIM's window and one block more


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
    on_unreadable: Callable[[InputError, str], None] | None = None,
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
    on_unreadable
        Called with the error and path of a field whose rates cannot be read, which is then left out
        with all its times; None: the first one ends it.

    Raises
    ------
    InputError
        No members, a tile of another size, rates that cannot be read, or no field has a tile with
        rain.
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
    settings = {"members": members, "seed": seed, **asdict(way)}
    settings |= {"consistency": consistency, "tile_px": tile_px}
    with Scoreboard(methods, members, seed) as board:
        run = _Run(
            board, methods, model, downscaler.factor, members, seed, tile_px, region, gallery,
            on_progress,
        )  # fmt: skip
        for field in fields:
            run.score_field(field, on_unreadable)
        run.require_tiles()
        return board.result(settings, bootstrap_draws)


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
        board: Scoreboard,
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
        self.board, self.methods, self.model, self.factor = board, methods, model, factor
        self.members, self.seed, self.tile_px = members, seed, tile_px
        self.region, self.gallery, self.on_progress = region, gallery, on_progress
        self.seen = 0
        self.gaps = 0  # places of frames without a tile that had rain enough, but missing cells

    def score_field(
        self, field: PrecipField, on_unreadable: Callable[[InputError, str], None] | None
    ) -> None:
        """Score all times of a field, or none if one cannot be read and may be left out."""
        tiles, seen, gaps = len(self.board.places), self.seen, self.gaps
        try:
            for frame in each_time([field]):
                self.seen += 1
                self.score(frame)
        except InputError as error:
            if on_unreadable is None:
                raise
            self.board.keep(tiles)
            self.seen, self.gaps = seen, gaps
            on_unreadable(error, field.source.path)

    def require_tiles(self) -> None:
        """Refuse fields that all have no tile to score, and say what would help."""
        if self.board.places:
            return
        raise InputError(
            f"{self.seen} fields have no tile to score; expected one of {self.tile_px} x "
            f"{self.tile_px} cells with more than {MIN_WET_SHARE:.0%} wet and under "
            f"{MAX_MISSING_SHARE:.0%} missing{' in the region' if self.region else ''}, cells near "
            "a missing coarse one among them. "
            f"{_gap_advice(self.gaps) or 'Hand in larger or wetter fields, score'} smaller tiles "
            f"with --tile{', or name another --bbox' if self.region else ''}."
        )

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
