"""Which variable of a dataset is the precipitation, by CF names and units."""

from __future__ import annotations

import re
from collections.abc import Mapping

from wdm_runtime.errors import InputError
from wdm_runtime.io.dataset import Dataset, Variable
from wdm_runtime.io.units import amount_factor, rate_factor

STANDARD_NAMES = frozenset(
    {"lwe_precipitation_rate", "rainfall_rate", "precipitation_flux", "rainfall_flux"}
    | {"precipitation_amount", "rainfall_amount", "lwe_thickness_of_precipitation_amount"}
    | {"thickness_of_rainfall_amount"}
)
# Names of total precipitation where there is no standard_name. None of a part: RAINNC is without
# the convection's RAINC.
_KNOWN_NAMES = re.compile(
    r"tp|(avg_)?tprate|mtpr|pr|pcp|prate|total_precipitation|prcp|rr|(lwe_)?(rain|rainfall|precip|precipitation)"
    r"(_?(rate|flux|amount))?|precipitationcal|apcp(_surface)?|tot_prec",
    re.IGNORECASE,
)
_REFERRING = ("ancillary_variables", "bounds", "cell_measures", "climatology", "coordinates")
_LISTED = 20
_KNMI_PIXELS = "image1/image_data"  # of KNMI's HDF5 data format for radar


def choose(dataset: Dataset, requested: str | None, accumulation_h: float | None) -> Variable:
    """The variable asked for, or the only precipitation there is: rates before amounts.

    Parameters
    ----------
    requested
        Name or path of any field in units of precipitation; None looks for the only one with a
        standard_name or well-known name.
    accumulation_h
        If given, amounts are meant: they come before rates.

    Raises
    ------
    InputError
        None or several fit, or the units are not those of precipitation.
    """
    planes = _planes(dataset)
    fields = _without_supporting(dataset, planes)
    rain = {path: variable for path, variable in fields.items() if _is_precipitation(variable)}
    if not rain:
        _refuse_knmi(dataset)
    if requested is not None:
        wanted = requested.strip("/")
        found = [wanted] if wanted in planes else [p for p in planes if planes[p].name == wanted]
        if not found:
            raise InputError(
                f"{dataset.label}: has no field '{requested}'{_why_not(dataset, wanted)}; expected "
                f"{_candidates(rain or fields)}"
            )
    else:
        rates = [p for p, v in rain.items() if rate_factor(v.text("units")) is not None]
        amounts = [p for p, v in rain.items() if amount_factor(v.text("units")) is not None]
        found = rates or amounts if accumulation_h is None else amounts or rates
    if len(found) > 1:
        raise InputError(
            f"{dataset.label}: holds {len(found)} precipitation variables, "
            f"{_listed({path: planes[path] for path in found})}; expected one. "
            "Choose one with --variable."
        )
    if not found and not rain:
        units = [variable.text("units") for variable in fields.values()]
        wet = any(rate_factor(u) is not None or amount_factor(u) is not None for u in units)
        parts = " Of parts of the rain write their sum first." if wet else ""
        raise InputError(
            f"{dataset.label}: has no precipitation variable{', only ' if fields else ''}"
            f"{_listed(fields)}; expected one with a standard_name like 'lwe_precipitation_rate', "
            "or a name like 'precipitation', in units convertible to 'mm h-1' and two dimensions "
            f"or more. {_remedy(fields)}{parts}"
        )
    chosen = planes[found[0]] if found else next(iter(rain.values()))
    _check_units(dataset, chosen)
    return chosen


def _refuse_knmi(dataset: Dataset) -> None:
    """Choosing its pixels by name leads nowhere: units, scale and place are in its own groups."""
    pixels = dataset.variables.get(_KNMI_PIXELS)
    if pixels is not None and not pixels.text("units"):
        raise InputError(
            f"{dataset.label}: is KNMI's own HDF5, whose '{_KNMI_PIXELS}' has neither units nor "
            "coordinates; expected ODIM_H5 or CF NetCDF. Convert it to ODIM_H5 or CF first: its "
            "scale is in 'image1/calibration', its grid in 'geographic'."
        )


def _planes(dataset: Dataset) -> dict[str, Variable]:
    """Numbers in two dimensions or more."""
    return {
        path: variable
        for path, variable in dataset.variables.items()
        if len(variable.dimensions) >= 2
        and variable.dtype is not None
        and variable.dtype.kind in "iuf"
    }


def _without_supporting(dataset: Dataset, planes: dict[str, Variable]) -> dict[str, Variable]:
    """Those that no other variable refers to: they are taken only if asked for by name."""
    supporting = {
        word.rstrip(":").rpartition("/")[2]
        for variable in dataset.variables.values()
        for attribute in _REFERRING
        for word in variable.text(attribute).split()
    }
    return {path: plane for path, plane in planes.items() if plane.name not in supporting}


def _is_precipitation(variable: Variable) -> bool:
    standard_name = variable.text("standard_name")
    if standard_name in STANDARD_NAMES:
        return True
    # Else it says what the variable is, whatever its name: `rr` may be convective rain alone. But
    # "unknown" is cfgrib's word where CF has no name, and some archives invent a total's.
    says_nothing = standard_name.casefold() in ("", "unknown")
    if says_nothing or _KNOWN_NAMES.fullmatch(standard_name):
        return bool(_KNOWN_NAMES.fullmatch(variable.name))
    return False


def _check_units(dataset: Dataset, variable: Variable) -> None:
    units = variable.text("units")
    if rate_factor(units) is None and amount_factor(units) is None:
        has = f"units '{units}'" if units else "no units"
        raise InputError(
            f"{dataset.label}: variable '{variable.path}' has {has}, expected a rate convertible "
            "to 'mm h-1', or an amount convertible to 'mm' over a known period. Correct its "
            "attribute 'units', or choose another with --variable."
        )


def _listed(variables: Mapping[str, Variable]) -> str:
    texts = [f"'{path}' [{v.text('units') or 'no units'}]" for path, v in variables.items()]
    more = [f"{len(texts) - _LISTED} more"] if len(texts) > _LISTED else []
    return ", ".join(texts[:_LISTED] + more)


def _candidates(fields: Mapping[str, Variable]) -> str:
    listed = f"one of {_listed(fields)}" if fields else "numbers in two dimensions or more"
    return f"{listed}. {_remedy(fields)}"


def _why_not(dataset: Dataset, name: str) -> str:
    """What a variable is that is there and no field; "" if it is not there."""
    found = next((v for path, v in dataset.variables.items() if name in (path, v.name)), None)
    if found is None:
        return ""
    numbers = found.dtype is not None and found.dtype.kind in "iuf"
    holding = "" if numbers else " that holds no numbers"
    return f", only a variable ({', '.join(found.dimensions)}){holding}"


def _remedy(fields: Mapping[str, Variable]) -> str:
    return "Choose one with --variable." if fields else "Hand in another file."
