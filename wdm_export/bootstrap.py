"""Confidence intervals of pooled scores: the tiles are drawn again, with replacement.

Tiles count as independent; those of one storm are not quite, so the intervals are narrow rather
than wide. All forecasts of a draw are scored on the same tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wdm_export.methods import REFERENCE

if TYPE_CHECKING:  # it brings scikit-image, and the command line's help asks here for DRAWS
    from wdm_export.evaluation import ForecastRow

Intervals = dict[str, dict[str, tuple[float, float]]]  # forecast, score: low and high

DRAWS = 1000
_LEAST_SHARE = 0.9  # of the draws, that define a score
LEAST_TILES = 4  # of three, a draw in 27 is a single tile: the ends would be those of single tiles


def intervals(rows: Sequence[ForecastRow], draws: int, seed: int) -> Intervals:
    """Percentile bootstrap of every score of every forecast: where 95 % of the draws lie.

    Parameters
    ----------
    rows
        Forecasts on the same tiles, bicubic interpolation among them.
    draws, seed
        How often the tiles are drawn again, and from which random numbers.

    Returns
    -------
    (low, high) by forecast and score, of the draws that define it. Nothing of fewer than four
    tiles, or for scores that more than a tenth of the draws leave undefined or infinite, as
    those of events in a tile or two are, or that an interval says nothing about (a maximum over
    the tiles).
    """
    tiles = len(rows[0].tiles.cells)
    if tiles < LEAST_TILES or draws < 1:
        return {row.name: {} for row in rows}
    rng = np.random.default_rng([abs(seed), tiles])
    labels = [list(row.labelled()) for row in rows]
    values = [np.empty((draws, len(names))) for names in labels]
    for draw in range(draws):
        numbers = rng.integers(tiles, size=tiles)
        again = [row.redrawn(numbers) for row in rows]
        reference = next(row for row in again if row.name == REFERENCE)
        for row, found in zip(again, values, strict=True):
            scores = row.relative_to(reference).labelled().values()
            found[draw] = [np.nan if score is None else score for score in scores]
    ends = (2.5, 97.5)
    return {
        row.name: {
            name: (float(low), float(high))
            for name, low, high in zip(names, *_percentiles(found, ends), strict=True)
            if np.isfinite(low) and np.isfinite(high) and not name.startswith("consistency, max")
        }
        for row, names, found in zip(rows, labels, values, strict=True)
    }


def _percentiles(values: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """(2, scores), NaN for a score that is finite in too few draws."""
    finite = np.isfinite(values)
    found = np.full((2, values.shape[1]), np.nan)
    for score in np.flatnonzero(finite.mean(axis=0) >= _LEAST_SHARE):
        found[:, score] = np.percentile(values[finite[:, score], score], ends)
    return found
