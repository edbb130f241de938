"""Which parameters of GRIB2 are precipitation, what they are called, and which one is read.

ecCodes knows MRMS's local table 209 only as ``unknown``, so products are identified by their
discipline, category and number (NSSL's table v12.2, WMO's code table 4.2, ECMWF's local table).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wdm_runtime.errors import InputError

Get = Callable[[str], Any]  # a message's keys, None for those it does not have
Identity = tuple[int, int, int]  # discipline, category, number

AVERAGE, ACCUMULATION = 0, 1  # code table 4.10
_MRMS: Final[dict[Identity, tuple[str, float | None]]] = {  # name; period [h], None for rates
    (209, 6, 1): ("PrecipRate", None),
    (209, 6, 2): ("RadarOnly_QPE_01H", 1.0),
    (209, 6, 9): ("GaugeCorr_QPE_01H", 1.0),
    (209, 6, 30): ("MultiSensor_QPE_01H_Pass1", 1.0),
    (209, 6, 37): ("MultiSensor_QPE_01H_Pass2", 1.0),
}
_FLUX, _SUM = "kg m-2 s-1", "kg m-2"
_TOTAL: Final = "total_precipitation"
# By statistic, None for an instant: name and units.
_Kinds = dict[int | None, tuple[str, str]]
_WMO: Final[dict[Identity, _Kinds]] = {
    (0, 1, 7): {
        None: ("precipitation_rate", _FLUX),
        AVERAGE: ("mean_precipitation_rate", _FLUX),
        ACCUMULATION: (_TOTAL, _SUM),
    },
    (0, 1, 8): {ACCUMULATION: (_TOTAL, _SUM)},
    (0, 1, 52): {
        None: ("total_precipitation_rate", _FLUX),
        AVERAGE: ("mean_total_precipitation_rate", _FLUX),
        ACCUMULATION: (_TOTAL, _SUM),
    },
}
# Numbers from 192 on mean something else at every centre: 0/1/193 is freezing rain at NCEP.
_LOCAL: Final[dict[str, dict[Identity, _Kinds]]] = {
    "ecmf": {
        (0, 1, 193): {
            AVERAGE: ("mean_total_precipitation_rate", "m s-1"),
            ACCUMULATION: (_TOTAL, "m"),
        }
    },
}


@dataclass(frozen=True)
class Product:
    """What a message holds: which parameter, of an instant or of which statistic over a period."""

    identity: Identity
    statistic: int | None
    name: str
    units: str
    short_name: str = ""  # ecCodes'
    period_h: float | None = None  # where it is the same in all messages
    negative_is_missing: bool = False

    @property
    def averaged(self) -> bool:
        """Whether it is a mean over a period."""
        return self.statistic == AVERAGE

    def __str__(self) -> str:
        return f"'{self.name}'" + (f" ({self.short_name})" if self.short_name else "")


def product_of(get: Get) -> Product | None:
    """The precipitation a message holds, None if it holds something else."""
    identity, statistic = _identity_of(get), get("typeOfStatisticalProcessing")
    if identity in _MRMS:
        name, period_h = _MRMS[identity]
        units = "mm h-1" if period_h is None else "mm"
        return Product(identity, statistic, name, units, "", period_h, negative_is_missing=True)
    kinds = _WMO.get(identity) or _LOCAL.get(get("centre"), {}).get(identity) or {}
    if statistic not in kinds:
        return None
    short_name = get("shortName")
    return Product(
        identity, statistic, *kinds[statistic], "" if short_name == "unknown" else short_name
    )


def other_of(get: Get) -> str:
    """What a message holds that is no precipitation, for a message to the user."""
    identity, statistic = _identity_of(get), get("typeOfStatisticalProcessing")
    text = "/".join(map(str, identity))
    if identity not in _WMO:
        return text
    return text + (" of no period" if statistic is None else f" of statistic {statistic}")


def _identity_of(get: Get) -> Identity:
    return get("discipline"), get("parameterCategory"), get("parameterNumber")


def chosen_name(path: Path, found: set[Product], others: set[str], requested: str | None) -> str:
    """The name of the only product there is, or of the one asked for.

    Parameters
    ----------
    found, others
        The file's products, and what else it holds.
    requested
        A product's name or ecCodes' short name; None looks for the only one.

    Raises
    ------
    InputError
        None or several fit.
    """
    if not found:
        raise InputError(
            f"{path}: holds GRIB2 parameter {', '.join(sorted(others))}; expected an MRMS rate or "
            "hourly amount, 209/6/{1,2,9,30,37}, WMO's rates or their means or sums (statistic 0 "
            "or 1 of table 4.10), 0/1/{7,52}, or the sums 0/1/8, or at ECMWF 0/1/193. Hand in a "
            "PrecipRate or QPE_01H file, or a precipitation rate or amount."
        )
    fitting = {
        product.name
        for product in found
        if requested is None or requested in (product.name, product.short_name)
    }
    if len(fitting) != 1:
        wanted = f"'{requested}' as asked for" if requested and not fitting else "one product"
        listed = ", ".join(sorted(set(map(str, found))))
        remedy = "Choose one with --variable."
        if len({product.name for product in found}) == 1:
            remedy = "Leave out --variable, or hand in another file."
        raise InputError(f"{path}: holds {listed}; expected {wanted}. {remedy}")
    return fitting.pop()
