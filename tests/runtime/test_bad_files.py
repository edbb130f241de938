"""What no answer can be had from: `wdm-run infer` says what is wrong and leaves nothing behind."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import bad_files as bad
import numpy as np
import pytest
from bad_files import amounts, grib, netcdf, odim, rain_with, truncated, written
from netcdf_files import LAT, LON, RAIN, rain_file

from wdm_runtime.errors import InputError
from wdm_runtime.io import read_field

SECONDS, MEGABYTES = 20.0, 200.0
AGAIN, OTHER, CHOOSE = "Fetch the file again", "Hand in another file", "with --variable"
FORMATS = "expected NetCDF, GRIB2 (also gzipped), ODIM_H5 or Zarr"
WHOLE, EVEN, PERIOD = (
    "expected a complete NetCDF file",
    "expected an even spacing",
    "--accumulation",
)
TWO_CELLS, LARGER, ASSUME = "expected at least two", "Hand in a larger area", "--assume-factor"
REGRID, RATE = "Regrid", "expected a rate convertible to 'mm h-1'"
RAINY = "expected one with a standard_name like 'lwe_precipitation_rate'"
BOX, TIMES = "Correct --bbox", "2 times from 2022-08-09T15:00:00 to 2022-08-09T16:00:00"
QUANTITY, MESSAGE = "expected RATE [mm/h] or ACRR [mm]", "expected a complete field"
TEMPERATURE = {"discipline": 0, "parameterCategory": 0, "parameterNumber": 0}
FLUX = {"discipline": 0, "parameterCategory": 1, "parameterNumber": 52}
MEMBERS = [{**FLUX, "productDefinitionTemplateNumber": 1, "perturbationNumber": n} for n in (1, 2)]
FROM_90 = {"latitudeOfLastGridPointInDegrees": 90.05}
HOUR_AND_THREE, FROM_ONE_START = [[-1, 0], [-2, 1]], [[-1, 0], [-1, 1]]
LIMITED = ("--max-memory", "256MiB")
TEXTS = {"values": np.full(RAIN.shape, "wet", object), "dtype": str}


class Bad(NamedTuple):
    """A kind of bad file or selection: how to make it, and what the message has to say."""

    make: Callable[[Path], Path]
    got: str  # with the variable where there is one
    expected: str
    remedy: str
    options: tuple[str, ...] = ()


def rain(**changes: Any) -> Callable[[Path], Path]:
    return lambda folder: netcdf(folder, **changes)


def centres(start: float, step: float, count: int) -> np.ndarray:
    return start + step * np.arange(count)


def on_extra(name: str, size: int) -> dict[str, Any]:
    """Rain with another dimension."""
    values = np.broadcast_to(RAIN[:, None], (2, size, 4, 5))
    return {"values": values, "dimensions": ("time", name, "lat", "lon"), "sizes": {name: size}}


CONTAINERS = {
    "missing file": Bad(lambda p: p / "no.nc", "no such file", "expected a prec", "Check the path"),
    "name too long": Bad(
        lambda p: p / (300 * "x"), "too long", "expected a file", "Check the path"
    ),
    "remote": Bad(
        lambda p: Path("https://example.org/in.nc"), "no such file", "on this machine", "fetch it"
    ),
    "folder": Bad(bad.folder_with_files, "without Zarr metadata", "or a Zarr store", "one file"),
    "empty file": Bad(written("in.nc", b""), "starts with b''", FORMATS, "Convert it"),
    "text": Bad(written("in.nc", b"lat,lon,rain\n"), "b'lat,lon,'", FORMATS, "Convert it"),
    "web page": Bad(written("in.nc", b"<!DOCTYPE html>"), "b'<!DOCTYP'", FORMATS, "another file"),
    "part of NetCDF-3": Bad(
        lambda p: truncated(netcdf(p, form="NETCDF3_CLASSIC"), 0.8),
        "it is truncated",
        WHOLE,
        "Fetch",
    ),
    "part of a NetCDF-3 header": Bad(
        lambda p: truncated(netcdf(p, form="NETCDF3_CLASSIC"), 0.1), "incomplete", WHOLE, "Fetch"
    ),
    "part of NetCDF-4": Bad(lambda p: truncated(netcdf(p)), "HDF error", WHOLE, "Fetch"),
    "part of GRIB2": Bad(lambda p: truncated(grib(p)), "no end after", MESSAGE, AGAIN),
    "GRIB2 and part of another": Bad(
        lambda p: truncated(grib(p, {}, {"hour": 15}), 0.8), "no end after", MESSAGE, AGAIN
    ),
    "damaged gzip": Bad(bad.grib_gzipped, "cannot be read", "expected GRIB2", AGAIN),
    "gzipped NetCDF": Bad(bad.netcdf_gzipped, "unpacks to NetCDF", "other formats plain", "gunzip"),
    "gzipped text": Bad(written("in.gz", bad.gzip.compress(b"rain")), "not GRIB2", "expe", AGAIN),
    "unknown HDF5 filter": Bad(
        bad.unknown_filter, "HDF5 filter 499", "expected filters that netCDF4 has", "nccopy -F none"
    ),
    "huge chunks": Bad(bad.huge_chunk, "MiB to read", "MiB of memory", "--max-memory", LIMITED),
    "deflate bomb": Bad(
        bad.deflate_bomb,
        "cannot be read",
        "expected a complete NetCDF file",
        "--max-memory",
        LIMITED,
    ),
    "gzip bomb": Bad(
        bad.gzip_bomb, "unpacks to more than 0.0625 GiB", "expected less", "--max-memory", LIMITED
    ),
    "damaged Zarr": Bad(bad.damaged_zarr, "float77", "xarray can open", "Fetch or write it again"),
}
VARIABLES = {
    "no variables": Bad(bad.without_variables, "no precipitation variable", RAINY, OTHER),
    "no precipitation": Bad(
        rain(name="t2m", units="K", standard_name=None), "only 't2m' [K]", RAINY, CHOOSE
    ),
    "several": Bad(bad.two_variables, "'rain' [mm h-1], 'snow' [mm h-1]", "expected one", CHOOSE),
    "units of temperature": Bad(rain(units="K"), "'rain' has units 'K'", RATE[9:], CHOOSE),
    "no units": Bad(rain(units=None), "'rain' has no units", RATE[9:], "attribute 'units'"),
    "unknown units": Bad(rain(units="dBZ m"), "'rain' has units 'dBZ m'", RATE[9:], CHOOSE),
    "amount without period": Bad(amounts, "'tp' has units 'mm'", RATE, f"State it with {PERIOD}"),
    "another period": Bad(
        lambda p: amounts(p, [[-1, 0], [0, 1]]),
        "'tp' is summed over 1 h",
        "got an accumulation of 3 h",
        f"Leave out {PERIOD}",
        (PERIOD, "3h"),
    ),
    "no such period": Bad(
        amounts, "'often'", "expected a positive number and s, min", PERIOD, (PERIOD, "often")
    ),
    "period of a rate": Bad(
        rain(), "'rain' has units 'mm h-1', a rate", "'mm'", f"Leave out {PERIOD}", (PERIOD, "1h")
    ),
    "varying periods": Bad(
        lambda p: amounts(p, HOUR_AND_THREE), "'tp' has amounts over 1 to 3 h", "same", "Divide"
    ),
    "accumulated since start": Bad(
        lambda p: amounts(p, FROM_ONE_START), "'tp' has amounts summed from", "one", "differences"
    ),
    "a line": Bad(
        rain(values=RAIN[0, :, 0], dimensions=("lat",)), "no precipitation", RAINY, OTHER
    ),
    "a line asked for": Bad(
        rain(values=RAIN[0, :, 0], dimensions=("lat",)),
        "no field 'rain', only a variable (lat)",
        "expected numbers in two dimensions",
        OTHER,
        ("--variable", "rain"),
    ),
    "texts": Bad(
        rain(**TEXTS), "that holds no numbers", "expected num", OTHER, ("--variable", "rain")
    ),
    "levels": Bad(rain(**on_extra("lev", 3)), "'rain' has 3 entries along 'lev'", "one", "Extract"),
    "ensemble": Bad(rain(**on_extra("ens", 5)), "'rain' has 5 entries along 'ens'", "one", "Ext"),
    "factor of 0": Bad(
        bad.with_attribute(scale_factor=0.0), "'rain' has scale_factor = ", "finite", "Correct"
    ),
    "text for an offset": Bad(
        bad.with_attribute(add_offset="ten"), "'rain' has add_offset", "finite", "Correct"
    ),
}
NUMBERS = {
    "negative rain": Bad(
        rain(values=rain_with((0, 0, 0), value=-0.5)), "'rain' has 1 negative", "at least 0", "Set"
    ),
    "infinite": Bad(
        rain(values=rain_with((1, 0, 0), value=np.inf)),
        "'rain' has 1 infinite",
        "finite",
        "Correct",
    ),
    "all missing": Bad(
        rain(values=np.full(RAIN.shape, 7), missing_value=7.0),
        "'rain' has no valid value",
        "at least",
        CHOOSE,
    ),
    "all NaN": Bad(
        rain(values=np.full(RAIN.shape, np.nan)), "'rain' has no valid value", "at least", CHOOSE
    ),
    "only codes": Bad(
        rain(values=np.full(RAIN.shape, -999.0)), "'rain' has no valid value", "at least", CHOOSE
    ),
    "huge": Bad(bad.huge, "'rain' has 1 x 200000 x 200000 cells", "MiB", "Extract a part"),
    "huge planes": Bad(bad.huge_curvilinear, "'lat' has 200000 x 200000 cells", "MiB", "Extract"),
    "huge Zarr": Bad(bad.huge_zarr, "'rain' has 200000 x 200000 cells", "MiB", "Extract a part"),
}
PLACES = {
    "one row": Bad(
        rain(values=RAIN[:, :1], lat=LAT[:1]), "'rain' has 1 x 5 cells", TWO_CELLS, LARGER
    ),
    "one column of assumed width": Bad(
        rain(values=RAIN[..., :1], lon=LON[:1]), "4 x 1 cells", TWO_CELLS, LARGER, (ASSUME,)
    ),
    "one cell": Bad(
        rain(values=RAIN[:, :1, :1], lat=LAT[:1], lon=LON[:1]), "1 x 1 cells", TWO_CELLS, LARGER
    ),
    "no row": Bad(rain(values=RAIN[:, :0], lat=()), "no entry along 'lat'", "at least one", OTHER),
    "irregular": Bad(rain(lat=[50, 50.1, 50.25, 50.3]), "'lat' has spacings", EVEN, REGRID),
    "curvilinear": Bad(bad.curvilinear, "'lat' varies along both", "a regular grid", REGRID),
    "no coordinates": Bad(bad.without_coordinates, "'rain' has dim", "with coordinates", REGRID),
    "NaN coordinate": Bad(
        rain(lat=[50, np.nan, 50.2, 50.3]),
        "'lat' has 1 values that are not finite among its 4",
        "expected all",
        "regular",
    ),
    "infinite coordinate": Bad(
        rain(lon=[5, 5.1, 5.2, np.inf, np.inf]), "'lon' has 2 values that", "expected", "regular"
    ),
    "one place": Bad(rain(lat=[50, 50, 50, 50]), "'lat' has 4 cells, all at 50", EVEN, "Correct"),
    "repeated row": Bad(rain(lat=[50, 50.1, 50.1, 50.2]), "'lat' has spacings", EVEN, REGRID),
    "beyond the pole": Bad(
        rain(lat=centres(89.85, 0.1, 4)),
        "'lat' goes from 89.85 to 90.15 in units 'degrees_north'",
        "expected latitudes from -90 to 90",
        "Correct",
    ),
    "metres as degrees": Bad(
        rain(lat=centres(5e6, 0.1, 4)), "'lat' goes from 5e+06", "from -90 to 90", "units"
    ),
    "quarter degrees": Bad(
        rain(lat=centres(50, 0.25, 4), lon=centres(5, 0.25, 5)),
        "'rain' has cells of 25 x 25 km",
        "expected 10 km",
        "--assume-factor",
    ),
    "fine already": Bad(
        rain(lat=centres(50, 0.01, 4), lon=centres(5, 0.01, 5)), "1 x 1 km", "10 km", "--bundle"
    ),
}
MOMENTS = {
    "no time": Bad(rain(values=RAIN[:0], hours=()), "no entry along 'time'", "at least one", OTHER),
    "no such date": Bad(
        rain(time={"units": "hours since yesterday"}), "'time' has units", "since <YYYY", "Correct"
    ),
    "no date": Bad(rain(time={"units": "hours"}), "'time' has units 'hours'", "since <", "Correct"),
    "no such calendar": Bad(rain(time={"calendar": "maya"}), "'maya'", "since <YYYY", "Correct"),
    "missing time": Bad(rain(hours=(0, np.nan)), "'time'", "a number for each time", "Correct"),
    "endless time": Bad(rain(hours=(0, 1e30)), "'time' has units", "number for each", "Correct"),
    "repeated time": Bad(rain(hours=(3, 3)), "'time' has the time 2022-08-", "once", "Remove"),
}
FOREIGN = {
    "polar volume": Bad(lambda p: odim(p, "PVOL"), "object 'PVOL'", "composite", "wradlib"),
    "no quantity": Bad(lambda p: odim(p, quantity=None), "quantities none", QUANTITY, OTHER),
    "reflectivity": Bad(lambda p: odim(p, quantity="DBZH"), "'DBZH'", QUANTITY, "Z-R relation"),
    "no scale": Bad(lambda p: odim(p, xscale=None), "no xscale", "expected projdef", "Add"),
    "no such projection": Bad(
        lambda p: odim(p, projdef="+proj=flat"), "'+proj=flat'", "a PROJ definition", "Correct"
    ),
    "ODIM of another shape": Bad(
        lambda p: odim(p, xsize=6), "(4, 5)", "expected (4, 6)", "Correct"
    ),
    "ODIM of no size": Bad(lambda p: odim(p, ysize=np.nan), "ysize = nan", "a whole", "Correct"),
    "ODIM of no width": Bad(
        lambda p: odim(p, xscale=np.inf), "xscale = inf", "positive", "Correct"
    ),
    "ODIM beyond the pole": Bad(
        lambda p: odim(p, LL_lat=89.9), "'lat' goes from 89.95 to 90.25", "-90 to 90", "Correct"
    ),
    "huge ODIM": Bad(bad.huge_odim, "has 200000 x 200000 cells", "MiB", "Extract a part"),
    "part of ODIM": Bad(lambda p: truncated(odim(p)), "HDF error", "expected a complete", "Fetch"),
    "GRIB2 of temperature": Bad(lambda p: grib(p, TEMPERATURE), "0/0/0", "209/6/{1", "PrecipRate"),
    "GRIB2 on Lambert": Bad(
        lambda p: grib(p, {"sample": "GRIB2", "gridType": "lambert"}),
        "'PrecipRate' lies on grid type 'lambert'",
        "'regular_ll'",
        REGRID,
    ),
    "GRIB2 members": Bad(
        lambda p: grib(p, *MEMBERS),
        "'total_precipitation_rate' has 2 messages of 2 members (1, 2)",
        "one",
        "grib_copy",
    ),
    "JPEG 2000 of another size": Bad(
        bad.huge_jpeg, "'PrecipRate' is packed as 'grid_jpeg'", "expected 20 numbers", "Fetch"
    ),
    "JPEG 2000 that crashes its library": Bad(
        written("in.grib2", bad.CRASHING), "SIGABRT", "expected a precipitation field", "fetch"
    ),
    "GRIB2 twice": Bad(
        lambda p: grib(p, {}, {"values": RAIN[0] + 1}),
        "'PrecipRate' has 2 mess",
        "one",
        "grib_copy",
    ),
    "GRIB2 of no day": Bad(
        lambda p: grib(p, {"dataDate": 20220231}), "'PrecipRate' has the time", "a date", "Fetch"
    ),
    "GRIB2 beyond the pole": Bad(
        lambda p: grib(p, {"latitudeOfFirstGridPointInDegrees": 90.35, **FROM_90}),
        "'lat' goes from 90.05 to 90.35",
        "-90 to 90",
        "Correct",
    ),
    "negative GRIB2": Bad(
        lambda p: grib(p, {**FLUX, "values": RAIN[0] - 1}), "'total_prec", "at least 0", "Correct"
    ),
    "no valid GRIB2": Bad(
        lambda p: grib(p, {"values": 0 * RAIN[0] - 3}), "'PrecipRate' has no", "at least one", OTHER
    ),
}
SELECTIONS = {
    "no such variable": Bad(
        rain(), "no field 'snow'", "one of 'rain' [mm h-1]", CHOOSE, ("--variable", "snow")
    ),
    "a coordinate": Bad(
        rain(), "no field 'lat'", "one of 'rain' [mm h-1]", CHOOSE, ("--variable", "lat")
    ),
    "no such product": Bad(grib, "'PrecipRate'", "'tp'", "Leave out", ("--variable", "tp")),
    "no such time": Bad(
        rain(), f"'rain' has {TIMES}", "within '2023-01'", "another --time", ("--time", "2023-01")
    ),
    "no such index": Bad(
        rain(), f"'rain' has {TIMES}", "an index from -2 to 1", "another --time", ("--time", "7")
    ),
    "no time at all": Bad(
        rain(), "'noon'", "expected an index like 0", "Correct --time", ("--time", "noon")
    ),
    "elsewhere": Bad(
        rain(), "'rain' covers W,S,E,N", "a box that meets it", BOX, ("--bbox", "50,0,60,10")
    ),
    "three numbers": Bad(
        rain(), "the box '5,50,6'", "expected 'W,S,E,N'", BOX, ("--bbox", "5,50,6")
    ),
    "upside down": Bad(rain(), "'5,51,6,50'", "with S not above N", BOX, ("--bbox", "5,51,6,50")),
}
# What speaks of the option alone: there is no file to blame.
NO_FILE = {"no such period", "no time at all", "three numbers", "upside down"}
TABLE = CONTAINERS | VARIABLES | NUMBERS | PLACES | MOMENTS | FOREIGN | SELECTIONS


def files(folder: Path) -> list[Path]:
    """All below a folder, without what the engine's library caches of itself."""
    cache = folder / "cache"
    return sorted(p for p in folder.rglob("*") if p != cache and cache not in p.parents)


@pytest.mark.parametrize("name", TABLE)
def test_a_typed_error_says_what_where_and_what_to_do(name, infer, tmp_path):
    case = TABLE[name]
    if name in FOREIGN:
        pytest.importorskip("pyproj")  # before ecCodes, whose wheel brings a PROJ of its own
    folder = tmp_path / "input"
    folder.mkdir()
    path = case.make(folder)
    before = files(tmp_path)
    started = time.monotonic()
    tracemalloc.start()
    try:
        code, out, message = infer("--no-pixel-probe", *case.options, source=path)
        peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    assert code == InputError.exit_code
    assert message.startswith("error: ") and "Traceback" not in out + message
    place = "" if name in NO_FILE else f"{path}: "
    assert message.startswith(f"error: {place}")
    for part in (case.got, case.expected, case.remedy):
        assert part in message
    assert message.rstrip().endswith(".")
    assert files(tmp_path) == before
    assert time.monotonic() - started < SECONDS and peak_mb < MEGABYTES


def test_every_row_differs():
    assert len(TABLE) == sum(
        map(len, (CONTAINERS, VARIABLES, NUMBERS, PLACES, MOMENTS, FOREIGN, SELECTIONS))
    )
    assert len(TABLE) >= 36 and TABLE.keys() >= NO_FILE


@pytest.mark.parametrize("make", [netcdf, grib, odim])
def test_the_makers_make_good_files_when_nothing_is_changed(make, tmp_path):
    found = read_field(make(tmp_path))
    assert found.grid.shape == (4, 5) and np.isfinite(found.load()).all()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(infer, tmp_path):
    path = rain_file(tmp_path / "in.nc")
    path.chmod(0)
    code, _, message = infer(source=path)
    assert code == 2 and f"{path}: cannot be read (Permission denied)" in message
    assert "change the mode" in message
