"""What a GRIB2 message says of its precipitation: product, units, period, time and grid.

ecCodes knows MRMS's local table 209 only as ``unknown``, so products are identified by their
discipline, category and number (NSSL's table v12.2, WMO's code table 4.2).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError, require
from wdm_runtime.grid import Grid
from wdm_runtime.io.dataset import Variable, check_fits

# (discipline, category, number) -> name; MRMS's with their period [h], None for rates.
MRMS_PRODUCTS: dict[tuple[int, int, int], tuple[str, float | None]] = {
    (209, 6, 1): ("PrecipRate", None),
    (209, 6, 2): ("RadarOnly_QPE_01H", 1.0),
    (209, 6, 9): ("GaugeCorr_QPE_01H", 1.0),
    (209, 6, 30): ("MultiSensor_QPE_01H_Pass1", 1.0),
    (209, 6, 37): ("MultiSensor_QPE_01H_Pass2", 1.0),
}
WMO_PRODUCTS = {
    (0, 1, 7): "precipitation_rate",
    (0, 1, 8): "total_precipitation",
    (0, 1, 52): "total_precipitation_rate",
}
_WMO_AMOUNT = (0, 1, 8)
_AVERAGE, _ACCUMULATION = 0, 1  # code table 4.10
_UNIT_HOURS = {0: 1 / 60, 1: 1.0, 2: 24.0, 10: 3.0, 11: 6.0, 12: 12.0, 13: 1 / 3600}  # table 4.4
_CLOCK = ("year", "month", "day", "hour", "minute", "second")

Get = Callable[[str], Any]  # a message's keys, None for those it does not have


def load_eccodes(purpose: str) -> ModuleType:
    """Import ecCodes, or say which extra brings it.

    Its wheels and pyproj's each hold a PROJ library, and ecCodes makes its own known to the whole
    process: a pyproj imported later takes it for its own and crashes. So pyproj goes first.
    """
    with suppress(ImportError):
        importlib.import_module("pyproj")
    return require("eccodes", "grib", purpose)


@dataclass(frozen=True)
class Header:
    """What a message says of its field."""

    name: str
    units: str
    period_h: float | None
    averaged: bool
    end: datetime
    member: int | None
    rows: int
    columns: int
    corners: tuple[float, float, float, float]  # first and last latitude, first and last longitude
    steps: tuple[float, float]  # along y and x, 0 where not given

    def grid(self, path: Path) -> Grid:
        """The grid from the header: asking ecCodes for every cell's position takes seconds."""
        north, south, west, east = self.corners
        return Grid.of_file(
            str(path),
            _axis(north, south, self.steps[0], self.rows),
            _axis(west, east + 360 * (east < west), self.steps[1], self.columns),
            ("lat", "lon"),
            (
                {"units": "degrees_north", "standard_name": "latitude"},
                {"units": "degrees_east", "standard_name": "longitude"},
            ),
        )


def identity_of(get: Get) -> tuple[int, int, int]:
    return get("discipline"), get("parameterCategory"), get("parameterNumber")


def header_of(path: Path, get: Get, identity: tuple[int, int, int]) -> Header:
    statistic = get("typeOfStatisticalProcessing")
    if identity in MRMS_PRODUCTS:
        name, period_h = MRMS_PRODUCTS[identity]
        units = "mm h-1" if period_h is None else "mm"
    else:
        name, period_h = WMO_PRODUCTS[identity], None
    _require_plain_grid(path, name, get)
    rows, columns = _sizes(path, name, get)
    if identity in WMO_PRODUCTS:
        _require_rate_or_sum(path, name, identity == _WMO_AMOUNT, statistic)
        period_h = _period_h(path, name, get) if statistic == _ACCUMULATION else None
        units = "kg m-2 s-1" if period_h is None else "kg m-2"
    corners = tuple(
        float(get(f"{axis}Of{which}GridPointInDegrees"))
        for axis in ("latitude", "longitude")
        for which in ("First", "Last")
    )
    return Header(
        name=name,
        units=units,
        period_h=period_h,
        averaged=statistic == _AVERAGE,
        end=_valid_time(path, name, get, statistic is None),
        member=get("perturbationNumber"),
        rows=rows,
        columns=columns,
        corners=(corners[0], corners[1], corners[2], corners[3]),
        steps=(
            float(get("jDirectionIncrementInDegrees") or 0),
            float(get("iDirectionIncrementInDegrees") or 0),
        ),
    )


def _require_plain_grid(path: Path, name: str, get: Get) -> None:
    if get("gridType") != "regular_ll":
        raise InputError(
            f"{path}: '{name}' lies on grid type '{get('gridType')}'; expected 'regular_ll'. "
            "Regrid it first."
        )
    flags = ("iScansNegatively", "jPointsAreConsecutive", "alternativeRowScanning")
    found = [flag for flag in flags if get(flag)]
    if found:
        raise InputError(
            f"{path}: the scanning mode of '{name}' has {' and '.join(found)}; expected rows one "
            "after the other, each from west to east. Convert it first (cdo -f nc copy)."
        )


def _sizes(path: Path, name: str, get: Get) -> tuple[int, int]:
    """Rows and columns, before ecCodes makes room for as many values as it is told."""
    rows, columns = get("Nj"), get("Ni")
    points, coded = get("numberOfDataPoints"), get("numberOfValues")
    # A bitmap leaves values out, so that there may be fewer.
    if not 0 < rows * columns == points >= coded:
        raise InputError(
            f"{path}: '{name}' has {rows} x {columns} cells of {points} points and {coded} values; "
            "expected a point for each cell and no more values. Fetch the file again."
        )
    shape = rows, columns
    described = Variable(
        name,
        ("lat", "lon"),
        shape,
        np.dtype(np.float64),
        {},
        read=lambda index: np.reshape(get("values"), shape)[index],
    )
    check_fits(str(path), described, described.size)
    return shape


def _require_rate_or_sum(path: Path, name: str, is_amount: bool, statistic: int | None) -> None:
    """An amount must be summed over a period; a rate may be of an instant, a mean or a sum."""
    if statistic not in ((_ACCUMULATION,) if is_amount else (None, _AVERAGE, _ACCUMULATION)):
        got = "of no period" if statistic is None else f"of statistic {statistic} (table 4.10)"
        raise InputError(
            f"{path}: '{name}' is {got}; expected "
            f"{'a sum over a period' if is_amount else 'a rate, its mean, or a sum'}. Hand in "
            "another file."
        )


def _period_h(path: Path, name: str, get: Get) -> float:
    ranges, unit = get("numberOfTimeRanges"), get("indicatorOfUnitForTimeRange")
    period_h = _UNIT_HOURS.get(unit, 0.0) * get("lengthOfTimeRange")
    if ranges != 1 or period_h <= 0:
        raise InputError(
            f"{path}: '{name}' is summed over {ranges} ranges of {get('lengthOfTimeRange')} in "
            f"time unit {unit}; expected one range of at least a second. Hand in another file."
        )
    return float(period_h)


def _valid_time(path: Path, name: str, get: Get, of_instant: bool) -> datetime:
    """The end of the period; of an instant the reference time and the forecast's length."""
    suffix = "" if of_instant else "OfEndOfOverallTimeInterval"
    clock = tuple(get(f"{part}{suffix}") for part in _CLOCK)
    unit_h = _UNIT_HOURS.get(get("indicatorOfUnitOfTimeRange"), 0.0) if of_instant else 0.0
    ahead_h = unit_h * (get("forecastTime") or 0)
    try:
        return datetime(*clock) + timedelta(hours=ahead_h)
    except (ValueError, OverflowError, TypeError) as error:
        date, time = ("-".join(map(str, clock[:3])), ":".join(map(str, clock[3:])))
        raise InputError(
            f"{path}: '{name}' has the time {date} {time} and {ahead_h:g} h after it, which is "
            f"none ({error}); expected a date and time of the calendar. Fetch the file again."
        ) from error


def _axis(first: float, last: float, step: float, count: int) -> npt.NDArray[np.float64]:
    """Even centres: by the header's step, unless its rounding adds up to miss the last cell."""
    stepped = first + (step if last >= first else -step) * np.arange(count, dtype=np.float64)
    if abs(stepped[-1] - last) > step / 100:
        stepped = np.linspace(first, last, count)
    return np.asarray(stepped, dtype=np.float64)
