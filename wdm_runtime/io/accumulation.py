"""The period that amounts of precipitation are summed over, as their file states it."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.field import TimeAxis
from wdm_runtime.io.dataset import Dataset, Variable
from wdm_runtime.io.dates import dates_of
from wdm_runtime.io.units import SAME_WITHIN_H, check_stated_period

# CF's interval is the spacing of what was summed: a day of hourly rain has "interval: 1 hour".
# Only with the comment that `cf.period_note` gives is it the period itself.
_SUM = re.compile(
    r"(\w+)\s*:\s*sum\s*"
    r"\(interval: (\d+(?:\.\d+)?(?:e[+-]\d+)?) hours comment: accumulation period\)"
)


def period_of(
    dataset: Dataset, variable: Variable, time: TimeAxis | None, stated_h: float | None
) -> float:
    """The hours each amount is summed over.

    Time bounds count first, then the period that ``cell_methods`` of our own outputs state, then
    what the caller states.

    Raises
    ------
    InputError
        The period is unknown, differs between the times, or is not the one stated; or all amounts
        are summed from one start.
    """
    of_bounds = _period_of_bounds(dataset, variable, time)
    found_h = of_bounds if of_bounds is not None else _period_of_cell_methods(variable, time)
    named = f"{dataset.label}: variable '{variable.path}'"
    check_stated_period(named, found_h, stated_h)
    if found_h is None and stated_h is None:
        raise InputError(
            f"{named} has units '{variable.text('units')}', an amount over an unknown period; "
            "expected a rate convertible to 'mm h-1', or time bounds that state the period. State "
            "it with --accumulation, like --accumulation 1h, or choose another with --variable."
        )
    return float(stated_h or found_h or 0.0)


def _period_of_bounds(dataset: Dataset, variable: Variable, time: TimeAxis | None) -> float | None:
    if time is None or time.bounds is None:
        return None
    dates = dates_of(time.bounds, time.units, time.calendar)
    starts, ends = _hours(dates[:, 0] - dates[0, 0]), _hours(dates[:, 1] - dates[0, 0])
    periods = np.abs(ends - starts)
    named = f"{dataset.label}: variable '{variable.path}' has amounts"
    if np.ptp(periods) <= SAME_WITHIN_H:
        # Bounds without width state no period.
        return float(np.median(periods)) if periods.min() > SAME_WITHIN_H else None
    if np.ptp(starts) <= SAME_WITHIN_H:
        raise InputError(
            f"{named} summed from one start, {dates[0, 0].isoformat()}, to each of its times; "
            "expected one period before each time. Take the differences of successive times "
            "first (cdo deltat)."
        )
    raise InputError(
        f"{named} over {periods.min():g} to {periods.max():g} h; expected the same period at all "
        "times. Divide them by their periods first, or select times of one period."
    )


def _hours(differences: npt.NDArray[np.object_]) -> npt.NDArray[np.float64]:
    return np.array([difference.total_seconds() / 3600 for difference in differences])


def _period_of_cell_methods(variable: Variable, time: TimeAxis | None) -> float | None:
    for name, period_h in _SUM.findall(variable.text("cell_methods")):
        if name in ("time", time.name if time else "time"):
            return float(period_h) if 0 < float(period_h) < np.inf else None
    return None
