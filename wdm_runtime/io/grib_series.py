"""GRIB2 messages as one series of times."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from wdm_runtime.errors import InputError
from wdm_runtime.io.grib_header import Header


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
            f"{has} of {len(times)} times; expected one a time. Extract one level or run "
            "first (grib_copy -w level=0 FILE OUT.grib2)."
        )


def _one_period(headers: list[Header]) -> str:
    """What to do about several periods: sums from one start, as of a forecast, are told apart."""
    starts = {header.end - timedelta(hours=header.span_h or 0) for header in headers}
    if len(starts) > 1 or headers[0].product.averaged:
        return _extract(f"lengthOfTimeRange={_least(h.range_length for h in headers)}")
    return (
        f"All are summed from {starts.pop().isoformat()}: take the differences of successive times "
        "first (cdo -f nc deltat FILE OUT.nc), and state their period with --accumulation."
    )


def _extract(condition: str) -> str:
    return f"Extract one first (grib_copy -w {condition} FILE OUT.grib2)."


def _least(numbers: Iterable[int | None]) -> int | None:
    return min((number for number in numbers if number is not None), default=None)
