"""GRIB2 messages as one series of times."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from wdm_runtime.errors import InputError
from wdm_runtime.io.grib_header import Header
from wdm_runtime.io.units import SAME_WITHIN_H


def require_one_series(path: Path, headers: list[Header]) -> None:
    """Refuse messages of one name that differ in more than their times.

    Raises
    ------
    InputError
        Several parameters, members, periods or grids; or two messages of one time.
    """
    first = headers[0]
    has = f"{path}: '{first.product.name}' has {len(headers)} messages"
    parameters = {"/".join(map(str, h.product.identity)) for h in headers}
    members, periods_h = {h.member for h in headers}, {h.span_h for h in headers}
    grids = {(h.rows, h.columns, h.corners) for h in headers}
    for what, values, remedy in (
        ("parameters", parameters, _extract(f"parameterNumber={first.product.identity[-1]}")),
        ("members", members, _extract(f"perturbationNumber={_least(members)}")),
        ("periods [h]", periods_h, _one_period(headers)),
        ("grids", grids, _extract(f"Ni={first.columns},Nj={first.rows}")),
    ):
        if len(values) > 1:
            listed = ", ".join(sorted(map(str, values))[:10])
            raise InputError(f"{has} of {len(values)} {what} ({listed}); expected one. {remedy}")
    times = {header.end for header in headers}
    if len(times) < len(headers):
        raise InputError(
            f"{has} of {len(times)} times; expected one a time. {_one_of_a_time(headers)}"
        )


def of_period(headers: list[Header], accumulation_h: float | None) -> list[Header]:
    """Those summed over the period asked for, if every time has one: the others are other sums.

    Forecasts list the rain of the last hours beside all that fell since their beginning. Where a
    time had no sum left, as in a series that grows from a start, none is left out.
    """
    if accumulation_h is None:
        return headers
    asked = [
        header
        for header in headers
        if header.period_h is not None and abs(header.period_h - accumulation_h) <= SAME_WITHIN_H
    ]
    return asked if {h.end for h in asked} == {h.end for h in headers} else headers


def _one_of_a_time(headers: list[Header]) -> str:
    """How to extract one of several messages of a time, by what they differ in."""
    again = next(h for n, h in enumerate(headers) if h.end in {g.end for g in headers[:n]})
    twin = next(h for h in headers if h.end == again.end)
    if twin.level[0] != again.level[0]:
        return _extract(f"typeOfLevel={twin.level[0]}")
    if twin.level != again.level:
        return _extract(f"level={twin.level[1]}")
    if twin.reference != again.reference and len({h.reference for h in headers}) == 2:
        date, time = twin.reference
        return _extract(f"dataDate={date},dataTime={time}")
    if twin.reference != again.reference:
        return (
            f"Messages {twin.number} and {again.number} are of different runs: leave one out first "
            f"(grib_copy -w 'count!={again.number}' FILE OUT.grib2)."
        )
    return (
        f"Messages {twin.number} and {again.number} differ in their values alone: leave one out "
        f"first (grib_copy -w 'count!={again.number}' FILE OUT.grib2)."
    )


def _one_period(headers: list[Header]) -> str:
    """What to do about several periods: sums from one start, as of a forecast, are told apart."""
    starts = {header.end - timedelta(hours=header.span_h or 0) for header in headers}
    extract = _extract(f"lengthOfTimeRange={_least(h.range_length for h in headers)}")
    if headers[0].product.averaged:
        return extract
    shortest_h = min(header.span_h or 0 for header in headers)
    if len(of_period(headers, shortest_h)) < len(headers):
        hours = f"{shortest_h:g}h" if shortest_h >= 1 else f"{60 * shortest_h:g}min"
        return f"Choose one with --accumulation, like --accumulation {hours}."
    if len(starts) == len(headers):
        return extract
    if len(starts) > 1:
        return (
            "Some are summed from one start: take the differences of successive times of each "
            "first (cdo -f nc deltat FILE OUT.nc), and state their period with --accumulation."
        )
    return (
        f"All are summed from {starts.pop().isoformat()}: take the differences of successive times "
        "first (cdo -f nc deltat FILE OUT.nc), and state their period with --accumulation."
    )


def _extract(condition: str) -> str:
    return f"Extract one first (grib_copy -w {condition} FILE OUT.grib2)."


def _least(numbers: Iterable[int | None]) -> int | None:
    return min((number for number in numbers if number is not None), default=None)
