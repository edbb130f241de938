"""Precipitation rates from CF NetCDF: which variable, along which axes, in which units, when.

Missing is never dry: masked values, NaN, 9999 and more, and the negative codes of radar products
(-1, -3, -9999.9) all become NaN. HDF5 keeps state per library, not per file, so every call into
netCDF4, here and in the writer, holds ``LIBRARY_LOCK``.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.grid import Grid, PrecipField
from wdm_runtime.io.classic import check_classic_length
from wdm_runtime.io.units import rate_factor

LIBRARY_LOCK = threading.RLock()

RATE_STANDARD_NAMES = frozenset(
    {"lwe_precipitation_rate", "rainfall_rate", "precipitation_flux", "rainfall_flux"}
)
# Names of total precipitation where there is no standard_name; one in the units of an
# accumulation is named in the error, not read.
_KNOWN_NAMES = re.compile(
    r"tp|(avg_)?tprate|mtpr|pr|prate|prcp|rr|(lwe_)?(rain|rainfall|precip|precipitation)"
    r"(_?(rate|flux))?|precipitationcal|rainnc",
    re.IGNORECASE,
)
_REFERRING = ("ancillary_variables", "bounds", "cell_measures", "climatology", "coordinates")
# What describes the stored numbers and not their meaning: untrue of the finer grid.
_STORAGE_ATTRIBUTES = re.compile(
    "_.*|missing_value|scale_factor|add_offset|valid_(range|min|max)|actual_range|bounds|CLASS|NAME"
    "|(DIMENSION|REFERENCE)_LIST|DimensionNames"
)
_CODE_FROM = 9999.0  # in the file's units
_CODE_BELOW_MM_H = -1e-3  # packing and resampling leave smaller negatives, which are dry

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
class _Axis:
    kind: str
    dimension: str
    size: int
    coordinate: netCDF4.Variable[Any] | None

    @property
    def rank(self) -> tuple[bool, int]:
        """Valid time before reference time, then the longer one."""
        return _text(self.coordinate, "standard_name") == "time", self.size


def read_netcdf(path: Path, variable: str | None = None) -> PrecipField:
    """Read one precipitation variable of a NetCDF file as rates [mm h-1].

    Parameters
    ----------
    path
        NetCDF-3 or NetCDF-4 file on a regular grid; groups are searched too.
    variable
        Name, or path within the file (``Grid/precipitation``); None looks for the only variable
        with the standard_name or well-known name and the units of a precipitation rate.

    Returns
    -------
    PrecipField
        Rates (time, y, x) float32, rows in the file's order, NaN where missing. ``source`` holds
        what the writer needs: path, variable, units, standard_name, long_name, the encoded time
        coordinate and the grid mapping.

    Raises
    ------
    InputError
        The file is damaged or no NetCDF; none or several variables fit; the units are not a
        rate; the grid is not regular; the times cannot be decoded; every cell is missing.
    """
    with LIBRARY_LOCK, _library_errors(path):
        check_classic_length(path)
        # An absolute path is never mistaken for the address of a server.
        with netCDF4.Dataset(str(path.absolute())) as dataset:
            return _read(path, dataset, variable)


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        remedy = "Fetch or write the file again."
        if "filter" in str(error).casefold():
            remedy = "Rewrite it with zlib compression, e.g. with nccopy -d 1."
        raise InputError(
            f"{path}: cannot be read ({error}); expected a complete NetCDF file. {remedy}"
        ) from error


def _read(path: Path, dataset: netCDF4.Dataset, requested: str | None) -> PrecipField:
    name, variable = _choose(path, dataset, requested)
    factor = rate_factor(_text(variable, "units"))
    if factor is None:
        raise _not_a_rate(path, name, variable)
    axes = _axes(path, name, variable)
    times = axes.get("t")
    valid_times, time = _times(path, variable, times)
    kept = [axis.dimension for axis in axes.values()]
    raw = variable[tuple(slice(None) if d in kept else 0 for d in variable.dimensions)]
    order = [d for d in variable.dimensions if d in kept]
    raw = raw.transpose([order.index(axes[kind].dimension) for kind in "tyx" if kind in axes])
    rates = _rates(raw if times else raw[None], factor)
    if not np.isfinite(rates).any():
        raise InputError(
            f"{path}: variable '{name}' has no valid value in its {rates.size} cells; expected at "
            "least one. Choose another with --variable, or another file."
        )
    try:
        grid = _grid(axes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    source = {
        "path": str(path),
        "variable": variable.name,
        **{key: _text(variable, key) for key in ("units", "standard_name", "long_name")},
        "time": time,
        "grid_mapping": _grid_mapping(variable),
    }
    return PrecipField(rates, grid, valid_times, source)


def _rates(raw: Any, factor: float) -> npt.NDArray[np.float32]:
    """(time, y, x) as decoded -> mm h-1; one frame at a time keeps float64 copies small."""
    rates = np.empty(raw.shape, dtype=np.float32)
    for index in range(raw.shape[0]):
        frame = np.ma.filled(raw[index].astype(np.float64), np.nan)
        frame[frame >= _CODE_FROM] = np.nan
        frame *= factor
        frame[frame < _CODE_BELOW_MM_H] = np.nan
        rates[index] = np.maximum(frame, 0)  # np.maximum keeps NaN
    return rates


def _choose(
    path: Path, dataset: netCDF4.Dataset, requested: str | None
) -> tuple[str, netCDF4.Variable[Any]]:
    everything = dict(_variables(dataset))
    supporting = {
        word.rstrip(":").rpartition("/")[2]
        for variable in everything.values()
        for attribute in _REFERRING
        for word in _text(variable, attribute).split()
    }
    fields = {
        name: variable
        for name, variable in everything.items()
        if variable.ndim >= 2
        and isinstance(variable.datatype, np.dtype)
        and variable.datatype.kind in "iuf"
        and variable.name not in supporting
    }
    rain = {name: variable for name, variable in fields.items() if _is_precipitation(variable)}
    rates = [name for name, var in rain.items() if rate_factor(_text(var, "units")) is not None]
    if requested is not None:
        wanted = requested.strip("/")
        rates = [wanted] if wanted in fields else [n for n in fields if fields[n].name == wanted]
        if not rates:
            raise InputError(
                f"{path}: has no field '{requested}'; expected one of {_listed(rain or fields)}. "
                "Choose one with --variable."
            )
    if len(rates) == 1:
        return rates[0], fields[rates[0]]
    if rates:
        raise InputError(
            f"{path}: holds {len(rates)} precipitation variables, "
            f"{_listed({name: fields[name] for name in rates})}; expected one. "
            "Choose one with --variable."
        )
    for name, variable in rain.items():
        raise _not_a_rate(path, name, variable)
    raise InputError(
        f"{path}: has no precipitation variable, only {_listed(fields)}; expected a standard_name "
        "like 'lwe_precipitation_rate', or a name like 'precipitation', in units convertible to "
        "'mm h-1'. Choose one with --variable."
    )


def _variables(group: netCDF4.Dataset) -> Iterator[tuple[str, netCDF4.Variable[Any]]]:
    for name, variable in group.variables.items():
        yield f"{group.path}/{name}".strip("/"), variable
    for child in group.groups.values():
        yield from _variables(child)


def _is_precipitation(variable: netCDF4.Variable[Any]) -> bool:
    standard_name = _text(variable, "standard_name")
    if " " in standard_name:  # a modifier: standard_error, status_flag, ...
        return False
    return standard_name in RATE_STANDARD_NAMES or bool(_KNOWN_NAMES.fullmatch(variable.name))


def _not_a_rate(path: Path, name: str, variable: netCDF4.Variable[Any]) -> InputError:
    units = _text(variable, "units")
    has = f"units '{units}'" if units else "no units"
    return InputError(
        f"{path}: variable '{name}' has {has}, expected a rate convertible to 'mm h-1'. "
        "Choose another with --variable."
    )


def _listed(variables: dict[str, netCDF4.Variable[Any]]) -> str:
    texts = [f"'{name}' [{_text(v, 'units') or 'no units'}]" for name, v in variables.items()]
    more = [f"{len(texts) - 20} more"] if len(texts) > 20 else []
    return ", ".join(texts[:20] + more) or "variables of fewer than two dimensions"


def _text(variable: netCDF4.Variable[Any] | None, attribute: str) -> str:
    return str(getattr(variable, attribute, "")).strip()


def _scope(variable: netCDF4.Variable[Any]) -> Iterator[netCDF4.Dataset]:
    """The variable's group and its parents, where CF looks names up."""
    group: netCDF4.Dataset | None = variable.group()
    while group is not None:
        yield group
        group = group.parent


def _axes(path: Path, name: str, variable: netCDF4.Variable[Any]) -> dict[str, _Axis]:
    axes = [_axis(variable, d, n) for d, n in zip(variable.dimensions, variable.shape, strict=True)]
    found: dict[str, _Axis] = {}
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


def _axis(variable: netCDF4.Variable[Any], dimension: str, size: int) -> _Axis:
    along = [
        candidate
        for group in _scope(variable)
        for candidate in group.variables.values()
        if candidate.dimensions == (dimension,)
        and candidate.size == size
        and (candidate.name == dimension or _kind(candidate))
    ]
    if not along:
        return _Axis(_NAMED_AXES.get(dimension.casefold(), ""), dimension, size, None)
    best = max(along, key=lambda c: (_text(c, "standard_name") == "time", c.name == dimension))
    return _Axis(_kind(best), dimension, size, best)


def _kind(coordinate: netCDF4.Variable[Any]) -> str:
    axis = _text(coordinate, "axis").casefold()
    if axis in ("t", "y", "x", "z"):
        return axis
    standard_name = _text(coordinate, "standard_name")
    if standard_name in _STANDARD_AXES:
        return _STANDARD_AXES[standard_name]
    units = _text(coordinate, "units").casefold()
    degrees = _DEGREES.fullmatch(units)
    if degrees:
        return {"n": "y", "e": "x"}[degrees[1]]
    return "t" if " since " in units else _NAMED_AXES.get(coordinate.name.casefold(), "")


def _grid(axes: dict[str, _Axis]) -> Grid:
    values, names, attributes = [], [], []
    for kind in "yx":
        coordinate = axes[kind].coordinate
        assert coordinate is not None  # _axes saw to it
        values.append(np.ma.filled(coordinate[:].astype(np.float64), np.nan))
        names.append(coordinate.name)
        attributes.append(_meaning(coordinate))
    return Grid(values[0], values[1], (names[0], names[1]), (attributes[0], attributes[1]))


def _meaning(variable: netCDF4.Variable[Any]) -> dict[str, Any]:
    names = [name for name in variable.ncattrs() if not _STORAGE_ATTRIBUTES.fullmatch(name)]
    return {name: variable.getncattr(name) for name in names}


def _grid_mapping(variable: netCDF4.Variable[Any]) -> dict[str, Any] | None:
    words = _text(variable, "grid_mapping").split()
    if not words:
        return None
    name = words[0].rstrip(":").rpartition("/")[2]  # "crs", "/crs" or "crs: x y"
    for group in _scope(variable):
        if name in group.variables:
            return {"name": name, "attributes": _meaning(group.variables[name])}
    return None


def _times(
    path: Path, variable: netCDF4.Variable[Any], axis: _Axis | None
) -> tuple[tuple[str, ...], dict[str, Any] | None]:
    coordinate = axis.coordinate if axis else _scalar_time(variable)
    if coordinate is None:
        return tuple(f"none-{index}" for index in range(axis.size if axis else 1)), None
    name, units = coordinate.name, _text(coordinate, "units")
    calendar = _text(coordinate, "calendar").casefold() or "standard"
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
    encoded = {
        "name": name,
        "units": units,
        "calendar": calendar,
        "values": np.ma.getdata(values).copy(),
    }
    return texts, encoded


def _scalar_time(variable: netCDF4.Variable[Any]) -> netCDF4.Variable[Any] | None:
    scalars = [v for g in _scope(variable) for v in g.variables.values() if v.size == 1]
    for scalar in scalars:
        if _text(scalar, "standard_name") == "time":
            return scalar
    for scalar in scalars:
        if not _text(scalar, "standard_name") and _NAMED_AXES.get(scalar.name.casefold()) == "t":
            return scalar
    return None
