"""GRIB2 in the making: one ensemble message a (time, member), on regular latitude-longitude grids.

The parameter is WMO's total precipitation rate, 0/1/52 [kg m-2 s-1], with product template 1; with
template 11 its mean over a period, where the input's rates are means or amounts; and amounts
themselves [kg m-2].
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import OutputError
from wdm_runtime.field import PrecipField, TimeAxis
from wdm_runtime.grid import Grid
from wdm_runtime.io.cf import is_geographic, output_time, time_method
from wdm_runtime.io.dates import to_the_second
from wdm_runtime.io.grib_header import load_eccodes
from wdm_runtime.io.grib_products import ACCUMULATION, AVERAGE
from wdm_runtime.io.layout import Layout
from wdm_runtime.io.units import to_mm_h
from wdm_runtime.statistics import StatisticsBlock, StatisticsSpec

_MOST_MEMBERS = 254  # one octet, 255 is missing
_MISSING = 1e20  # stands for it until ecCodes makes a bitmap
# 2^24 steps over the field's range, doubled at most by the binary scale: 1e-4 mm/h up to 838 mm/h.
_BITS_PER_VALUE = 24
_CIVIL_CALENDARS = frozenset({"standard", "gregorian", "proleptic_gregorian"})
_POLE = 90 + 1e-6  # degrees, as fine as GRIB2 tells them
_ANOTHER_FORMAT = "Write NetCDF (.nc) or Zarr (.zarr) instead."


def check_grib(
    path: Path, field: PrecipField, factor: int, members: int, statistics: StatisticsSpec | None
) -> None:
    """Refuse what GRIB2 cannot hold, before any work is done for it.

    Raises
    ------
    OutputError
        Statistics; a projected grid; a row of cells around a pole, whose finer cells reach beyond
        it; no times or a model's calendar; too many members.
    """
    time = output_time(field)
    refused = None
    if statistics is not None:
        raise _no_statistics(path)
    if not is_geographic(field.grid):
        refused = "a projected grid", "regular latitude and longitude"
    elif time is None:
        refused = "fields without valid times", "known ones"
    elif not _is_civil(time):
        refused = f"times in calendar '{time.calendar}'", "the standard calendar"
    elif members > _MOST_MEMBERS:
        refused = f"{members} members", f"at most {_MOST_MEMBERS}"
    if refused:
        raise OutputError(
            f"{path}: got {refused[0]}; expected {refused[1]} in GRIB2. {_ANOTHER_FORMAT}"
        )
    _require_no_row_at_a_pole(path, field.grid, factor)


def _is_civil(time: TimeAxis) -> bool:
    """Whether its dates are the standard calendar's, as IMERG's are, which says Julian."""
    calendar = time.calendar.casefold()
    if calendar != "julian":
        return calendar in _CIVIL_CALENDARS
    julian: Any = netCDF4.num2date(time.values, time.units, calendar)
    civil: Any = netCDF4.num2date(time.values, time.units, "standard")
    return all(a.timetuple()[:6] == b.timetuple()[:6] for a, b in zip(julian, civil, strict=True))


def _require_no_row_at_a_pole(path: Path, grid: Grid, factor: int) -> None:
    beyond = np.abs(grid.refined(factor).y).max()
    if beyond <= _POLE:
        return
    # --bbox takes blocks of cells, so a pole's row would come along with its neighbours.
    raise OutputError(
        f"{path}: got fine cells at latitudes up to {beyond:g}, on the far side of a pole; "
        "expected up to 90 in GRIB2. Leave out the rows next to the pole with --bbox, up to "
        f"{90 - 2 * grid.spacing[0]:g} degrees or, where it snaps to more cells, less, or "
        "write NetCDF (.nc) or Zarr (.zarr) instead."
    )


def _no_statistics(path: Path) -> OutputError:
    return OutputError(
        f"{path}: got statistics; expected members alone in GRIB2. {_ANOTHER_FORMAT}"
    )


class GribOutput:
    """A file of messages, in the order in which frames come.

    Parameters
    ----------
    temporary
        The file to begin.
    layout, field
        Of a field that `check_grib` let pass.

    Raises
    ------
    MissingDependencyError
        Without the extra ``grib``.
    """

    def __init__(self, temporary: Path, layout: Layout, field: PrecipField) -> None:
        self._eccodes = load_eccodes("Writing GRIB2")
        period_h = layout.quantity.period_h
        self._spans = _spans(field)
        # kg m-2 of water are mm
        self._mm_h = to_mm_h("kg m-2 s-1" if period_h is None else "kg m-2", period_h)
        mean = AVERAGE if _are_means(field) else None
        statistic = mean if period_h is None else ACCUMULATION
        self._keys = {
            **_product_keys(statistic),
            **_grid_keys(layout.grid),
            "numberOfForecastsInEnsemble": layout.dimensions["realization"],
            "packingType": "grid_ccsds",  # as simple packing, but dry areas take no room
        }
        self._path = temporary
        self._file = temporary.open("xb")

    def write(self, time_index: int, member: int, rate_mm_h: npt.NDArray[np.floating]) -> None:
        """Append one message."""
        codes = self._eccodes
        values = np.asarray(rate_mm_h, dtype=np.float64).ravel() / self._mm_h
        missing = np.isnan(values)
        values[missing] = _MISSING
        handle = codes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
        try:
            for key, value in (self._keys | self._time_keys(time_index)).items():
                codes.codes_set(handle, key, value)
            codes.codes_set(handle, "perturbationNumber", member)
            codes.codes_set(handle, "missingValue", _MISSING)
            codes.codes_set(handle, "bitmapPresent", int(missing.any()))
            codes.codes_set(handle, "bitsPerValue", _BITS_PER_VALUE)
            codes.codes_set_values(handle, values)
            codes.codes_write(handle, self._file)
        except codes.CodesInternalError as error:
            raise OSError(f"ecCodes: {error}") from error
        finally:
            codes.codes_release(handle)

    def write_statistics(self, time_index: int, block: StatisticsBlock) -> None:
        """Refuse them."""
        raise _no_statistics(self._path)

    def finish(self, attributes: dict[str, Any]) -> None:
        """Close; GRIB2 has no place for attributes."""
        self._file.close()

    def abandon(self) -> None:
        """Close; a second failure must not hide the first."""
        with suppress(OSError):
            self._file.close()

    def _time_keys(self, time_index: int) -> dict[str, int]:
        start, end = self._spans[time_index]
        keys = {"dataDate": int(f"{start:%Y%m%d}"), **_clock("", start)}
        if end > start:
            of_end = "OfEndOfOverallTimeInterval"
            keys |= {f"{name}{of_end}": getattr(end, name) for name in ("year", "month", "day")}
            keys |= {
                **_clock(of_end, end),
                "lengthOfTimeRange": round((end - start).total_seconds()),
            }
        return keys


def _are_means(field: PrecipField) -> bool:
    """Whether rates are means over periods that are known."""
    time = output_time(field)
    if field.source.period_h is not None:
        return True
    if time is None or time.bounds is None or time_method(field.source, time)[0] != "mean":
        return False
    return bool((time.bounds[:, 1] > time.bounds[:, 0]).all())


def _spans(field: PrecipField) -> list[tuple[datetime, datetime]]:
    """Start and end of what each frame is of: an instant's are its valid time."""
    time, period_h = output_time(field), field.source.period_h
    ends = starts = [datetime.fromisoformat(text) for text in field.valid_times]
    if time is not None and time.bounds is not None and _are_means(field):
        starts, ends = (_dates(time.bounds[:, edge], time) for edge in (0, 1))
    if period_h is not None:
        starts = [end - timedelta(hours=period_h) for end in ends]
    return list(zip(starts, ends, strict=True))


def _dates(values: npt.NDArray[Any], time: TimeAxis) -> list[datetime]:
    dates: Any = netCDF4.num2date(values, time.units, time.calendar)
    return [datetime.fromisoformat(to_the_second(date)) for date in dates]


def _clock(suffix: str, moment: datetime) -> dict[str, int]:
    return {f"{name}{suffix}": getattr(moment, name) for name in ("hour", "minute", "second")}


def _product_keys(statistic: int | None) -> dict[str, int]:
    keys = {
        "tablesVersion": 28,
        "centre": 255,  # none: the file's maker is not a meteorological centre
        "significanceOfReferenceTime": 3,  # of an observation
        "productionStatusOfProcessedData": 255,
        "typeOfProcessedData": 5,  # control and perturbed forecasts
        "discipline": 0,
        "productDefinitionTemplateNumber": 1 if statistic is None else 11,
        "parameterCategory": 1,
        "parameterNumber": 52,
        "typeOfGeneratingProcess": 4,  # ensemble
        "typeOfFirstFixedSurface": 1,  # ground
        "typeOfEnsembleForecast": 3,  # positively perturbed: a member like any other
        "forecastTime": 0,
    }
    if statistic is not None:
        keys |= {
            "typeOfStatisticalProcessing": statistic,
            "typeOfTimeIncrement": 2,
            "indicatorOfUnitForTimeRange": 13,  # seconds
        }
    return keys


def _grid_keys(grid: Grid) -> dict[str, int | float]:
    """The grid's corners and steps; longitudes from 0 to 360 as WMO asks."""
    rows, columns = grid.shape
    east = grid.x % 360
    return {
        "Ni": columns,
        "Nj": rows,
        "latitudeOfFirstGridPointInDegrees": float(grid.y[0]),
        "latitudeOfLastGridPointInDegrees": float(grid.y[-1]),
        "longitudeOfFirstGridPointInDegrees": float(east[0]),
        "longitudeOfLastGridPointInDegrees": float(east[-1]),
        "iDirectionIncrementInDegrees": abs(float(grid.x[-1] - grid.x[0])) / (columns - 1),
        "jDirectionIncrementInDegrees": abs(float(grid.y[-1] - grid.y[0])) / (rows - 1),
        "iScansNegatively": int(grid.x[-1] < grid.x[0]),
        "jScansPositively": int(grid.y[-1] > grid.y[0]),
    }
