"""What an ODIM_H5 file says of its precipitation: quantities, scaling, periods, times and place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from wdm_runtime.errors import InputError

UNITS: Final = {"RATE": "mm h-1", "ACRR": "mm"}
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


def attributes_of(node: Any, name: str) -> dict[str, Any]:
    """The attributes of a node's group ``what`` or ``where``."""
    group = node.groups.get(name)
    return {key: group.getncattr(key) for key in group.ncattrs()} if group is not None else {}


def layers_of(path: Path, dataset: Any) -> list[Layer]:
    """All arrays with a quantity; attributes count from the nearest group above."""
    layers = []
    root_what, root_where = (attributes_of(dataset, name) for name in ("what", "where"))
    for name, product in dataset.groups.items():
        if not name.startswith("dataset"):
            continue
        for inner, data in product.groups.items():
            if not inner.startswith("data"):
                continue
            what = root_what | attributes_of(product, "what") | attributes_of(data, "what")
            where = root_where | attributes_of(product, "where") | attributes_of(data, "where")
            layers.append(_layer(path, f"{name}/{inner}", what, where))
    return layers


def _layer(path: Path, group: str, what: dict[str, Any], where: dict[str, Any]) -> Layer:
    quantity = str(what.get("quantity", "")).strip()
    known = quantity in UNITS  # of other quantities nothing is asked
    scaling = {name: _number(path, group, what, name) if known else 0.0 for name in _SCALING}
    for name in ("gain", "offset") if known else ():
        if not math.isfinite(scaling[name]) or (name, scaling[name]) == ("gain", 0.0):
            raise InputError(
                f"{path}: '{group}' has {name} = {scaling[name]:g}; expected a finite number, and "
                "no gain of 0. Correct the attribute, or fetch the file again."
            )
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


def chosen(path: Path, layers: list[Layer], quantity: str | None) -> list[Layer]:
    """The layers of the only precipitation quantity, or of the one asked for.

    Raises
    ------
    InputError
        The file has none or several of precipitation, or not the one asked for.
    """
    found = sorted({layer.quantity for layer in layers if layer.quantity})
    listed = ", ".join(f"'{name}'" for name in found) or "none"
    rain = [name for name in found if name in UNITS and quantity in (None, name)]
    if not rain:
        wanted = f"'{quantity}'" if quantity in UNITS else "RATE [mm/h] or ACRR [mm]"
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


def common_period_h(path: Path, layers: list[Layer]) -> float | None:
    """The hours amounts are summed over, None for rates.

    Raises
    ------
    InputError
        The layers have several periods, or none that is positive.
    """
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


def by_time(path: Path, layers: list[Layer]) -> tuple[list[Layer], list[datetime]]:
    """Layers in the order of their valid times.

    Raises
    ------
    InputError
        One has no time, or two have the same.
    """
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


def place_of(path: Path, where: dict[str, Any]) -> dict[str, float]:
    """The numbers of ``where``: sizes whole, scales positive.

    Raises
    ------
    InputError
        One is missing, no number, or out of range.
    """
    missing = [name for name in _PLACE if name not in where]
    if missing:
        raise InputError(
            f"{path}: 'where' has no {', '.join(missing)}; expected {', '.join(_PLACE)}. Add the "
            "attributes, or fetch the file again."
        )
    place = {name: _number(path, "where", where, name) for name in _PLACE[1:]}
    for name in ("xsize", "ysize", "xscale", "yscale"):
        number, is_size = place[name], name.endswith("size")
        if not 0 < number < math.inf or (is_size and not number.is_integer()):
            expected = "a whole number of at least 1" if is_size else "a positive, finite number"
            raise InputError(
                f"{path}: 'where' has {name} = {number:g}; expected {expected}. Correct the "
                "attribute, or fetch the file again."
            )
    return place
