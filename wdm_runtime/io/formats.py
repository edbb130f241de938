"""The readers of all formats behind one call, which reads in this process."""

from __future__ import annotations

import re
from pathlib import Path

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.io.units import check_stated_period

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HDF5_OFFSETS = (0, 512, 1024, 2048)  # a user block may come first
_HEAD_BYTES = _HDF5_OFFSETS[-1] + len(_HDF5)
# A bulletin's header may come first. The edition tells a message from a page that speaks of GRIB.
_GRIB = re.compile(rb"GRIB...[\x01\x02]", re.DOTALL)


def read_file(
    path: Path, variable: str | None = None, accumulation_h: float | None = None
) -> PrecipField:
    """Read precipitation here and now; see `wdm_runtime.io.read_field`.

    Raises
    ------
    InputError, MissingDependencyError
        As there.
    """
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name too long, a folder above without permission
        raise _unreadable(path, error) from error
    if is_folder:
        from wdm_runtime.io.xarray_reader import read_xarray

        return read_xarray(path, variable, accumulation_h)
    if not is_file:
        raise InputError(
            f"{path}: no such file; expected a precipitation field in NetCDF, GRIB2, ODIM_H5 or "
            "Zarr on this machine. Check the path, or fetch it first."
        )
    head = _head(path)
    if head.startswith(b"PK\x03\x04"):
        from wdm_runtime.io.xarray_reader import read_xarray

        return read_xarray(path, variable, accumulation_h)
    is_hdf5 = any(head.startswith(_HDF5, offset) for offset in _HDF5_OFFSETS)
    if not is_hdf5 and not head.startswith(b"CDF"):
        return _read_grib(path, head, variable, accumulation_h)
    from wdm_runtime.io.netcdf import is_odim, read_netcdf

    if is_hdf5 and is_odim(path):
        from wdm_runtime.io.odim import read_odim

        return _as_asked(read_odim(path, variable), accumulation_h)
    return read_netcdf(path, variable, accumulation_h)


def _read_grib(
    path: Path, head: bytes, variable: str | None, accumulation_h: float | None
) -> PrecipField:
    """Not asked first: NetCDF that was made of GRIB speaks of it, too."""
    if not head.startswith((b"GRIB", b"\x1f\x8b")) and not _GRIB.search(head):
        raise InputError(
            f"{path}: cannot be read (it starts with {head[:8]!r}); expected NetCDF, GRIB2 (also "
            "gzipped), ODIM_H5 or Zarr. Convert it first, or hand in another file."
        )
    from wdm_runtime.io.grib2 import read_grib2

    return _as_asked(read_grib2(path, variable, accumulation_h), accumulation_h)


def _as_asked(field: PrecipField, accumulation_h: float | None) -> PrecipField:
    """The field, if its period is the one asked for, of formats that state it."""
    source = field.source
    named = f"{source.path}: variable '{source.variable}'"
    check_stated_period(named, source.period_h, accumulation_h)
    if accumulation_h is not None and source.period_h is None:
        raise InputError(
            f"{named} is a rate as the file says; got an accumulation of {accumulation_h:g} h. "
            "Leave out --accumulation."
        )
    return field


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: cannot be read ({error.strerror}); expected a file with permission to read. "
        "Check the path, or change the mode of the file and of the folders above."
    )
