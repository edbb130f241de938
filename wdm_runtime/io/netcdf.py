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
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField, Source
from wdm_runtime.io.classic import check_classic_length
from wdm_runtime.io.coordinates import (
    find_axes,
    grid_mapping_of,
    grid_of,
    text_of,
    valid_times_of,
)
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
_CODE_FROM = 9999.0  # in the file's units
_CODE_BELOW_MM_H = -1e-3  # packing and resampling leave smaller negatives, which are dry


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
    factor = rate_factor(text_of(variable, "units"))
    if factor is None:
        raise _not_a_rate(path, name, variable)
    axes = find_axes(path, name, variable)
    times = axes.get("t")
    valid_times, time = valid_times_of(path, variable, times)
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
        grid = grid_of(axes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    source = Source(
        path=str(path),
        variable=variable.name,
        units=text_of(variable, "units"),
        standard_name=text_of(variable, "standard_name"),
        long_name=text_of(variable, "long_name"),
        time=time,
        grid_mapping=grid_mapping_of(variable),
    )
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
        for word in text_of(variable, attribute).split()
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
    rates = [name for name, var in rain.items() if rate_factor(text_of(var, "units")) is not None]
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
    standard_name = text_of(variable, "standard_name")
    if " " in standard_name:  # a modifier: standard_error, status_flag, ...
        return False
    return standard_name in RATE_STANDARD_NAMES or bool(_KNOWN_NAMES.fullmatch(variable.name))


def _not_a_rate(path: Path, name: str, variable: netCDF4.Variable[Any]) -> InputError:
    units = text_of(variable, "units")
    has = f"units '{units}'" if units else "no units"
    return InputError(
        f"{path}: variable '{name}' has {has}, expected a rate convertible to 'mm h-1'. "
        "Choose another with --variable."
    )


def _listed(variables: dict[str, netCDF4.Variable[Any]]) -> str:
    texts = [f"'{name}' [{text_of(v, 'units') or 'no units'}]" for name, v in variables.items()]
    more = [f"{len(texts) - 20} more"] if len(texts) > 20 else []
    return ", ".join(texts[:20] + more) or "variables of fewer than two dimensions"
