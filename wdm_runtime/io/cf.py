"""What an output says of itself by CF-1.11 and ACDD-1.3: names, units, cell methods, coverage."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import netCDF4
import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField, Source, TimeAxis
from wdm_runtime.grid import Grid
from wdm_runtime.io.dates import to_the_second
from wdm_runtime.io.units import amount_factor, to_mm_h

CONVENTIONS = "CF-1.11, ACDD-1.3"

_EPOCH = "seconds since 1970-01-01T00:00:00"
_TIME_METHOD = re.compile(r"(\w+)\s*:\s*(mean|point|sum)\b\s*(\([^)]*\))?")
_AXES = {
    "degrees": ("latitude", "longitude"),
    "metres": ("projection_y_coordinate", "projection_x_coordinate"),
}


@dataclass(frozen=True)
class Quantity:
    """The units of an output's numbers: a rate, or an amount over ``period_h`` hours."""

    units: str
    period_h: float | None

    @property
    def mm_h(self) -> float:
        """What to multiply the numbers by to get mm h-1."""
        return to_mm_h(self.units, self.period_h)

    @property
    def noun(self) -> str:
        """In words."""
        return "precipitation rate" if self.period_h is None else "precipitation amount"

    def standard_name(self, source: str) -> str:
        """The source's standard name if these units are its own, else its counterpart."""
        mass, amount = "kg" in self.units.casefold(), self.period_h is not None
        if _has_units(source, mass, amount):
            return source
        water = "rainfall" if "rainfall" in source else "precipitation"
        liquid = "" if water == "rainfall" else "lwe_"
        if mass:
            return f"{water}_amount" if amount else f"{water}_flux"
        return f"{liquid}thickness_of_{water}_amount" if amount else f"{liquid}{water}_rate"


def _has_units(standard_name: str, mass: bool, amount: bool) -> bool:
    """CF calls mass per area and time a flux, depth per time a rate, depths thicknesses."""
    if amount:
        return standard_name.endswith("_amount") and ("thickness_of" in standard_name) != mass
    return standard_name.endswith("_flux" if mass else "_rate")


def output_quantity(source: Source, units: str | None) -> Quantity:
    """The input's units, or others that were asked for.

    Raises
    ------
    InputError
        The units are not those of precipitation, or of an amount while no period is known.
    """
    text = source.units if units is None else units
    quantity = Quantity(text, None if amount_factor(text) is None else source.period_h)
    try:
        to_mm_h(quantity.units, quantity.period_h)
    except InputError as error:
        raise InputError(f"--units cannot be had for this output: {error}") from error
    return quantity


def output_time(field: PrecipField) -> TimeAxis | None:
    """The time coordinate as read, or made from the valid times if the source only has those.

    Raises
    ------
    InputError
        A valid time is none.
    """
    time = field.source.time
    if time is not None or any(text.startswith("none-") for text in field.valid_times):
        return time
    seconds = [round(_utc_moment(text).timestamp()) for text in field.valid_times]
    return TimeAxis("time", _EPOCH, "standard", np.array(seconds, dtype=np.int64))


def _utc_moment(valid_time: str) -> datetime:
    try:
        return datetime.fromisoformat(valid_time).replace(tzinfo=timezone.utc)
    except ValueError as error:
        raise InputError(
            f"The field has the valid time '{valid_time}'; expected a date of the Gregorian "
            "calendar, as its source tells no other. Correct the field's valid_times."
        ) from error


def cell_methods(source: Source, quantity: Quantity, time: TimeAxis | None) -> str:
    """Of every member: means over the cell, and what the input says of time."""
    if time is None:
        return "area: mean"
    method, note = time_method(source, time)
    if quantity.period_h is not None:
        if time.bounds is None:  # nothing else in the file says how long
            note = period_note(quantity.period_h)
        method = "sum"
    elif source.period_h is not None:
        method, note = "mean", ""  # of the amount's period
    elif method == "sum":
        method = ""  # a rate is none, whatever the input says
    return " ".join(["area: mean", *([f"{time.name}: {method}"] if method else []), note]).strip()


def time_method(source: Source, time: TimeAxis) -> tuple[str, str]:
    """``mean``, ``point`` or ``sum`` and a note in brackets, as ``cell_methods`` say; "" if not."""
    found = {
        name: (method, note or "")
        for name, method, note in _TIME_METHOD.findall(source.cell_methods)
    }
    return found.get(time.name) or found.get("time") or ("", "")


def period_note(period_h: float) -> str:
    """What an output's ``cell_methods`` say of its amounts where it has no time bounds."""
    return f"(interval: {period_h:g} hours comment: accumulation period)"


def axis_attributes(grid: Grid, axis: int) -> dict[str, Any]:
    """Attributes of y (0) or x (1): the file's, and what CF wants that it did not say."""
    said = grid.attributes[axis]
    known: dict[str, Any] = {"axis": "YX"[axis]}
    if "standard_name" not in said and "units" in said:  # without units, maybe no projection
        known["standard_name"] = _AXES["degrees" if grid.is_latlon else "metres"][axis]
    name = said.get("standard_name") or known.get("standard_name") or grid.names[axis]
    return known | {"long_name": str(name).replace("_", " ")} | said


def is_geographic(grid: Grid) -> bool:
    """Whether the axes are true latitude and longitude, not those of a rotated pole."""
    names = (axis_attributes(grid, axis).get("standard_name") for axis in (0, 1))
    return grid.is_latlon and tuple(names) == _AXES["degrees"]


def cell_bounds(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, 2) edges in the coordinate's own direction: a descending one has descending bounds."""
    half = (centres[-1] - centres[0]) / (centres.size - 1) / 2
    inner = (centres[:-1] + centres[1:]) / 2
    edges = np.concatenate(([centres[0] - half], inner, [centres[-1] + half]))
    return np.stack((edges[:-1], edges[1:]), axis=1)


def discovery_attributes(
    grid: Grid, time: TimeAxis | None, quantity: Quantity, members: int
) -> dict[str, Any]:
    """ACDD's attributes as far as they follow from the output's coordinates."""
    count = "1 member" if members == 1 else f"{members} members"
    return {
        "Conventions": CONVENTIONS,
        "title": "Downscaled precipitation ensemble",
        "summary": (
            f"Ensemble of {count} of fine-scale {quantity.noun}, drawn by a wavelet diffusion "
            "model given a coarse precipitation field. Members differ where the coarse field "
            "leaves the answer open."
        ),
        "keywords": (
            "EARTH SCIENCE > ATMOSPHERE > PRECIPITATION > PRECIPITATION RATE, downscaling, "
            "ensemble, diffusion model"
        ),
        "keywords_vocabulary": "GCMD Science Keywords",
        "standard_name_vocabulary": "CF Standard Names",
        "project": "WDM Edge",
        "source": "WDM Edge, wavelet diffusion model",
        "processing_level": "downscaled",
        "cdm_data_type": "Grid",
        "license": "The terms of use of the coarse input and of the model apply",
        **_coverage_in_space(grid),
        **_coverage_in_time(time),
    }


def _coverage_in_space(grid: Grid) -> dict[str, Any]:
    if not is_geographic(grid):
        return {}
    covered: dict[str, Any] = {}
    for name, centres, units in (
        ("lat", grid.y, "degrees_north"),
        ("lon", grid.x, "degrees_east"),
    ):
        edges = cell_bounds(centres)
        covered |= {
            f"geospatial_{name}_min": round(float(edges.min()), 9),
            f"geospatial_{name}_max": round(float(edges.max()), 9),
            f"geospatial_{name}_units": units,
            f"geospatial_{name}_resolution": round(float(abs(edges[0, 1] - edges[0, 0])), 9),
        }
    return covered


def _coverage_in_time(time: TimeAxis | None) -> dict[str, Any]:
    if time is None:
        return {}
    numbers = time.values if time.bounds is None else time.bounds
    ends = np.array([numbers.min(), numbers.max()])
    dates: Any = netCDF4.num2date(ends, time.units, time.calendar)
    start, end = dates
    covered = {
        "time_coverage_start": to_the_second(start) + "Z",
        "time_coverage_end": to_the_second(end) + "Z",
        "time_coverage_duration": _duration(end - start),
    }
    steps = np.unique(np.diff(time.values))
    if steps.size == 1 and steps[0] > 0:
        dates = netCDF4.num2date(time.values[:2], time.units, time.calendar)
        covered["time_coverage_resolution"] = _duration(dates[1] - dates[0])
    return covered


def _duration(span: timedelta) -> str:
    """ISO 8601."""
    seconds = round(span.total_seconds())
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    parts = [(hours, "H"), (minutes, "M"), (seconds % 60, "S")]
    return "PT" + ("".join(f"{number}{unit}" for number, unit in parts if number) or "0S")


def identity(attributes: dict[str, Any]) -> str:
    """An id that the same request always gets."""
    text = json.dumps({name: str(value) for name, value in attributes.items()}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def written_now() -> dict[str, str]:
    """The only attributes that tell two writings of the same output apart."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"date_created": now, "history": f"{now} wdm-run"}


def plain(value: Any) -> str | int | float:
    """A global attribute as text or number; booleans become ``"true"`` and ``"false"``."""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    if isinstance(value, (int, np.integer)) and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    # A file name that is no UTF-8 must not fail an otherwise finished output.
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
