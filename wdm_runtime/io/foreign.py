"""What readers of formats without CF share: a time coordinate, and numbers turned into rates."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.field import DRY_FROM_MM_H, TimeAxis

_EPOCH = datetime(1970, 1, 1)


def epoch_axis(ends: list[datetime], span_h: float | None) -> TimeAxis:
    """A CF time coordinate for formats that have another notion of time.

    Parameters
    ----------
    ends
        Valid times in UTC, without zone; of amounts and means the ends of their periods.
    span_h
        The period of amounts or means [h], which becomes the bounds; None for an instant.
    """
    values = np.array([(end - _EPOCH) / timedelta(seconds=1) for end in ends])
    bounds = None
    if span_h is not None:
        bounds = np.stack([values - span_h * 3600, values], axis=1)
    return TimeAxis("time", "seconds since 1970-01-01 00:00:00", "standard", values, bounds)


def to_rates(label: str, values: npt.NDArray[np.float64], factor: float) -> npt.NDArray[np.float32]:
    """Numbers of one frame to rates [mm h-1].

    Parameters
    ----------
    label
        File and variable, for messages.
    values
        (y, x) in the file's units, NaN where missing.
    factor
        From the file's units to mm h-1.

    Raises
    ------
    InputError
        Infinite or negative numbers: neither rain nor missing.
    """
    rates = values * factor
    wrong = int(np.isinf(rates).sum()) + int((np.isfinite(rates) & (rates < DRY_FROM_MM_H)).sum())
    if wrong:
        raise InputError(
            f"{label} has {wrong} infinite or negative numbers in its {rates.size} cells, down to "
            f"{np.nanmin(rates):g} mm/h; expected rates of at least 0, or the file's own mark "
            "where they are missing. Correct them first."
        )
    return np.asarray(np.maximum(rates, 0), dtype=np.float32)  # np.maximum keeps NaN
