"""Precipitation from GRIB2, plain or gzipped: MRMS's products, WMO's rates and amounts, ECMWF's.

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
from wdm_runtime.io.grib_header import Header, header_of, load_eccodes
from wdm_runtime.io.grib_packing import check_packing
from wdm_runtime.io.grib_products import Get, Product, chosen_name, other_of, product_of
from wdm_runtime.io.grib_series import of_period, require_one_series
from wdm_runtime.io.limits import beat, memory_bytes
from wdm_runtime.io.units import check_stated_period, to_mm_h

_SENTINEL_FROM = 9999.0  # also ecCodes' own mark where a bitmap says missing
_DATA_SECTION = 7
_VALUE_SECTIONS = (5, 6, _DATA_SECTION)  # how they are packed, which are missing, and themselves
_NETCDF = (b"CDF", b"\x89HDF")
_CHUNK_BYTES = 1 << 20
# Of a file read as a whole: its bytes are there twice, as such and cut up, beside decoded frames.
_MEMORY_SHARE = 4


def read_grib2(
    path: Path, variable: str | None = None, accumulation_h: float | None = None
) -> PrecipField:
    """Read the precipitation of a GRIB2 file as rates [mm h-1].

    Messages of other parameters are passed over; those of precipitation become the times, in
    order. ``source`` keeps the file's units: amounts stay "mm", "m" or "kg m-2" with their period.
    Means stay rates, with the period they are of as time bounds. A message that comes twice, as
    sums do in GFS, counts once.

    Parameters
    ----------
    path
        GRIB2 on a regular latitude-longitude grid, plain or gzipped. Longitudes stay as they are.
    variable
        Which product, where the file holds several: "total_precipitation", or ecCodes' short name.
    accumulation_h
        Where the file holds sums over several periods: of which period they are read.

    Returns
    -------
    PrecipField
        (time, y, x) float32, NaN where missing. Of several messages each is decoded when it is
        asked for.

    Raises
    ------
    InputError
        Not GRIB2, damaged, or no precipitation; several products, grids, ensemble members or
        periods; or two messages of one time; not a regular latitude-longitude grid, one beyond a
        pole or beyond this machine's memory; infinite or negative rates, or nothing but missing
        cells; or an accumulation that is no positive number.
    MissingDependencyError
        Without the extra ``grib``.
    """
    eccodes = load_eccodes("Reading GRIB2")
    check_stated_period(str(path), None, accumulation_h)
    every: dict[tuple[Header, tuple[bytes, ...]], bytes] = {}
    for number, product, message in _chosen(path, eccodes, variable):
        with _handle(path, eccodes, message) as get:
            header = header_of(path, get, product, number)
            check_packing(path, product.name, get, _sections(message, _DATA_SECTION)[0])
        every.setdefault((header, tuple(_sections(message, *_VALUE_SECTIONS))), message)
    headers = of_period([header for header, _ in every], accumulation_h)
    require_one_series(path, headers)
    chosen = {header.number for header in headers}
    found = [(header, message) for (header, _), message in every.items() if header.number in chosen]
    found.sort(key=lambda pair: pair[0].end)
    first = found[0][0]
    product = first.product
    grid = first.grid(path)
    frames = GribFrames(path, first, tuple(message for _, message in found))
    ends = [header.end for header, _ in found]
    # Every message once, so that damage is found here and not half-way through the work.
    decoded = frames[0]
    valid = np.isfinite(decoded).any() + sum(
        np.isfinite(frames[index]).any() for index in range(1, len(found))
    )
    if not valid:
        raise InputError(
            f"{path}: '{product.name}' has no valid value in its {len(found)} messages; expected "
            "at least one. Hand in another file."
        )
    return PrecipField(
        rate_mm_h=decoded[None] if len(found) == 1 else frames,
        grid=grid,
        valid_times=tuple(end.isoformat(timespec="seconds") for end in ends),
        source=Source(
            path=str(path),
            variable=product.name,
            units=product.units,
            period_h=first.period_h,
            cell_methods="time: mean" if product.averaged else "time: sum" if first.span_h else "",
            time=epoch_axis(ends, first.span_h),
        ),
    )


def _chosen(path: Path, eccodes: Any, variable: str | None) -> list[tuple[int, Product, bytes]]:
    """The messages of one product, with their numbers in the file, from 1."""
    found: list[tuple[int, Product, bytes]] = []
    others = set()
    for number, message in enumerate(_messages(path, content_of(path)), start=1):
        with _handle(path, eccodes, message) as get:
            product = product_of(get)
            if product is None:
                others.add(other_of(get))
            else:
                found.append((number, product, message))
    name = chosen_name(path, {product for _, product, _ in found}, others, variable)
    return [entry for entry in found if entry[1].name == name]


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
        header, product = self.header, self.header.product
        eccodes = load_eccodes("Reading GRIB2")
        with _handle(self.path, eccodes, self.messages[index]) as get:
            values = np.asarray(get("values"), dtype=np.float64)
        if values.size != header.rows * header.columns:
            raise InputError(
                f"{self.path}: '{product.name}' has {values.size} values; expected {header.rows} x "
                f"{header.columns} as its grid says. Fetch the file again."
            )
        values = values.reshape(header.rows, header.columns)
        missing = values >= _SENTINEL_FROM
        if product.negative_is_missing:
            missing |= values < 0
        values = np.where(missing, np.nan, values)
        label = f"{self.path}: '{product.name}'"
        return to_rates(label, values, to_mm_h(product.units, header.period_h))


def content_of(path: Path, most_bytes: int | None = None) -> bytes:
    """All bytes of a file, unpacked if it is gzipped.

    There is a limit on what comes out and none on its ratio to what went in: an honest field of
    hardly any rain, packed plainly, shrinks as much as a bomb does.

    Parameters
    ----------
    path
        Plain or gzipped; its content tells, not its name.
    most_bytes
        How many may come out, which is watched while they do: what a file promises of its size may
        be untrue. None is a quarter of the memory.

    Raises
    ------
    InputError
        It cannot be read, is damaged, or holds more.
    """
    if most_bytes is None:
        most_bytes = memory_bytes() // _MEMORY_SHARE
    content = bytearray()
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if packed else raw
            while len(content) <= most_bytes and (chunk := file.read(_CHUNK_BYTES)):
                content += chunk
                beat()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected GRIB2, plain or gzipped. "
            "Fetch the file again."
        ) from error
    if len(content) > most_bytes:
        raise InputError(
            f"{path}: {'unpacks to' if packed else 'has'} more than {most_bytes / 2**30:.3g} GiB; "
            "expected less, as memory allows. Split it into files of fewer times first, or raise "
            "--max-memory."
        )
    return bytes(content)


def _messages(path: Path, content: bytes) -> Iterator[bytes]:
    """The messages of a file; bulletin headers between them are passed over."""
    if content.startswith(_NETCDF):
        raise InputError(
            f"{path}: unpacks to NetCDF or HDF5; expected GRIB2 in gzip, and other formats plain. "
            "Unpack it first (gunzip)."
        )
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
        fields = len(_sections(message, _DATA_SECTION))
        if fields != 1:
            raise InputError(
                f"{path}: the GRIB2 message at byte {start} holds {fields} fields; "
                "expected one a message. Split them first (grib_copy FILE 'OUT_[count].grib2')."
            )
        yield message
        start = content.find(b"GRIB", stop)


def _sections(message: bytes, *numbers: int) -> list[bytes]:
    """What a message's sections of these numbers hold, in their order."""
    position, found = 16, []
    while position + 5 <= len(message) - 4:
        stop = position + max(int.from_bytes(message[position : position + 4], "big"), 5)
        if message[position + 4] in numbers:
            found.append(message[position + 5 : stop])
        position = stop
    return found


@contextmanager
def _handle(path: Path, eccodes: Any, message: bytes) -> Iterator[Get]:
    """Access to the keys of one message, with ecCodes' complaints made ours."""
    beat()
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
