"""What a GRIB2 message says of its field: period, time and grid."""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError, require
from wdm_runtime.grid import Grid
from wdm_runtime.io.dataset import Variable, check_fits
from wdm_runtime.io.grib_products import Get, Product

_UNIT_HOURS = {0: 1 / 60, 1: 1.0, 2: 24.0, 10: 3.0, 11: 6.0, 12: 12.0, 13: 1 / 3600}  # table 4.4
_CLOCK = ("year", "month", "day", "hour", "minute", "second")


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

    product: Product
    span_h: float | None  # of a sum or a mean, None for an instant
    range_length: int | None  # the same as the message has it, in its own unit of time
    end: datetime
    member: int | None
    rows: int
    columns: int
    corners: tuple[float, float, float, float]  # first and last latitude, first and last longitude
    steps: tuple[float, float]  # along y and x, 0 where not given
    level: tuple[str, int | None]  # kind and height
    reference: tuple[int, int]  # date and time that the period's or forecast's length counts from
    number: int = field(compare=False)  # of the message in its file, from 1

    @property
    def period_h(self) -> float | None:
        """The period an amount is summed over [h]; None for rates, means among them."""
        return None if self.product.averaged else self.span_h

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


def header_of(path: Path, get: Get, product: Product, number: int) -> Header:
    """What a message's keys say of its period, time, member and grid.

    Raises
    ------
    InputError
        The grid is no regular one of latitudes and longitudes, or sizes, period or time cannot be
        had.
    """
    name = product.name
    _require_plain_grid(path, name, get)
    rows, columns = _sizes(path, name, get)
    of_instant = product.statistic is None
    fixed_h = product.period_h
    corners = tuple(
        float(get(f"{axis}Of{which}GridPointInDegrees"))
        for axis in ("latitude", "longitude")
        for which in ("First", "Last")
    )
    return Header(
        product=product,
        span_h=fixed_h if fixed_h or of_instant else _span_h(path, product, get, number),
        range_length=get("lengthOfTimeRange"),
        end=_valid_time(path, name, get, of_instant),
        member=get("perturbationNumber"),
        rows=rows,
        columns=columns,
        corners=(corners[0], corners[1], corners[2], corners[3]),
        steps=(
            float(get("jDirectionIncrementInDegrees") or 0),
            float(get("iDirectionIncrementInDegrees") or 0),
        ),
        level=(str(get("typeOfLevel")), get("level")),
        reference=(get("dataDate"), get("dataTime")),
        number=number,
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


def _span_h(path: Path, product: Product, get: Get, number: int) -> float:
    ranges, unit = get("numberOfTimeRanges"), get("indicatorOfUnitForTimeRange")
    length, done = get("lengthOfTimeRange"), "averaged" if product.averaged else "summed"
    span_h = _UNIT_HOURS.get(unit, 0.0) * length
    if ranges == 1 and length == 0:
        step = get("stepRange")
        raise InputError(
            f"{path}: message {number}, '{product.name}' of step range {step}, is {done} over no "
            "time, as at a forecast's beginning, which holds no rain yet; expected at least a "
            f"second. Leave it out first (grib_copy -w 'stepRange!={step}' FILE OUT.grib2)."
        )
    if ranges != 1 or span_h <= 0:
        raise InputError(
            f"{path}: message {number}, '{product.name}', is {done} over {ranges} ranges of "
            f"{length} in time unit {unit}; expected one range of at least a second. Hand in "
            "another file."
        )
    return float(span_h)


def _valid_time(path: Path, name: str, get: Get, of_instant: bool) -> datetime:
    """The end of the period; of an instant the reference time and the forecast's length."""
    suffix = "" if of_instant else "OfEndOfOverallTimeInterval"
    clock = tuple(get(f"{part}{suffix}") for part in _CLOCK)
    ahead_h = _forecast_h(path, name, get) if of_instant else 0.0
    try:
        return datetime(*clock) + timedelta(hours=ahead_h)
    except (ValueError, OverflowError, TypeError) as error:
        date, time = ("-".join(map(str, clock[:3])), ":".join(map(str, clock[3:])))
        raise InputError(
            f"{path}: '{name}' has the time {date} {time} and {ahead_h:g} h after it, which is "
            f"none ({error}); expected a date and time of the calendar. Fetch the file again."
        ) from error


def _forecast_h(path: Path, name: str, get: Get) -> float:
    length, unit = get("forecastTime") or 0, get("indicatorOfUnitOfTimeRange")
    if length and unit not in _UNIT_HOURS:  # months and years have no length either
        raise InputError(
            f"{path}: '{name}' is forecast {length} ahead in time unit {unit}; expected a unit "
            "from seconds to days (table 4.4). Correct it, for hours with "
            "grib_set -s indicatorOfUnitOfTimeRange=1 FILE OUT.grib2."
        )
    return float(length * _UNIT_HOURS.get(unit, 0.0))


def _axis(first: float, last: float, step: float, count: int) -> npt.NDArray[np.float64]:
    """Even centres: by the header's step, unless its rounding adds up to miss the last cell."""
    stepped = first + (step if last >= first else -step) * np.arange(count, dtype=np.float64)
    if abs(stepped[-1] - last) > step / 100:
        stepped = np.linspace(first, last, count)
    return np.asarray(stepped, dtype=np.float64)
