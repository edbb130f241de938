"""Radar composites in ODIM_H5, the OPERA data information model, on cartesian grids.

``nodata`` is missing, ``undetect`` is dry: radar looked and saw nothing. Quantities are RATE [mm/h]
and ACRR [mm], the sum over a dataset's start to end (EUMETNET OPERA, ODIM_H5 version 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError, require
from wdm_runtime.field import GridMapping, PrecipField, Source, TimeAxis
from wdm_runtime.grid import Grid
from wdm_runtime.io.dataset import LIBRARY_LOCK, Variable, check_fits
from wdm_runtime.io.foreign import epoch_axis, to_rates
from wdm_runtime.io.hdf5_filters import check_filters, chunk_bytes
from wdm_runtime.io.netcdf_library import open_dataset
from wdm_runtime.io.odim_header import (
    UNITS,
    Layer,
    attributes_of,
    by_time,
    chosen,
    common_period_h,
    layers_of,
    place_of,
)
from wdm_runtime.io.units import to_mm_h

_OBJECTS: Final = ("COMP", "IMAGE")
_STANDARD_NAMES: Final = {
    "RATE": "lwe_precipitation_rate",
    "ACRR": "lwe_thickness_of_precipitation_amount",
}


def read_odim(path: Path, quantity: str | None = None) -> PrecipField:
    """Read a precipitation composite as rates [mm h-1].

    Parameters
    ----------
    path
        ODIM_H5 file with the object COMP or IMAGE.
    quantity
        ``"RATE"`` or ``"ACRR"``, where the file holds both.

    Returns
    -------
    PrecipField
        (time, y, x) float32, north first, NaN where missing. Several datasets of one quantity are
        the times: of rates the nominal time if there is one dataset, else each dataset's end; of
        amounts the end of the period. The grid is of cell centres: projected [m or km] with a CF
        grid mapping, or latitude and longitude where ``projdef`` is ``longlat``. Projections that
        CF lacks, like the gnomonic one, stand in the axes' comments instead.

    Raises
    ------
    InputError
        Not HDF5, another object (polar volumes, scans), no or several precipitation quantities, a
        missing, unreadable or impossible attribute, periods or grids that differ, two datasets of
        one time, an array of another shape or beyond this machine's memory, latitudes beyond a
        pole, infinite or negative rates, or nothing but missing cells.
    MissingDependencyError
        Without the extra ``odim``.
    """
    with LIBRARY_LOCK, _library_errors(path), open_dataset(path) as dataset:
        dataset.set_auto_maskandscale(False)
        _require_composite(path, dataset)
        layers = chosen(path, layers_of(path, dataset), quantity)
        if any(layer.where != layers[0].where for layer in layers):
            raise InputError(
                f"{path}: datasets of '{layers[0].quantity}' lie on different grids; expected one. "
                "Split the file first."
            )
        period_h = common_period_h(path, layers)
        layers, ends = by_time(path, layers)
        place = place_of(path, layers[0].where)
        arrays = [_array(path, dataset, layer, place, len(layers)) for layer in layers]
        grid, mapping = _grid(path, str(layers[0].where["projdef"]), place)
        pairs = zip(layers, arrays, strict=True)
        rates = np.stack([_rates(path, layer, array, period_h) for layer, array in pairs])
    name = layers[0].quantity
    if not np.isfinite(rates).any():
        raise InputError(
            f"{path}: '{name}' has no valid value in its {rates.size} cells; expected at least "
            "one. Choose another with --variable, or another file."
        )
    time: TimeAxis = epoch_axis(ends, period_h)
    source = Source(
        path=str(path),
        variable=name,
        units=UNITS[name],
        period_h=period_h,
        standard_name=_STANDARD_NAMES[name],
        cell_methods="" if period_h is None else "time: sum",
        time=time,
        grid_mapping=mapping,
    )
    return PrecipField(rates, grid, tuple(end.isoformat() for end in ends), source)


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, LookupError, AttributeError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected a complete ODIM_H5 file. Fetch the file "
            "again."
        ) from error


def _require_composite(path: Path, dataset: Any) -> None:
    found = str(attributes_of(dataset, "what").get("object", "")).strip()
    if found not in _OBJECTS:
        raise InputError(
            f"{path}: holds the ODIM_H5 object '{found}'; expected a cartesian composite, COMP or "
            "IMAGE. Make a composite of polar data first (wradlib, BALTRAD)."
        )


def _array(path: Path, dataset: Any, layer: Layer, place: dict[str, float], times: int) -> Variable:
    """The layer's array, which has the size the file says and fits, before any of it is read."""
    shape = int(place["ysize"]), int(place["xsize"])
    stored = dataset[layer.group].variables.get("data")
    if stored is None or stored.shape != shape:
        got = "no array" if stored is None else f"shape {stored.shape}"
        raise InputError(
            f"{path}: '{layer.group}/data' has {got}; expected {shape} as ysize and xsize say. "
            "Correct the attributes, or fetch the file again."
        )
    dtype = stored.datatype if isinstance(stored.datatype, np.dtype) else None
    if dtype is None or dtype.kind not in "iuf":
        raise InputError(
            f"{path}: '{layer.group}/data' holds {stored.datatype}; expected numbers. Hand in "
            "another file."
        )
    check_filters(path, stored)
    name = f"{layer.group}/data"
    array = Variable(
        name,
        ("ysize", "xsize"),
        shape,
        dtype,
        {},
        read=lambda index: stored[index],
        chunk_bytes=chunk_bytes(stored),
    )
    # One frame at work, and all of them kept at an eighth of that (float32).
    check_fits(str(path), array, array.size + array.size * times // 8)
    return array


def _rates(
    path: Path, layer: Layer, array: Variable, period_h: float | None
) -> npt.NDArray[np.float32]:
    stored = array.raw()
    values = stored.astype(np.float64) * layer.gain + layer.offset
    values[stored == _as_stored(layer.undetect, stored.dtype)] = 0
    values[np.isnan(stored) | (stored == _as_stored(layer.nodata, stored.dtype))] = np.nan
    factor = to_mm_h(UNITS[layer.quantity], period_h)
    return to_rates(f"{path}: '{layer.group}' ({layer.quantity})", values, factor)


def _as_stored(code: float, dtype: np.dtype[Any]) -> Any:
    """A code as the array has it: no float32 is equal to the double 9999.9."""
    if dtype.kind != "f":
        return np.float64(code)
    with np.errstate(over="ignore"):
        return dtype.type(code)


def _grid(path: Path, projdef: str, place: dict[str, float]) -> tuple[Grid, GridMapping | None]:
    """Cell centres from the lower left corner of the lower left cell."""
    pyproj = require("pyproj", "odim", "Placing an ODIM_H5 composite")
    lon, lat = place["LL_lon"], place["LL_lat"]
    try:
        crs = pyproj.CRS(projdef)
        corner = pyproj.Proj(crs)(lon, lat)
        kilo = abs(crs.axis_info[0].unit_conversion_factor - 1000) < 1e-6
        units = "km" if kilo else "m"
    except (RuntimeError, IndexError) as error:  # of pyproj
        raise InputError(
            f"{path}: 'where' has projdef '{projdef}', which cannot be used ({error}); "
            "expected a PROJ definition. Correct the attribute."
        ) from error
    latlon = bool(crs.is_geographic)
    x0, y0 = (lon, lat) if latlon else corner
    if not (np.isfinite(x0) and np.isfinite(y0)):
        raise InputError(
            f"{path}: 'where' has its corner at {lon:g} E, {lat:g} N; expected one within the "
            f"projection '{projdef}'. Correct LL_lon and LL_lat."
        )
    rows, columns = (np.arange(int(place[name]), dtype=np.float64) for name in ("ysize", "xsize"))
    y = float(y0) + place["yscale"] * (rows[::-1] + 0.5)
    x = float(x0) + place["xscale"] * (columns + 0.5)
    names = ("lat", "lon") if latlon else ("y", "x")
    standard = (
        ("latitude", "longitude")
        if latlon
        else ("projection_y_coordinate", "projection_x_coordinate")
    )
    each = ("degrees_north", "degrees_east") if latlon else (units, units)
    mapping = dict(crs.to_cf())
    named = "grid_mapping_name" in mapping  # without it CF has no grid mapping
    comment = {} if named else {"comment": f"In the projection {projdef}"}
    attributes = [
        {"units": unit, "standard_name": name, **comment}
        for unit, name in zip(each, standard, strict=True)
    ]
    grid = Grid.of_file(str(path), y, x, names, (attributes[0], attributes[1]))
    return grid, GridMapping("crs", mapping) if named else None
