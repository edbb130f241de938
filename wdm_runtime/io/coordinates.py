"""Coordinates of a NetCDF variable by CF: axes, grid, grid mapping and valid times.

Callers hold the library's lock: see `wdm_runtime.io.netcdf`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np

from wdm_runtime.errors import InputError
from wdm_runtime.field import GridMapping, TimeAxis
from wdm_runtime.grid import Grid

# What describes the stored numbers and not their meaning: untrue of the finer grid.
_STORAGE_ATTRIBUTES = re.compile(
    "_.*|missing_value|scale_factor|add_offset|valid_(range|min|max)|actual_range|bounds|CLASS|NAME"
    "|(DIMENSION|REFERENCE)_LIST|DimensionNames"
)
_STANDARD_AXES = {
    "time": "t",
    **dict.fromkeys(("latitude", "projection_y_coordinate", "grid_latitude"), "y"),
    **dict.fromkeys(("longitude", "projection_x_coordinate", "grid_longitude"), "x"),
}
_NAMED_AXES = {
    **dict.fromkeys(("time", "t", "times", "valid_time", "datetime"), "t"),
    **dict.fromkeys(
        ("y", "yc", "lat", "lats", "latitude", "nlat", "rlat", "north", "northing"), "y"
    ),
    **dict.fromkeys(
        ("x", "xc", "lon", "lons", "longitude", "nlon", "rlon", "east", "easting"), "x"
    ),
}
_DEGREES = re.compile(r"degrees?_?(n|e)(orth|ast)?")


@dataclass(frozen=True)
class Axis:
    kind: str
    dimension: str
    size: int
    coordinate: netCDF4.Variable[Any] | None

    @property
    def rank(self) -> tuple[bool, int]:
        """Valid time before reference time, then the longer one."""
        return text_of(self.coordinate, "standard_name") == "time", self.size


def text_of(variable: netCDF4.Variable[Any] | None, attribute: str) -> str:
    return str(getattr(variable, attribute, "")).strip()


def scope_of(variable: netCDF4.Variable[Any]) -> Iterator[netCDF4.Dataset]:
    """The variable's group and its parents, where CF looks names up."""
    group: netCDF4.Dataset | None = variable.group()
    while group is not None:
        yield group
        group = group.parent


def find_axes(path: Path, name: str, variable: netCDF4.Variable[Any]) -> dict[str, Axis]:
    axes = [_axis(variable, d, n) for d, n in zip(variable.dimensions, variable.shape, strict=True)]
    found: dict[str, Axis] = {}
    for kind in "tyx":
        of_kind = [axis for axis in axes if axis.kind == kind]
        if of_kind:
            found[kind] = max(of_kind, key=lambda axis: axis.rank)
    for kind in "yx":
        if kind not in found or found[kind].coordinate is None:
            raise InputError(
                f"{path}: variable '{name}' has dimensions ({', '.join(variable.dimensions)}) "
                f"without a one-dimensional coordinate along {kind}; expected a regular grid with "
                "coordinates. Regrid it first, or choose another with --variable."
            )
    for axis in axes:
        if axis.size != 1 and axis not in found.values():
            raise InputError(
                f"{path}: variable '{name}' has {axis.size} entries along '{axis.dimension}'; "
                "expected one besides (time, y, x). Extract one of them first."
            )
        if axis.size == 0:
            raise InputError(
                f"{path}: variable '{name}' has no entry along '{axis.dimension}'; expected at "
                "least one. Hand in another file."
            )
    return found


def _axis(variable: netCDF4.Variable[Any], dimension: str, size: int) -> Axis:
    along = [
        candidate
        for group in scope_of(variable)
        for candidate in group.variables.values()
        if candidate.dimensions == (dimension,)
        and candidate.size == size
        and (candidate.name == dimension or _kind(candidate))
    ]
    if not along:
        return Axis(_NAMED_AXES.get(dimension.casefold(), ""), dimension, size, None)
    best = max(along, key=lambda c: (text_of(c, "standard_name") == "time", c.name == dimension))
    return Axis(_kind(best), dimension, size, best)


def _kind(coordinate: netCDF4.Variable[Any]) -> str:
    axis = text_of(coordinate, "axis").casefold()
    if axis in ("t", "y", "x", "z"):
        return axis
    standard_name = text_of(coordinate, "standard_name")
    if standard_name in _STANDARD_AXES:
        return _STANDARD_AXES[standard_name]
    units = text_of(coordinate, "units").casefold()
    degrees = _DEGREES.fullmatch(units)
    if degrees:
        return {"n": "y", "e": "x"}[degrees[1]]
    return "t" if " since " in units else _NAMED_AXES.get(coordinate.name.casefold(), "")


def grid_of(axes: dict[str, Axis]) -> Grid:
    values, names, attributes = [], [], []
    for kind in "yx":
        coordinate = axes[kind].coordinate
        assert coordinate is not None  # find_axes saw to it
        values.append(np.ma.filled(coordinate[:].astype(np.float64), np.nan))
        names.append(coordinate.name)
        attributes.append(_meaning(coordinate))
    return Grid(values[0], values[1], (names[0], names[1]), (attributes[0], attributes[1]))


def _meaning(variable: netCDF4.Variable[Any]) -> dict[str, Any]:
    names = [name for name in variable.ncattrs() if not _STORAGE_ATTRIBUTES.fullmatch(name)]
    return {name: variable.getncattr(name) for name in names}


def grid_mapping_of(variable: netCDF4.Variable[Any]) -> GridMapping | None:
    words = text_of(variable, "grid_mapping").split()
    if not words:
        return None
    name = words[0].rstrip(":").rpartition("/")[2]  # "crs", "/crs" or "crs: x y"
    for group in scope_of(variable):
        if name in group.variables:
            return GridMapping(name, _meaning(group.variables[name]))
    return None


def valid_times_of(
    path: Path, variable: netCDF4.Variable[Any], axis: Axis | None
) -> tuple[tuple[str, ...], TimeAxis | None]:
    coordinate = axis.coordinate if axis else _scalar_time(variable)
    if coordinate is None:
        return tuple(f"none-{index}" for index in range(axis.size if axis else 1)), None
    name, units = coordinate.name, text_of(coordinate, "units")
    calendar = text_of(coordinate, "calendar").casefold() or "standard"
    values = np.ma.atleast_1d(coordinate[...])
    try:
        if np.ma.is_masked(values) or not np.isfinite(values).all():
            raise ValueError("some times are missing")
        dates: Any = netCDF4.num2date(np.ma.getdata(values), units, calendar)
    except (ValueError, OverflowError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: coordinate '{name}' has units '{units}' in calendar '{calendar}', which "
            f"cannot be decoded ({error}); expected '<unit> since <date>'. Correct its attributes."
        ) from error
    # Whole seconds: days as floats miss them by microseconds, and the text addresses the noise.
    half = timedelta(milliseconds=500)
    texts = tuple((date + half).isoformat(timespec="seconds") for date in dates)
    return texts, TimeAxis(name, units, calendar, np.ma.getdata(values).copy())


def _scalar_time(variable: netCDF4.Variable[Any]) -> netCDF4.Variable[Any] | None:
    scalars = [v for g in scope_of(variable) for v in g.variables.values() if v.size == 1]
    for scalar in scalars:
        if text_of(scalar, "standard_name") == "time":
            return scalar
    for scalar in scalars:
        if not text_of(scalar, "standard_name") and _NAMED_AXES.get(scalar.name.casefold()) == "t":
            return scalar
    return None
