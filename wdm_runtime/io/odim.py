"""Radar composites in ODIM_H5, the OPERA data information model, on cartesian grids.

``nodata`` is missing, ``undetect`` is dry: radar looked and saw nothing. Quantities are RATE [mm/h]
and ACRR [mm], the sum over a dataset's start to end (EUMETNET OPERA, ODIM_H5 version 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError, require
from wdm_runtime.field import GridMapping, PrecipField, Source, TimeAxis
from wdm_runtime.grid import Grid
from wdm_runtime.io.dataset import LIBRARY_LOCK
from wdm_runtime.io.foreign import epoch_axis, to_rates
from wdm_runtime.io.units import to_mm_h

_OBJECTS: Final = ("COMP", "IMAGE")
_UNITS: Final = {"RATE": "mm h-1", "ACRR": "mm"}
_STANDARD_NAMES: Final = {
    "RATE": "lwe_precipitation_rate",
    "ACRR": "lwe_thickness_of_precipitation_amount",
}
_SCALING: Final = ("gain", "offset", "nodata", "undetect")
_PLACE: Final = ("projdef", "xsize", "ysize", "xscale", "yscale", "LL_lon", "LL_lat")


@dataclass(frozen=True)
class Layer:
    """One array of a file: where it lies, how it is scaled and placed, and of what period it is."""

    group: str
    quantity: str
    gain: float
    offset: float
    nodata: float
    undetect: float
    start: datetime | None
    end: datetime | None
    nominal: datetime | None
    where: dict[str, Any]


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
        grid mapping, or latitude and longitude where ``projdef`` is ``longlat``.

    Raises
    ------
    InputError
        Not HDF5, another object (polar volumes, scans), no or several precipitation quantities, a
        missing or unreadable attribute, periods or grids that differ, two datasets of one time, an
        array of another shape, or nothing but missing cells.
    MissingDependencyError
        Without the extra ``odim``.
    """
    import netCDF4

    with LIBRARY_LOCK, _library_errors(path), netCDF4.Dataset(str(path.absolute())) as dataset:
        dataset.set_auto_maskandscale(False)
        _require_composite(path, dataset)
        layers = _chosen(path, _layers(path, dataset), quantity)
        grid, mapping = _grid(path, layers[0].where)
        if any(layer.where != layers[0].where for layer in layers):
            raise InputError(
                f"{path}: datasets of '{layers[0].quantity}' lie on different grids; expected one. "
                "Split the file first."
            )
        period_h = _period_h(path, layers)
        layers, ends = _by_time(path, layers)
        rates = np.stack([_rates(path, dataset, layer, grid.shape, period_h) for layer in layers])
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
        units=_UNITS[name],
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
    except (OSError, RuntimeError, LookupError, AttributeError, UnicodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected a complete ODIM_H5 file. Fetch the file "
            "again."
        ) from error


def _attributes(node: Any, name: str) -> dict[str, Any]:
    """The attributes of a node's group ``what`` or ``where``."""
    group = node.groups.get(name)
    return {key: group.getncattr(key) for key in group.ncattrs()} if group is not None else {}


def _require_composite(path: Path, dataset: Any) -> None:
    found = str(_attributes(dataset, "what").get("object", "")).strip()
    if found not in _OBJECTS:
        raise InputError(
            f"{path}: holds the ODIM_H5 object '{found}'; expected a cartesian composite, COMP or "
            "IMAGE. Make a composite of polar data first (wradlib, BALTRAD)."
        )


def _layers(path: Path, dataset: Any) -> list[Layer]:
    """All arrays with a quantity; attributes count from the nearest group above."""
    layers = []
    root_what, root_where = (_attributes(dataset, name) for name in ("what", "where"))
    for name, product in dataset.groups.items():
        if not name.startswith("dataset"):
            continue
        for inner, data in product.groups.items():
            if not inner.startswith("data"):
                continue
            what = root_what | _attributes(product, "what") | _attributes(data, "what")
            where = root_where | _attributes(product, "where") | _attributes(data, "where")
            layers.append(_layer(path, f"{name}/{inner}", what, where))
    return layers


def _layer(path: Path, group: str, what: dict[str, Any], where: dict[str, Any]) -> Layer:
    quantity = str(what.get("quantity", "")).strip()
    known = quantity in _UNITS  # of other quantities nothing is asked
    scaling = {name: _number(path, group, what, name) if known else 0.0 for name in _SCALING}
    return Layer(
        group,
        quantity,
        **scaling,
        start=_instant(path, group, what, "start"),
        end=_instant(path, group, what, "end"),
        nominal=_instant(path, group, what, ""),
        where={name: where[name] for name in _PLACE if name in where},
    )


def _number(path: Path, group: str, attributes: dict[str, Any], name: str) -> float:
    try:
        return float(attributes[name])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: '{group}' has {name} = {attributes.get(name)!r}; expected a number. Add the "
            "attribute, or fetch the file again."
        ) from error


def _instant(path: Path, group: str, what: dict[str, Any], which: str) -> datetime | None:
    date, time = (str(what.get(f"{which}{part}", "")).strip() for part in ("date", "time"))
    if not date and not time:
        return None
    try:
        return datetime.strptime(date + time, "%Y%m%d%H%M%S")
    except ValueError as error:
        raise InputError(
            f"{path}: '{group}' has {which}date '{date}' and {which}time '{time}'; expected "
            "YYYYMMDD and HHmmss. Correct the attributes, or fetch the file again."
        ) from error


def _chosen(path: Path, layers: list[Layer], quantity: str | None) -> list[Layer]:
    found = sorted({layer.quantity for layer in layers if layer.quantity})
    listed = ", ".join(f"'{name}'" for name in found) or "none"
    rain = [name for name in found if name in _UNITS and quantity in (None, name)]
    if not rain:
        wanted = f"'{quantity}'" if quantity in _UNITS else "RATE [mm/h] or ACRR [mm]"
        remedy = (
            "Turn reflectivity into rain rates first, with a Z-R relation fit for the radar."
            if {"DBZH", "TH"} & set(found)
            else "Hand in another file."
        )
        raise InputError(f"{path}: holds the quantities {listed}; expected {wanted}. {remedy}")
    if len(rain) > 1:
        raise InputError(
            f"{path}: holds the quantities {listed}; expected one of precipitation. Choose one "
            "with --variable."
        )
    return [layer for layer in layers if layer.quantity == rain[0]]


def _period_h(path: Path, layers: list[Layer]) -> float | None:
    """The hours amounts are summed over, None for rates."""
    if layers[0].quantity != "ACRR":
        return None
    periods = {
        layer.end - layer.start if layer.start and layer.end else timedelta() for layer in layers
    }
    period = min(periods)
    if len(periods) > 1 or period <= timedelta():
        got = ", ".join(f"{p.total_seconds() / 3600:g} h" for p in sorted(periods))
        raise InputError(
            f"{path}: 'ACRR' is summed over {got} by its start and end; expected one positive "
            "period. Correct startdate, starttime, enddate and endtime, or split the file."
        )
    return period.total_seconds() / 3600


def _by_time(path: Path, layers: list[Layer]) -> tuple[list[Layer], list[datetime]]:
    """Layers in the order of their valid times."""
    nominal = len(layers) == 1 and layers[0].quantity == "RATE"
    timed = []
    for layer in layers:
        time = (layer.nominal or layer.end) if nominal else (layer.end or layer.nominal)
        if time is None:
            raise InputError(
                f"{path}: '{layer.group}' has no time; expected date and time, or enddate and "
                "endtime. Add the attributes."
            )
        timed.append((time, layer))
    timed.sort(key=lambda pair: pair[0])
    ends = [time for time, _ in timed]
    if len(set(ends)) < len(ends):
        raise InputError(
            f"{path}: holds {len(ends)} datasets of '{layers[0].quantity}' at {len(set(ends))} "
            "times; expected one a time. Split the file by product or height first."
        )
    return [layer for _, layer in timed], ends


def _rates(
    path: Path, dataset: Any, layer: Layer, shape: tuple[int, int], period_h: float | None
) -> npt.NDArray[np.float32]:
    variable = dataset[layer.group].variables.get("data")
    if variable is None or variable.shape != shape:
        got = "no array" if variable is None else f"shape {variable.shape}"
        raise InputError(
            f"{path}: '{layer.group}/data' has {got}; expected {shape} as ysize and xsize say. "
            "Correct the attributes, or fetch the file again."
        )
    stored = np.asarray(variable[:], dtype=np.float64)
    values = stored * layer.gain + layer.offset
    values[stored == layer.undetect] = 0
    missing = np.isnan(stored) | (stored == layer.nodata)
    values[missing] = np.nan
    factor = to_mm_h(_UNITS[layer.quantity], period_h)
    return to_rates(f"{path}: '{layer.group}' ({layer.quantity})", values, factor)


def _grid(path: Path, where: dict[str, Any]) -> tuple[Grid, GridMapping]:
    """Cell centres from the lower left corner of the lower left cell."""
    pyproj = require("pyproj", "odim", "Placing an ODIM_H5 composite")
    missing = [name for name in _PLACE if name not in where]
    if missing:
        raise InputError(
            f"{path}: 'where' has no {', '.join(missing)}; expected {', '.join(_PLACE)}. Add the "
            "attributes, or fetch the file again."
        )
    number = {name: _number(path, "where", where, name) for name in _PLACE[1:]}
    try:
        crs = pyproj.CRS(str(where["projdef"]))
        corner = pyproj.Proj(crs)(number["LL_lon"], number["LL_lat"])
        kilo = abs(crs.axis_info[0].unit_conversion_factor - 1000) < 1e-6
        units = "km" if kilo else "m"
    except (RuntimeError, IndexError) as error:  # of pyproj
        raise InputError(
            f"{path}: 'where' has projdef '{where['projdef']}', which cannot be used ({error}); "
            "expected a PROJ definition. Correct the attribute."
        ) from error
    latlon = bool(crs.is_geographic)
    x0, y0 = (number["LL_lon"], number["LL_lat"]) if latlon else corner
    sizes = int(number["ysize"]), int(number["xsize"])
    steps = number["yscale"], number["xscale"]
    if not (np.isfinite(x0) and np.isfinite(y0)) or min(sizes) < 1 or not min(steps) > 0:
        raise InputError(
            f"{path}: 'where' has {sizes[0]} x {sizes[1]} cells of {steps[0]:g} x {steps[1]:g} "
            f"with a corner at {number['LL_lon']:g} E, {number['LL_lat']:g} N; expected positive "
            "sizes and a corner within the projection. Correct the attributes."
        )
    y = float(y0) + steps[0] * (sizes[0] - 0.5 - np.arange(sizes[0], dtype=np.float64))
    x = float(x0) + steps[1] * (0.5 + np.arange(sizes[1], dtype=np.float64))
    names = ("lat", "lon") if latlon else ("y", "x")
    standard = (
        ("latitude", "longitude")
        if latlon
        else ("projection_y_coordinate", "projection_x_coordinate")
    )
    each = ("degrees_north", "degrees_east") if latlon else (units, units)
    attributes = [
        {"units": unit, "standard_name": name} for unit, name in zip(each, standard, strict=True)
    ]
    grid = Grid(y, x, names, (attributes[0], attributes[1]))
    return grid, GridMapping("crs", dict(crs.to_cf()))
