"""Precipitation from GRIB2, plain or gzipped: MRMS's products and WMO's rates and amounts.

MRMS's negative values are codes (-1 missing, -3 no radar coverage) and so is 9999; none of them is
dry.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField, Source
from wdm_runtime.io.foreign import epoch_axis, to_rates
from wdm_runtime.io.grib_header import (
    MRMS_PRODUCTS,
    WMO_PRODUCTS,
    Get,
    Header,
    header_of,
    identity_of,
    load_eccodes,
)
from wdm_runtime.io.units import to_mm_h

_SENTINEL_FROM = 9999.0  # also ecCodes' own mark where a bitmap says missing
_DATA_SECTION = 7


def read_grib2(path: Path) -> PrecipField:
    """Read the precipitation of a GRIB2 file as rates [mm h-1].

    Messages of other parameters are passed over; those of precipitation become the times, in
    order. ``source`` keeps the file's units: amounts stay "mm" or "kg m-2" with their period.

    Parameters
    ----------
    path
        GRIB2 on a regular latitude-longitude grid, plain or gzipped. Longitudes stay as they are.

    Returns
    -------
    PrecipField
        (time, y, x) float32, NaN where missing. Of several messages each is decoded when it is
        asked for.

    Raises
    ------
    InputError
        Not GRIB2, damaged, or no precipitation; several products, grids, ensemble members or
        periods; or two messages of one time; not a regular latitude-longitude grid.
    MissingDependencyError
        Without the extra ``grib``.
    """
    eccodes = load_eccodes("Reading GRIB2")
    found: list[tuple[Header, bytes]] = []
    others: list[str] = []
    for message in _messages(path, _content(path)):
        with _handle(path, eccodes, message) as get:
            identity = identity_of(get)
            if identity in MRMS_PRODUCTS or identity in WMO_PRODUCTS:
                found.append((header_of(path, get, identity), message))
            else:
                others.append("/".join(map(str, identity)))
    if not found:
        raise InputError(
            f"{path}: holds GRIB2 parameter {', '.join(sorted(set(others)))}; expected an MRMS "
            "rate or hourly amount, 209/6/{1,2,9,30,37}, or WMO's 0/1/{7,8,52}. Hand in a "
            "PrecipRate or QPE_01H file, or a precipitation rate or amount."
        )
    headers = [header for header, _ in found]
    _require_one_series(path, headers)
    found.sort(key=lambda pair: pair[0].end)
    first = found[0][0]
    frames = GribFrames(path, first, tuple(message for _, message in found))
    ends = [header.end for header, _ in found]
    # Every message once, so that damage is found here and not half-way through the work.
    decoded = frames[0]
    valid = np.isfinite(decoded).any() + sum(
        np.isfinite(frames[index]).any() for index in range(1, len(found))
    )
    if not valid:
        raise InputError(
            f"{path}: '{first.name}' has no valid value in its {len(found)} messages; expected at "
            "least one. Hand in another file."
        )
    return PrecipField(
        rate_mm_h=decoded[None] if len(found) == 1 else frames,
        grid=first.grid(),
        valid_times=tuple(end.isoformat(timespec="seconds") for end in ends),
        source=Source(
            path=str(path),
            variable=first.name,
            units=first.units,
            period_h=first.period_h,
            cell_methods="time: mean" if first.averaged else "time: sum" if first.period_h else "",
            time=epoch_axis(ends, first.period_h),
        ),
    )


@dataclass(frozen=True, repr=False)
class GribFrames:
    """Rates [mm h-1] of packed messages, each decoded when it is asked for."""

    path: Path
    header: Header
    messages: tuple[bytes, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(time, y, x)."""
        return len(self.messages), self.header.rows, self.header.columns

    def __getitem__(self, index: int) -> npt.NDArray[np.float32]:
        header = self.header
        eccodes = load_eccodes("Reading GRIB2")
        with _handle(self.path, eccodes, self.messages[index]) as get:
            values = np.asarray(get("values"), dtype=np.float64)
        values = values.reshape(header.rows, header.columns)
        missing = values >= _SENTINEL_FROM
        if header.name not in WMO_PRODUCTS.values():  # MRMS's codes
            missing |= values < 0
        values = np.where(missing, np.nan, values)
        label = f"{self.path}: '{header.name}'"
        return to_rates(label, values, to_mm_h(header.units, header.period_h))


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected GRIB2, plain or gzipped. "
            "Fetch the file again."
        ) from error


def _messages(path: Path, content: bytes) -> Iterator[bytes]:
    """The messages of a file; bulletin headers between them are passed over."""
    start = content.find(b"GRIB")
    if start < 0:
        raise InputError(
            f"{path}: is not GRIB2 (no message in its {len(content)} bytes); expected a "
            "precipitation field. Fetch the file again."
        )
    while start >= 0:
        if content[start + 7 : start + 8] not in (b"\x02", b""):
            raise InputError(
                f"{path}: holds GRIB edition {content[start + 7]}; expected edition 2. Convert it "
                "first (grib_set -s edition=2), or fetch the file again."
            )
        stop = start + int.from_bytes(content[start + 8 : start + 16], "big")
        message = content[start:stop]
        if len(message) < 20 or message[-4:] != b"7777":
            raise InputError(
                f"{path}: the GRIB2 message at byte {start} is damaged (no end after "
                f"{stop - start} bytes); expected a complete field. Fetch the file again."
            )
        if _fields(message) != 1:
            raise InputError(
                f"{path}: the GRIB2 message at byte {start} holds {_fields(message)} fields; "
                "expected one a message. Split them first (grib_copy FILE 'OUT_[count].grib2')."
            )
        yield message
        start = content.find(b"GRIB", stop)


def _fields(message: bytes) -> int:
    """How many data sections a message has."""
    position, count = 16, 0
    while position + 5 <= len(message) - 4:
        count += message[position + 4] == _DATA_SECTION
        position += max(int.from_bytes(message[position : position + 4], "big"), 5)
    return count


@contextmanager
def _handle(path: Path, eccodes: Any, message: bytes) -> Iterator[Get]:
    """Access to the keys of one message, with ecCodes' complaints made ours."""
    handle = None
    try:
        handle = eccodes.codes_new_from_message(message)

        def get(key: str) -> Any:
            if key == "values":
                return eccodes.codes_get_values(handle)
            return eccodes.codes_get(handle, key) if eccodes.codes_is_defined(handle, key) else None

        yield get
    except (eccodes.CodesInternalError, TypeError) as error:
        raise InputError(
            f"{path}: the GRIB2 message is damaged ({error}); expected a complete field. "
            "Fetch the file again."
        ) from error
    finally:
        if handle is not None:
            eccodes.codes_release(handle)


def _require_one_series(path: Path, headers: list[Header]) -> None:
    """The messages must differ in their times alone."""
    for what, values, remedy in (
        ("products", {h.name for h in headers}, "grib_copy -w parameterNumber=52"),
        ("members", {h.member for h in headers}, "grib_copy -w perturbationNumber=0"),
        ("periods [h]", {h.period_h for h in headers}, "grib_copy -w lengthOfTimeRange=1"),
        ("grids", {(h.rows, h.columns, h.corners) for h in headers}, "grib_copy -w Ni=..."),
        ("kinds", {(h.units, h.averaged) for h in headers}, "grib_copy -w"),
    ):
        if len(values) > 1:
            listed = ", ".join(sorted(map(str, values))[:10])
            raise InputError(
                f"{path}: holds {len(headers)} precipitation messages of {len(values)} {what} "
                f"({listed}); expected one. Extract one first ({remedy} FILE OUT.grib2)."
            )
    ends = [header.end for header in headers]
    if len(set(ends)) < len(ends):
        raise InputError(
            f"{path}: holds {len(ends)} precipitation messages of {len(set(ends))} times; expected "
            "one a time. Extract one level or run first (grib_copy -w level=0 FILE OUT.grib2)."
        )
