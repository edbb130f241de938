"""Rates that cannot be true, whatever the model: what is looked for in each member, and why.

The engine's own answers are watched in `wdm_runtime.engines.watched`; this looks at what is made of
them, so that faults of the transform, the consistency step or the weights do not pass either.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError

POLICIES: Final = ("warn", "fail", "fp32")
DEFAULT_POLICY: Final = "warn"

# The greatest rain in one minute, 31.2 mm at Unionville, Maryland, on 4 July 1956 (World
# Meteorological Organization, World Weather and Climate Extremes Archive), as a rate: no cell's
# mean is more, over any time.
MINUTE_RECORD_MM_H: Final = 31.2 * 60
# Over longer periods: 305 mm in 42 minutes at Holt, Missouri, on 22 June 1947 (the same archive).
PERIOD_RECORD_MM_H: Final = 305 / 0.7
_PERIOD_RECORD_H: Final = 0.7
_BAND_ROWS: Final = 64


def check_policy(policy: str) -> None:
    """Refuse what is none of `POLICIES`.

    Raises
    ------
    InputError
        It is another text.
    """
    if policy not in POLICIES:
        raise InputError(
            f"--on-suspect got '{policy}'; expected one of {', '.join(POLICIES)}. Choose one."
        )


def highest_mm_h(period_h: float | None) -> float:
    """The highest rate that can be true of amounts over a period, None for rates [mm h-1]."""
    longer = period_h is not None and period_h >= _PERIOD_RECORD_H
    return PERIOD_RECORD_MM_H if longer else MINUTE_RECORD_MM_H


def unknown_cells(rate_mm_h: npt.NDArray[np.float32]) -> int:
    """How many rates (y, x) are NaN, some rows at a time: a mask of all would need its own room."""
    rows = range(0, rate_mm_h.shape[0], _BAND_ROWS)
    return sum(int(np.isnan(rate_mm_h[first : first + _BAND_ROWS]).sum()) for first in rows)


def not_finite(rate_mm_h: npt.NDArray[np.float32], missing: int) -> str | None:
    """How many rates are no numbers, in words; None if none is but those missing on purpose.

    Parameters
    ----------
    rate_mm_h
        (y, x) [mm h-1], NaN where missing.
    missing
        How many cells are missing on purpose.
    """
    # Passes that skip NaN; only where they find something is it worth to count.
    extremes = (extreme.reduce(rate_mm_h, axis=None) for extreme in (np.fmin, np.fmax))
    infinite = int(np.isinf(rate_mm_h).sum()) if any(map(np.isinf, extremes)) else 0
    count = abs(unknown_cells(rate_mm_h) - missing) + infinite
    return f"{count} rates that are no finite numbers" if count else None


def suspicion(rate_mm_h: npt.NDArray[np.float32], most_mm_h: float) -> str | None:
    """What in a member of finite rates cannot be true, in words; None if nothing.

    Parameters
    ----------
    rate_mm_h
        (y, x) [mm h-1], NaN where missing.
    most_mm_h
        The highest rate that can be true.
    """
    highest = float(np.fmax.reduce(rate_mm_h, axis=None))
    lowest = float(np.fmin.reduce(rate_mm_h, axis=None))
    if lowest < 0:
        return f"negative rates, down to {lowest:.3g} mm/h"
    if highest > most_mm_h:
        return f"rates up to {highest:.4g} mm/h, beyond the world record of {most_mm_h:.0f}"
    return None


def imbalance(
    residual_mm_h: float, coarse_mm_h: npt.NDArray[np.float32], dry_mm_h: float
) -> str | None:
    """Whether block means are further from the input than those of no rain at all would be.

    Parameters
    ----------
    residual_mm_h
        Mean absolute difference of block means and input, NaN if there are none.
    coarse_mm_h
        (y, x), the input, NaN where missing.
    dry_mm_h
        What counts as dry, and as no difference.
    """
    if not residual_mm_h > dry_mm_h:
        return None
    mean = float(np.nanmean(coarse_mm_h))
    if residual_mm_h <= mean:
        return None
    return f"block means {residual_mm_h:.3g} mm/h from an input of {mean:.3g} mm/h on average"
