"""Scores of all forecasts as they come, tile by tile; their rates lie on disk until the end."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_export import metrics, scores
from wdm_export.bootstrap import intervals
from wdm_export.evaluation import Evaluation, ForecastRow
from wdm_export.methods import REFERENCE, Method
from wdm_export.metrics import TruthTile
from wdm_export.scores import EnsembleTileScores, TileScores
from wdm_export.tiles import TilePlace
from wdm_runtime.errors import OutputError
from wdm_runtime.skill import WET_MM_H, Array


class _Spool:
    """The valid rates of all tiles, for the percentiles: on disk, as 16 forecasts do not fit."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._ends = [0]  # of the tiles, in bytes

    def append(self, rates: Array) -> None:
        """Keep a tile's rates (cells,) [mm h-1], as float32."""
        try:
            self._file.seek(self._ends[-1])
            written = self._file.write(rates.astype(np.float32).tobytes())
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{tempfile.gettempdir()}: cannot hold the rates of more tiles ({error.strerror}); "
                "expected room for 330 kB a tile and forecast. Free some, name another folder in "
                "TMPDIR, or score fewer files."
            ) from error
        self._ends.append(self._ends[-1] + written)

    def keep(self, tiles: int) -> None:
        """Drop what came after the first tiles."""
        del self._ends[tiles + 1 :]

    def take(self) -> npt.NDArray[np.float32]:
        """All rates in order (cells,) [mm h-1], once: the room on the disk is free then."""
        with self._file:
            self._file.seek(0)
            return np.frombuffer(self._file.read(self._ends[-1]), dtype=np.float32)

    def close(self) -> None:
        """Free the room on the disk."""
        self._file.close()


@dataclass
class _Scorer:
    """One forecast's scores so far; ``values`` are its valid rates."""

    name: str
    tiles: list[TileScores] = field(default_factory=list)
    values: _Spool = field(default_factory=_Spool)
    ensemble: list[EnsembleTileScores] = field(default_factory=list)

    def add(self, forecast: Array, truth: TruthTile) -> None:
        self.tiles.append(scores.score_tile(forecast, truth))
        self.values.append(forecast[truth.valid])

    def keep(self, tiles: int) -> None:
        """Drop what came after the first tiles."""
        del self.tiles[tiles:], self.ensemble[tiles:]
        self.values.keep(tiles)

    def row(self, truth_percentiles: Array) -> ForecastRow:
        tiles = scores.stack(self.tiles)
        error = metrics.percentiles(self.values.take()) - truth_percentiles
        row = ForecastRow(self.name, scores.pool(tiles, error), tiles, math.nan)
        if not self.ensemble:
            return row
        ensemble = scores.stack(self.ensemble)
        pooled = scores.pool_ensemble(ensemble)
        return replace(row, ensemble=pooled, ensemble_tiles=ensemble)


class Scoreboard:
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
        self.truth = _Spool()
        self.spectra: list[Array] = []

    def __enter__(self) -> Scoreboard:
        return self

    def __exit__(self, *_: object) -> None:
        self.truth.close()
        for scorers in self.scorers:
            for scorer in scorers:
                scorer.values.close()

    def begin(self, place: TilePlace, truth: TruthTile) -> int:
        """The number of a new tile."""
        self.places.append(place)
        self.truth.append(truth.rate_mm_h[truth.valid])
        self.spectra.append(truth.spectrum)
        return len(self.places) - 1

    def keep(self, tiles: int) -> None:
        """Drop what came after the first tiles, as if it had never been scored."""
        del self.places[tiles:], self.spectra[tiles:]
        self.truth.keep(tiles)
        for scorers in self.scorers:
            for scorer in scorers:
                scorer.keep(tiles)

    def add(self, method: int, tile: int, truth: TruthTile, members: Array) -> None:
        """Score a method's members (member, y, x) [mm h-1] on a tile."""
        scorers = self.scorers[method]
        scorers[0].add(members[0], truth)
        if len(scorers) > 1:
            scorers[1].add(np.median(members, axis=0), truth)
            scorers[2].add(mean_of(members), truth)
            # Addressed by the tile's number, so that ties in ranks fall alike in every run.
            rng = np.random.default_rng([abs(self.seed), tile])
            scorers[2].ensemble.append(scores.score_ensemble_tile(members, truth, rng))

    def result(self, settings: dict[str, Any], draws: int) -> Evaluation:
        """The evaluation, once; ``draws`` as for `intervals`."""
        truth = self.truth.take()
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
