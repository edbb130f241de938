"""Coordinates of a variable by CF: axes, grid and grid mapping."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.field import GridMapping
from wdm_runtime.grid import Grid
from wdm_runtime.io.dataset import Dataset, Variable, check_fits

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
_SEPARABLE_WITHIN = 1e-3  # of a cell: what float32 rounding leaves of a repeated row or column


@dataclass(frozen=True)
class Axis:
    """A dimension that is time, y or x, and its coordinate if there is one."""

    kind: str
    dimension: str
    size: int
    coordinate: Variable | None

    @property
    def rank(self) -> tuple[bool, int]:
        """Valid time before reference time, then the longer one."""
        is_time = self.coordinate is not None and self.coordinate.text("standard_name") == "time"
        return is_time, self.size


def find_axes(dataset: Dataset, variable: Variable) -> dict[str, Axis]:
    """The variable's axes "t" (if it has one), "y" and "x"; all other dimensions have length 1.

    Raises
    ------
    InputError
        No regular y and x, another dimension that is longer, or one that is empty.
    """
    sizes = dict(zip(variable.dimensions, variable.shape, strict=True))
    axes = [_axis(dataset, variable, d, n) for d, n in sizes.items()]
    found: dict[str, Axis] = {}
    for kind in "tyx":
        of_kind = [axis for axis in axes if axis.kind == kind]
        if of_kind:
            found[kind] = max(of_kind, key=lambda axis: axis.rank)
    for kind in "yx":
        if kind not in found or found[kind].coordinate is None:
            found[kind] = _from_plane(dataset, variable, kind)
    kept = {axis.dimension for axis in found.values()}
    for dimension, size in sizes.items():
        if size != 1 and dimension not in kept:
            raise InputError(
                f"{dataset.label}: variable '{variable.path}' has {size} entries along "
                f"'{dimension}'; expected one besides (time, y, x). Extract one of them first."
            )
        if size == 0:
            raise InputError(
                f"{dataset.label}: variable '{variable.path}' has no entry along '{dimension}'; "
                "expected at least one. Hand in another file."
            )
    return found


def _axis(dataset: Dataset, variable: Variable, dimension: str, size: int) -> Axis:
    along = [
        candidate
        for candidate in dataset.scope(variable)
        if candidate.dimensions == (dimension,)
        and candidate.size == size
        and (candidate.name == dimension or _kind(candidate))
    ]
    if not along:
        return Axis(named_kind(dimension), dimension, size, None)
    best = max(along, key=lambda c: (c.text("standard_name") == "time", c.name == dimension))
    return Axis(_kind(best), dimension, size, best)


def _kind(coordinate: Variable) -> str:
    axis = coordinate.text("axis").casefold()
    if axis in ("t", "y", "x", "z"):
        return axis
    standard_name = coordinate.text("standard_name")
    if standard_name in _STANDARD_AXES:
        return _STANDARD_AXES[standard_name]
    units = coordinate.text("units").casefold()
    degrees = _DEGREES.fullmatch(units)
    if degrees:
        return {"n": "y", "e": "x"}[degrees[1]]
    return "t" if " since " in units else named_kind(coordinate.name)


def named_kind(name: str) -> str:
    """The axis that a variable or dimension is by its name alone: "t", "y", "x", or ""."""
    return _NAMED_AXES.get(name.casefold(), "")


def _from_plane(dataset: Dataset, variable: Variable, kind: str) -> Axis:
    """An axis from a two-dimensional coordinate that only repeats a one-dimensional one."""
    curved = []
    for plane in dataset.scope(variable):
        if (
            len(plane.dimensions) == 2
            and set(plane.dimensions) <= set(variable.dimensions)
            and _kind(plane) == kind
        ):
            check_fits(dataset.label, plane, plane.size)
            line = _line(plane)
            if line is not None:
                return Axis(kind, line.dimensions[0], line.size, line)
            curved.append(plane.name)
    reason = f" ('{curved[0]}' varies along both of its dimensions)" if curved else ""
    raise InputError(
        f"{dataset.label}: variable '{variable.path}' has dimensions "
        f"({', '.join(variable.dimensions)}) without a one-dimensional coordinate along {kind}"
        f"{reason}; expected a regular grid with coordinates. Regrid it first, or choose another "
        "with --variable."
    )


def _line(plane: Variable) -> Variable | None:
    values = plane.decoded()
    for along in (0, 1):
        first = values.take([0], axis=1 - along)
        step = np.median(np.abs(np.diff(first.ravel()))) if first.size > 1 else 0.0
        if step > 0 and np.abs(values - first).max() <= _SEPARABLE_WITHIN * step:  # NaN: False

            def read(index: Any, along: int = along) -> npt.NDArray[Any]:
                whole = plane.raw((slice(None), 0) if along == 0 else (0, slice(None)))
                return np.asarray(whole[index])

            dimension, size = plane.dimensions[along], plane.shape[along]
            return replace(plane, dimensions=(dimension,), shape=(size,), read=read)
    return None


def grid_of(dataset: Dataset, axes: dict[str, Axis]) -> Grid:
    """The grid of y and x, as read except that longitudes do not jump at the dateline.

    Raises
    ------
    InputError
        The coordinates are not evenly spaced, or lie beyond a pole.
    """
    coordinates = [axes[kind].coordinate for kind in "yx"]
    y, x = (coordinate for coordinate in coordinates if coordinate is not None)
    names, attributes = (y.name, x.name), (meaning(y), meaning(x))
    return Grid.of_file(dataset.label, y.decoded(), _unwrapped(x), names, attributes)


def _unwrapped(x: Variable) -> npt.NDArray[np.float64]:
    """179.95, -179.95 -> 179.95, 180.05: whole turns added after the first cell, if any."""
    values = x.decoded()
    units = x.text("units").casefold() or x.name.casefold()
    if not units.startswith(("degree", "lon")) or not np.isfinite(values).all():
        return values
    turns = np.cumsum(np.round(np.diff(values) / 360))
    values[1:] -= 360 * turns
    return values


def meaning(variable: Variable) -> dict[str, Any]:
    """The attributes that stay true of a finer grid and of other numbers."""
    return {
        name: value
        for name, value in variable.attributes.items()
        if not _STORAGE_ATTRIBUTES.fullmatch(name)
    }


def grid_mapping_of(dataset: Dataset, variable: Variable) -> GridMapping | None:
    """The grid mapping the variable names, None if it names none or it is not there."""
    words = variable.text("grid_mapping").split()  # "crs", "/crs" or "crs: x y"
    mapping = dataset.named(words[0], variable) if words else None
    return GridMapping(mapping.name, meaning(mapping)) if mapping else None
