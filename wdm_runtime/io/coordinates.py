"""Coordinates of a variable by CF: axes, grid and grid mapping."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.field import GridMapping
from wdm_runtime.grid import Grid, are_degrees
from wdm_runtime.io.dataset import Dataset, Variable, check_fits

# What describes the stored numbers and not their meaning: untrue of the finer grid.
_STORAGE_ATTRIBUTES = re.compile(
    "_.*|missing_value|scale_factor|add_offset|valid_(range|min|max)|actual_range|bounds|CLASS|NAME"
    "|(DIMENSION|REFERENCE)_LIST|DimensionNames|GeoTransform|gcps|rpcs"
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
_MAPPINGS = re.compile(r"(\S+):\s+((?:[^\s:]+(?:\s+|$))+)")  # "crs: x y wgs: lat lon"
_CENTRED_WITHIN = 0.01  # of a cell, as even spacings are
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
        axis = found.get(kind)
        if axis is None or axis.coordinate is None or not _has_units(axis.coordinate):
            found[kind] = _from_plane(dataset, variable, kind, axis)
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
    named = next((c for c in along if c.name == dimension), None)
    own = _kind(named) if named else named_kind(dimension)

    def rank(candidate: Variable) -> tuple[bool, bool, bool]:
        """Valid time; then what has units, as an index has none; then the dimension's own name."""
        is_same = own in ("", _kind(candidate))  # the latitude of a ship is none of its times
        is_time = candidate.text("standard_name") == "time"
        return is_time, is_same and _has_units(candidate), candidate.name == dimension

    best = max(along, key=rank)
    return Axis(_kind(best), dimension, size, best)


def _has_units(coordinate: Variable) -> bool:
    return coordinate.text("units") not in ("", "1")


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


def _from_plane(dataset: Dataset, variable: Variable, kind: str, index: Axis | None) -> Axis:
    """An axis from a two-dimensional coordinate that only repeats a one-dimensional one.

    WRF gives its coordinates for every time; they count as the first time's if none moves. Else the
    index, a coordinate without units, if there is one.
    """
    curved, moves = [], False
    for found in dataset.scope(variable):
        if _kind(found) != kind or not set(found.dimensions) <= set(variable.dimensions):
            continue
        plane = _of_first_time(found)
        if len(plane.dimensions) != 2:
            continue
        check_fits(dataset.label, plane, plane.size)
        line = _line(plane)
        if line is None:
            curved.append(f"'{plane.name}' varies along both of its dimensions")
        elif not _stays(found, plane):
            curved.append(f"'{plane.name}' varies along '{found.dimensions[0]}'")
            moves = True
        else:
            return Axis(kind, line.dimensions[0], line.size, line)
    if index is not None and index.coordinate is not None and not moves:
        return index
    reason = f" ({curved[0]})" if curved else ""
    raise InputError(
        f"{dataset.label}: variable '{variable.path}' has dimensions "
        f"({', '.join(variable.dimensions)}) without a one-dimensional coordinate along {kind}"
        f"{reason}; expected a regular grid with coordinates. Regrid it first, or choose another "
        "with --variable."
    )


def _of_first_time(coordinate: Variable) -> Variable:
    """A coordinate over (time, y, x) at its first time; any other as it is."""
    dimensions, shape = coordinate.dimensions, coordinate.shape
    if len(dimensions) != 3 or named_kind(dimensions[0]) != "t" or not shape[0]:
        return coordinate
    return replace(
        coordinate,
        dimensions=dimensions[1:],
        shape=shape[1:],
        read=lambda index: coordinate.read((0, *index)),
    )


def _stays(coordinate: Variable, first: Variable) -> bool:
    """Whether a coordinate is the same at all times, which a moving nest's is not."""
    if coordinate is first:
        return True
    here = first.raw()
    times = range(1, coordinate.shape[0])
    return all(np.array_equal(coordinate.raw((t, slice(None), slice(None))), here) for t in times)


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


def grid_of(dataset: Dataset, axes: dict[str, Axis], mapping: GridMapping | None) -> Grid:
    """The cells' centres along y and x; longitudes do not jump at the dateline.

    Raises
    ------
    InputError
        The coordinates are not evenly spaced, or lie beyond a pole.
    """
    y, x = (coordinate for kind in "yx" if (coordinate := axes[kind].coordinate))
    names, attributes = (y.name, x.name), (meaning(y), meaning(x))
    if _is_rotated(names, mapping):
        of_y, of_x = ({"standard_name": f"grid_{name}"} for name in ("latitude", "longitude"))
        attributes = of_y | attributes[0], of_x | attributes[1]
    centres = _centres(dataset, y, y.decoded()), _centres(dataset, x, _unwrapped(x))
    return Grid.of_file(dataset.label, *centres, names, attributes)


def _is_rotated(names: tuple[str, str], mapping: GridMapping | None) -> bool:
    """Whether degrees are those of a rotated pole."""
    named = mapping.attributes.get("grid_mapping_name") if mapping else None
    return named == "rotated_latitude_longitude" or names == ("rlat", "rlon")


def _unwrapped(x: Variable) -> npt.NDArray[np.float64]:
    """179.95, -179.95 -> 179.95, 180.05: whole turns added after the first cell, if any."""
    values = x.decoded()
    if np.isfinite(values).all():
        values[1:] -= np.cumsum(_whole_turns(x, np.diff(values)))
    return values


def _centres(
    dataset: Dataset, coordinate: Variable, values: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The coordinate, moved to the middle of its cells where bounds say that it lies elsewhere.

    All cells move alike, by their median: the last one may end at a pole. Bounds that do not hold
    the coordinate are not its own.
    """
    bounds = dataset.named(coordinate.text("bounds"), coordinate)
    if bounds is None or bounds.shape != (values.size, 2):
        return values
    offsets = bounds.decoded() - values[:, None]
    if not np.isfinite(offsets).all():
        return values
    offsets -= _whole_turns(coordinate, offsets)
    width, shift = np.median(np.ptp(offsets, axis=1)), np.median(offsets.mean(axis=1))
    is_within = abs(shift) <= (0.5 + _CENTRED_WITHIN) * width
    return values + shift if is_within and abs(shift) > _CENTRED_WITHIN * width else values


def _whole_turns(
    coordinate: Variable, differences: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The whole turns in differences of degrees; none in distances."""
    units = coordinate.text("units")
    degrees = are_degrees(units) if units else coordinate.name.casefold().startswith("lon")
    turn = 360.0 if degrees else 0.0
    return turn * np.round(differences / 360)


def meaning(variable: Variable) -> dict[str, Any]:
    """The attributes that stay true of a finer grid and of other numbers."""
    return {
        name: value
        for name, value in variable.attributes.items()
        if not _STORAGE_ATTRIBUTES.fullmatch(name)
    }


def grid_mapping_of(
    dataset: Dataset, variable: Variable, axes: dict[str, Axis]
) -> GridMapping | None:
    """The grid mapping the variable names for its axes; None if there is none, or it is missing."""
    said = variable.text("grid_mapping")  # "crs", "/crs", "crs: x y" or "crs: x y wgs: lat lon"
    chosen = {c.name for kind in "yx" if (c := axes[kind].coordinate)}
    names = [
        name
        for name, listed in _MAPPINGS.findall(said)
        if chosen & {word.rpartition("/")[2] for word in listed.split()}
    ]
    if ":" not in said:
        names = said.split()
    mapping = dataset.named(names[0], variable) if names else None
    return GridMapping(mapping.name, meaning(mapping)) if mapping else None
