"""How often each rate occurs: histograms of pooled cells, and what is read from them."""

from __future__ import annotations

import numpy as np

from wdm_export.metrics import PERCENTILES, Int64
from wdm_runtime.skill import Array, Float64

# Classes for the distance, ten a factor of ten. Below 1 mm/h they would be narrower than the 0.1
# mm/h steps of radar products, which fill some and leave others empty.
INTENSITY_EDGES_MM_H = np.logspace(0, 2, 21)
LEAST_CELLS = 100  # of the truth in a class that counts
# Classes for percentiles of redrawn tiles.
_FINE_EDGES_MM_H = np.geomspace(0.1, 1000, 466)


def fine_histogram(values: Array) -> Int64:
    """Counts of rates below 0.1 mm/h, and in classes 2 % wide above it."""
    classes = np.searchsorted(_FINE_EDGES_MM_H, values, side="right")
    return np.bincount(classes, minlength=_FINE_EDGES_MM_H.size + 1)


def histogram_percentiles(counts: Int64) -> Float64:
    """The `PERCENTILES` of a `fine_histogram` [mm h-1], a class's values spread out evenly.

    Within 2 %: the width of a class. 0 below 0.1 mm/h, and the last edge beyond it.
    """
    edges = np.append(_FINE_EDGES_MM_H, _FINE_EDGES_MM_H[-1])
    until = counts.cumsum()
    places = np.array(PERCENTILES) / 100 * (until[-1] - 1)
    numbers = np.searchsorted(until, places, side="right")
    share = (places + 0.5 - (until - counts)[numbers]) / counts[numbers]
    low, high = edges[numbers - 1], edges[numbers]
    return np.asarray(np.where(numbers == 0, 0, low * (high / low) ** share))


def intensity_histogram(values: Array) -> Int64:
    """Counts of rates in the classes of `INTENSITY_EDGES_MM_H`, (20,)."""
    return np.histogram(values, INTENSITY_EDGES_MM_H)[0].astype(np.int64)


def intensity_distance_db(forecast: Int64, truth: Int64) -> float:
    """Root mean square of 10 log10(forecast / truth) over the classes the truth often is in.

    That is at least `LEAST_CELLS` times: one or two cells of one storm would outweigh all others.

    Parameters
    ----------
    forecast, truth
        Counts from `intensity_histogram`; no cell in the forecast counts as one.

    Returns
    -------
    dB, 0 for equal histograms; NaN where the truth hardly has rain of 1 to 100 mm/h.
    """
    seen = truth >= LEAST_CELLS
    if not seen.any():
        return float("nan")
    ratio = 10 * np.log10(np.maximum(forecast[seen], 1) / truth[seen])
    return float(np.sqrt(np.mean(ratio**2)))
