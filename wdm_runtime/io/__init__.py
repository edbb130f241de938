"""Readers and writers of precipitation files."""

from __future__ import annotations

from pathlib import Path

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField

_GRIB_SUFFIXES = (".grib2", ".grb2", ".grib2.gz", ".grb2.gz")


def read_field(path: str | Path, variable: str | None = None) -> PrecipField:
    """Read precipitation from a CF NetCDF or an MRMS GRIB2 file, chosen by its name.

    Parameters
    ----------
    path
        The file; ``.gz`` is taken for GRIB2 only.
    variable
        NetCDF variable, where the file holds several precipitation variables.

    Raises
    ------
    InputError
        The file is missing, unreadable or holds no precipitation.
    MissingDependencyError
        GRIB2 without the extra ``grib``.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; expected a precipitation field in NetCDF or GRIB2. "
            "Check the path."
        )
    if path.name.lower().endswith(_GRIB_SUFFIXES):
        from wdm_runtime.io.grib2 import read_grib2

        return read_grib2(path)
    from wdm_runtime.io.netcdf import read_netcdf

    return read_netcdf(path, variable)
