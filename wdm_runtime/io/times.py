"""Valid times of a variable by CF: what the numbers of a time coordinate and its bounds mean."""

from __future__ import annotations

from collections import Counter
from typing import Any

import netCDF4
import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.field import TimeAxis
from wdm_runtime.io.coordinates import Axis, named_kind
from wdm_runtime.io.dataset import Dataset, Variable
from wdm_runtime.io.dates import dates_of, to_the_second, whole_units


def valid_times_of(
    dataset: Dataset, variable: Variable, axis: Axis | None
) -> tuple[tuple[str, ...], TimeAxis | None]:
    """ISO texts of the valid times, and the coordinate as it is encoded.

    Where the axis is the times at which forecasts began, it is not what their rain is valid at.

    Raises
    ------
    InputError
        The times are missing, cannot be decoded, come twice, or are those of a forecast's beginning
        and nothing says when it is valid.
    """
    coordinate = axis.coordinate if axis else _scalar_time(dataset, variable)
    if coordinate is None:
        return tuple(f"none-{index}" for index in range(axis.size if axis else 1)), None
    period = None
    if coordinate.text("standard_name") == "forecast_reference_time":
        coordinate, period = _of_forecast(dataset, variable, coordinate)
    units = coordinate.text("units")
    calendar = coordinate.text("calendar").casefold() or "standard"
    try:
        units = whole_units(units)
        decoded = np.ravel(coordinate.decoded())
        if not np.isfinite(decoded).all():
            raise ValueError("some times are missing or infinite")
        # As stored where that is what is meant: int64 does not fit into float64.
        values = decoded if coordinate.is_packed else np.ravel(coordinate.raw()).copy()
        bounds_name, bounds = _bounds(dataset, coordinate, units, calendar)
        if period is not None:
            values = values + _in_units_of(units, calendar, period)
            bounds = None  # around the forecast's beginning
        dates = dates_of(values, units, calendar)
    except (ValueError, OverflowError, TypeError, AttributeError) as error:
        raise InputError(
            f"{dataset.label}: coordinate '{coordinate.name}' has units '{units}' in calendar "
            f"'{calendar}', which cannot be decoded ({error}); expected a number for each "
            "time in '<unit> since <YYYY-MM-DD hh:mm:ss>', UTC or with an offset like +02:00. "
            "Correct the coordinate and its attributes."
        ) from error
    texts = tuple(to_the_second(date) for date in dates)
    text, count = max(Counter(texts).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:  # two frames would share their noise
        raise InputError(
            f"{dataset.label}: coordinate '{coordinate.name}' has the time {text} {count} times; "
            "expected each time once, to the second. Remove the repeated frames."
        )
    time = TimeAxis(coordinate.name, units, calendar, values, bounds, bounds_name)
    return texts, time


def _of_forecast(
    dataset: Dataset, variable: Variable, began: Variable
) -> tuple[Variable, Variable | None]:
    """The valid time that lies beside a forecast's beginning, or that and the period to add."""

    def beside(standard_name: str) -> list[Variable]:
        """With a number for each beginning, or a single one."""
        return [
            other
            for other in dataset.scope(variable)
            if other.text("standard_name") == standard_name
            and other.dtype is not None
            and set(other.dimensions) <= set(variable.dimensions)
            and (other.size == 1 or set(began.dimensions) <= set(other.dimensions))
            and other.size in (1, began.size)
        ]

    valid = [time for time in beside("time") if time.size == began.size]
    periods = beside("forecast_period")
    if len(valid) == 1:
        return valid[0], None
    if not valid and len(periods) == 1:
        return began, periods[0]
    raise InputError(
        f"{dataset.label}: coordinate '{began.name}' holds the times at which forecasts began, "
        f"beside {len(valid)} valid times and {len(periods)} forecast periods for them; expected "
        "one coordinate with the standard_name 'time', or else one with 'forecast_period'. Add "
        f"it, or, if '{began.name}' holds valid times, give it the standard_name 'time'."
    )


def _in_units_of(units: str, calendar: str, period: Variable) -> npt.NDArray[Any]:
    """Periods of forecasts as numbers to add to times of these units."""
    decoded = np.ravel(period.decoded())
    if not np.isfinite(decoded).all():
        raise ValueError(f"some periods in '{period.name}' are missing or infinite")
    since = "since 2000-01-01"  # any date: it cancels
    dates = dates_of(decoded, f"{period.text('units')} {since}", calendar)
    return np.asarray(netCDF4.date2num(dates, f"{units.split()[0]} {since}", calendar))


def _bounds(
    dataset: Dataset, coordinate: Variable, units: str, calendar: str
) -> tuple[str, npt.NDArray[Any] | None]:
    name = coordinate.text("bounds")
    bounds = dataset.named(name, coordinate) if name else None
    if bounds is None or bounds.size != 2 * max(coordinate.size, 1):
        return "time_bnds", None
    values = (bounds.decoded() if bounds.is_packed else bounds.raw()).reshape(-1, 2)
    if not np.isfinite(bounds.decoded()).all():
        raise ValueError(f"some bounds in '{bounds.name}' are missing")
    said = bounds.text("units"), bounds.text("calendar").casefold()
    other = whole_units(said[0]) if said[0] else units, said[1] or calendar
    if other != (units, calendar):  # against CF, but met: what they mean is clear
        dates = dates_of(values, *other)
        values = np.asarray(netCDF4.date2num(dates, units, calendar))
    return bounds.name, np.array(values)


def _scalar_time(dataset: Dataset, variable: Variable) -> Variable | None:
    scalars = [v for v in dataset.scope(variable) if v.size == 1 and v.dtype is not None]
    for scalar in scalars:
        if scalar.text("standard_name") == "time":
            return scalar
    for scalar in scalars:
        if not scalar.text("standard_name") and named_kind(scalar.name) == "t":
            return scalar
    names = {scalar.text("standard_name"): scalar for scalar in scalars}
    return names.get("forecast_reference_time") if "forecast_period" in names else None
