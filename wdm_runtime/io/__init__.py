"""Readers and writers of precipitation files."""

from __future__ import annotations

import threading
from pathlib import Path

from wdm_runtime.field import PrecipField
from wdm_runtime.io.formats import read_file
from wdm_runtime.io.reader import ReaderProcess

_shared: ReaderProcess | None = None
_shared_lock = threading.Lock()


def read_field(
    path: str | Path,
    variable: str | None = None,
    accumulation_h: float | None = None,
    *,
    isolate: bool = True,
) -> PrecipField:
    """Read precipitation from a file, whose format is told by its content.

    NetCDF (classic, 64-bit, 4, with groups), GRIB2, plain or gzipped, ODIM_H5 composites, and
    Zarr stores, on regular grids of latitude and longitude or of projected y and x.

    Longitudes keep the file's convention (0 to 360, or -180 to 180), but go on where they would
    jump: 179.95, -179.95 is read as 179.95, 180.05.

    Parameters
    ----------
    path
        File or Zarr folder; no remote address.
    variable
        Which one, where the file holds several precipitation variables: name, or path with groups;
        in GRIB2 a name like "total_precipitation", or ecCodes' short name.
    accumulation_h
        The period amounts are summed over [h], where the file does not say, or which of several
        to read of GRIB2.
    isolate
        Read in another process, one for all calls, so that a file that makes a library crash, hang
        or fill the memory ends that process and not this one. Use a `ReaderProcess` to set its
        limits. Without it the file has to be trusted, and a damaged one may stay open in HDF5,
        which then refuses a good one that is written over it in place; move it there instead
        (`os.replace`), as `wdm-run` does with what it writes.

    Returns
    -------
    PrecipField
        Rates (time, y, x) [mm h-1], NaN where missing. NetCDF and Zarr are read one frame at a
        time, as they are asked for: keep the file in place.

    Raises
    ------
    InputError
        No such file, or it is damaged or of another format; none or several variables fit; the
        units are not precipitation's, or the period of amounts is unknown, varies or is not the
        one stated; the grid is not regular; the times cannot be decoded; infinite or negative
        numbers, or nothing but missing cells; reading it crashes, hangs or takes too much memory.
    MissingDependencyError
        GRIB2 without the extra ``grib``, Zarr without the extra ``xarray``.
    """
    if not isolate:
        return read_file(Path(path), variable, accumulation_h)
    return _shared_reader().read_field(path, variable, accumulation_h)


def _shared_reader() -> ReaderProcess:
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = ReaderProcess()
        return _shared
