"""Units of precipitation: what turns rates, and amounts over a known period, into mm h-1."""

from __future__ import annotations

import math
import re

from wdm_runtime.errors import InputError, check_number

_MM = {
    (("mm", 1),): 1.0,
    (("cm", 1),): 10.0,
    (("m", 1),): 1e3,
    (("in", 1),): 25.4,
    (("kg", 1), ("m", -2)): 1.0,
}
_HOURS = {"s": 1 / 3600, "min": 1 / 60, "h": 1.0, "d": 24.0}
_PER_HOUR = {"s": 3600.0, "min": 60.0, "h": 1.0, "d": 1 / 24}  # 1 / _HOURS, without rounding
_UNIT_NAMES = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "min"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("d", "day", "days"), "d"),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), "mm"),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), "cm"),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), "m"),
    **dict.fromkeys(("in", "inch", "inches"), "in"),
    "kg": "kg",
}
_UNIT_TERM = re.compile(r"\s*(/?)\s*([a-z]+)([+-]?\d+)?[\s.*]*")
_PERIOD = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)?\s*([a-z]+)\s*", re.IGNORECASE)
# Bounds may end a second before the next begin, and days as floats miss whole seconds.
SAME_WITHIN_H = 1.5 / 3600


def to_mm_h(units: str, period_h: float | None) -> float:
    """What to multiply numbers in ``units`` by to get mm h-1.

    Parameters
    ----------
    units
        Of a rate (``"mm h-1"``), or of an amount (``"mm"``) summed over ``period_h``.
    period_h
        The period of an amount [h]; None for rates.

    Raises
    ------
    InputError
        The units are not those of precipitation, an amount has no positive period, or a rate has
        a period.
    """
    rate, amount = rate_factor(units), amount_factor(units)
    if rate is not None and period_h is None:
        return rate
    if amount is not None and period_h is not None and 0 < period_h < math.inf:
        return amount / period_h
    period = "no period" if period_h is None else f"a period of {period_h:g} h"
    raise InputError(
        f"Got units '{units}' and {period}; expected a rate convertible to 'mm h-1', or an amount "
        "convertible to 'mm' with the positive period it is summed over. Correct the units, or "
        "state the period with --accumulation."
    )


def rate_factor(units: str) -> float | None:
    """What to multiply values in ``units`` by to get mm h-1; None if they are not a rate.

    Understands depths (mm, cm, m, inch, or kg m-2 of water) per second, minute, hour or day, in
    UDUNITS or slash notation and any case: ``mm/hr``, ``kg m-2 s-1``, ``kg m**-2 s**-1``, ``m/s``.
    """
    powers = _powers(units)
    times = [name for name in powers if name in _PER_HOUR]
    if len(times) != 1 or powers.pop(times[0]) != -1:
        return None
    depth = _MM.get(tuple(sorted(powers.items())))
    return None if depth is None else depth * _PER_HOUR[times[0]]


def amount_factor(units: str) -> float | None:
    """What to multiply values in ``units`` by to get mm; None if they are no depth of water."""
    return _MM.get(tuple(sorted(_powers(units).items())))


def parse_period(text: str | None) -> float | None:
    """The hours of a period like ``1h``, ``30min``, ``1d`` or ``90 s``; no number counts as 1.

    None of None: no period was stated.

    Raises
    ------
    InputError
        Not a positive number and a unit of time.
    """
    if text is None:
        return None
    match = _PERIOD.fullmatch(text)
    unit = _UNIT_NAMES.get(match[2].casefold(), "") if match else ""
    period_h = float(match[1] or 1) * _HOURS[unit] if match and unit in _HOURS else 0.0
    if not 0 < period_h < math.inf:
        raise InputError(
            f"Got the period '{text}'; expected a positive number and s, min, h or d, like 1h, "
            "30min or 1d. Correct --accumulation."
        )
    return period_h


def check_stated_period(named: str, found_h: float | None, stated_h: float | None) -> None:
    """Refuse a period that the caller states, if it is none or not the file's.

    Parameters
    ----------
    named
        The file and its variable, as the message's subject.
    found_h, stated_h
        The period that the file states and the one the caller does [h]; None for none.

    Raises
    ------
    InputError
        What is stated is no finite positive number, or another period than was found.
    """
    if stated_h is None:
        return
    check_number("accumulation_h", stated_h)
    if not 0 < stated_h < math.inf:
        raise InputError(
            f"{named} got an accumulation of {stated_h:g} h; expected a positive period. Correct "
            "--accumulation."
        )
    if found_h is not None and abs(found_h - stated_h) > SAME_WITHIN_H:
        raise InputError(
            f"{named} is summed over {found_h:g} h as its file says; got an accumulation of "
            f"{stated_h:g} h. Leave out --accumulation, or correct the file."
        )


def _powers(units: str) -> dict[str, int]:
    """The powers of the units' terms; empty if one of them is unknown."""
    text = units.strip().casefold().translate(str.maketrans("⁻¹²·", "-12."))
    text = text.replace("**", "").replace("^", "").replace(" per ", "/")
    powers: dict[str, int] = {}
    position = 0
    while position < len(text):
        term = _UNIT_TERM.match(text, position)
        if term is None or term[2] not in _UNIT_NAMES:
            return {}
        name = _UNIT_NAMES[term[2]]
        powers[name] = powers.get(name, 0) + int(term[3] or 1) * (-1 if term[1] else 1)
        position = term.end()
    return powers
