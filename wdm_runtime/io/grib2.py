"""MRMS precipitation from GRIB2, plain or gzipped, one message a file.

ecCodes knows MRMS's local table 209 only as ``unknown``, so the product is identified by its
discipline, category and number (NSSL's table v12.2). Negative values are codes (-1 missing,
-3 no radar coverage) and so is 9999; none of them is dry.
"""

from __future__ import annotations

import gzip
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from wdm_runtime.errors import InputError, require
from wdm_runtime.field import PrecipField, Source
from wdm_runtime.grid import Grid

MRMS_DISCIPLINE, MRMS_PRECIP_CATEGORY = 209, 6
# Number -> accumulation in hours; 0 is an instantaneous rate in mm/h.
MRMS_PRODUCTS = {
    1: ("PrecipRate", 0),
    2: ("RadarOnly_QPE_01H", 1),
    9: ("GaugeCorr_QPE_01H", 1),
    30: ("MultiSensor_QPE_01H_Pass1", 1),
    37: ("MultiSensor_QPE_01H_Pass2", 1),
}
_SENTINEL_FROM = 9999.0


def read_grib2(path: Path) -> PrecipField:
    """Read one MRMS message as rates [mm h-1]; hourly amounts [mm] count as mean rates.

    Raises
    ------
    InputError
        Not GRIB2, another product, or not a regular latitude-longitude grid.
    """
    eccodes = require("eccodes", "grib", "Reading GRIB2")
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected GRIB2, plain or gzipped. "
            "Fetch the file again."
        ) from error
    try:
        handle = eccodes.codes_new_from_message(raw)
    except eccodes.CodesInternalError as error:
        raise InputError(
            f"{path}: is not a GRIB2 message ({error}); expected an MRMS file. "
            "Fetch the file again."
        ) from error
    try:
        return _field(path, eccodes, handle)
    except eccodes.CodesInternalError as error:
        raise InputError(
            f"{path}: the GRIB2 message is damaged ({error}); expected a complete MRMS field. "
            "Fetch the file again."
        ) from error
    finally:
        eccodes.codes_release(handle)


def _field(path: Path, eccodes: Any, handle: Any) -> PrecipField:
    def get(key: str) -> Any:
        return eccodes.codes_get(handle, key)

    identity = tuple(get(key) for key in ("discipline", "parameterCategory", "parameterNumber"))
    name, hours = MRMS_PRODUCTS.get(identity[2], ("", 0))
    if identity[:2] != (MRMS_DISCIPLINE, MRMS_PRECIP_CATEGORY) or not name:
        raise InputError(
            f"{path}: holds GRIB2 parameter {'/'.join(map(str, identity))}; expected an MRMS "
            f"rate or hourly amount, 209/6/{{{','.join(map(str, MRMS_PRODUCTS))}}}. "
            "Hand in a PrecipRate or QPE_01H file."
        )
    if get("gridType") != "regular_ll":
        raise InputError(
            f"{path}: grid type is '{get('gridType')}'; expected 'regular_ll'. Regrid it first."
        )
    rows, columns = get("Nj"), get("Ni")
    values = eccodes.codes_get_values(handle).reshape(rows, columns)
    values = np.where((values < 0) | (values >= _SENTINEL_FROM), np.nan, values)
    if hours:
        values /= hours
    # Axes from the header: asking ecCodes for every cell's position takes seconds.
    south_first = bool(get("jScansPositively"))
    step = get("jDirectionIncrementInDegrees") * (1 if south_first else -1)
    y = get("latitudeOfFirstGridPointInDegrees") + step * np.arange(rows)
    x = get("longitudeOfFirstGridPointInDegrees") + get("iDirectionIncrementInDegrees") * np.arange(
        columns
    )
    date, clock = get("validityDate"), get("validityTime")
    valid = datetime.strptime(f"{date:08d}{clock:04d}", "%Y%m%d%H%M")
    attributes = (
        {"units": "degrees_north", "standard_name": "latitude"},
        {"units": "degrees_east", "standard_name": "longitude"},
    )
    return PrecipField(
        rate_mm_h=values[None].astype(np.float32),
        grid=Grid(y.astype(np.float64), x.astype(np.float64), ("lat", "lon"), attributes),
        valid_times=(valid.isoformat(),),
        source=Source(path=str(path), variable=name),
    )
