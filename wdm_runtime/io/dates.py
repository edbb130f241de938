"""Dates of time coordinates: what their numbers mean, and the one text that stands for a date."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import netCDF4
import numpy.typing as npt

# What UDUNITS allows after "since", but for dates and times without separators.
_UNITS = re.compile(
    r"(?P<head>.*?\bsince)\s+(?P<date>[+-]?\d+-\d{1,2}-\d{1,2})"
    r"((?P<separator>T|\s)\s*(?P<hour>\d{1,2})(?P<minutes>:\d{1,2}(:\d{1,2}(\.\d+)?)?)?\.?)?"
    r"(?P<gap>\s?)\s*(?P<zone>Z|UTC|GMT|[+-]\d{1,2}(:?\d{2})?)?\s*",
    re.IGNORECASE,
)
_HALF_A_SECOND = timedelta(milliseconds=500)


def to_the_second(date: Any) -> str:
    """A date of cftime in ISO 8601, to the nearest second, without a zone.

    Days as floats miss whole seconds by microseconds, and the text addresses the noise.
    """
    return str((date + _HALF_A_SECOND).isoformat(timespec="seconds"))


def dates_of(values: npt.NDArray[Any], units: str, calendar: str) -> Any:
    """An array of dates (cftime), raising ValueError where there is none."""
    return netCDF4.num2date(values, whole_units(units), calendar.casefold())


def whole_units(units: str) -> str:
    """Units of time as cftime understands them: it drops what it does not, and is silent."""
    found = _UNITS.fullmatch(units)
    if found is None:
        raise ValueError("not '<unit> since', a date and a time")
    hour, zone = found["hour"], found["zone"] or ""
    clock = f"{found['separator']}{hour}{found['minutes'] or ':00'}" if hour else ""
    if sum(map(str.isdigit, zone)) % 2:  # +2 or -6:30
        zone = f"{zone[0]}0{zone[1:]}"
    return f"{found['head']} {found['date']}{clock}{found['gap'] if zone else ''}{zone}"
