"""Units of precipitation rates: what turns them into mm h-1."""

from __future__ import annotations

import re

_MM = {(("mm", 1),): 1.0, (("cm", 1),): 10.0, (("m", 1),): 1e3, (("kg", 1), ("m", -2)): 1.0}
_PER_HOUR = {"s": 3600.0, "min": 60.0, "h": 1.0, "d": 1 / 24}
_UNIT_NAMES = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "minute", "minutes"), "min"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("d", "day", "days"), "d"),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), "mm"),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), "m"),
    "cm": "cm",
    "kg": "kg",
}
_UNIT_TERM = re.compile(r"\s*(/?)\s*([a-z]+)([+-]?\d+)?[\s.*]*")


def rate_factor(units: str) -> float | None:
    """What to multiply values in ``units`` by to get mm h-1; None if they are not a rate.

    Understands depths (mm, cm, m, or kg m-2 of water) per second, minute, hour or day, in UDUNITS
    or slash notation and any case: ``mm/hr``, ``kg m-2 s-1``, ``kg m**-2 s**-1``, ``m/s``.
    """
    text = units.strip().casefold().translate(str.maketrans("⁻¹²·", "-12."))
    text = text.replace("**", "").replace("^", "").replace(" per ", "/")
    powers: dict[str, int] = {}
    position = 0
    while position < len(text):
        term = _UNIT_TERM.match(text, position)
        if term is None or term[2] not in _UNIT_NAMES:
            return None
        name = _UNIT_NAMES[term[2]]
        powers[name] = powers.get(name, 0) + int(term[3] or 1) * (-1 if term[1] else 1)
        position = term.end()
    times = [name for name in powers if name in _PER_HOUR]
    if len(times) != 1 or powers.pop(times[0]) != -1:
        return None
    depth = _MM.get(tuple(sorted(powers.items())))
    return None if depth is None else depth * _PER_HOUR[times[0]]
