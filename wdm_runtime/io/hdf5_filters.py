"""Which filters a NetCDF-4 or HDF5 variable was packed with, and whether they are here.

netCDF4 tells of the filters it has; of others only the C library below it knows, which is asked for
their numbers where it can be reached.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any, Final

import netCDF4

from wdm_runtime.errors import InputError

# The HDF Group's registry of filters, those that precipitation was seen packed with.
_NAMES: Final = {
    4: "SZIP", 5: "N-Bit", 6: "scale-offset", 307: "BZIP2", 32000: "LZF", 32001: "Blosc",
    32004: "LZ4", 32008: "Bitshuffle", 32013: "ZFP", 32015: "Zstandard", 32017: "SZ",
    32026: "Blosc2", 32028: "FPZIP",
}  # fmt: skip
_ALWAYS_HERE: Final = 3  # deflate, shuffle and Fletcher-32 are 1 to 3
_MOST: Final = 32  # HDF5's own limit of filters in a pipeline (H5Z_MAX_NFILTERS)


def check_filters(path: Path, variable: netCDF4.Variable[Any]) -> None:
    """Refuse a variable that was packed with filters which are not here.

    Raises
    ------
    InputError
        One is missing; the message names all by number.
    """
    missing = _missing_filters(variable)
    if missing:
        raise InputError(
            f"{path}: variable '{variable.name}' is packed with HDF5 filter {', '.join(missing)}, "
            "which is not installed; expected filters that netCDF4 has. Rewrite it with zlib "
            "compression where the filter is (nccopy -F none -d 1 IN OUT), or install its plugin "
            "and name the folder in HDF5_PLUGIN_PATH."
        )


def _missing_filters(variable: netCDF4.Variable[Any]) -> tuple[str, ...]:
    """Numbers and names of the filters without which the variable cannot be read.

    Empty where all are here, or where the library does not say.
    """
    try:
        library = ctypes.CDLL(sys.modules["netCDF4._netCDF4"].__file__)  # finds what that links to
        inquire, available = library.nc_inq_var_filter_ids, library.nc_inq_filter_avail
        place = variable._grpid, variable._varid
    except (OSError, KeyError, AttributeError):  # another build of netCDF4
        return ()
    count, numbers = ctypes.c_size_t(0), (ctypes.c_uint * _MOST)()
    if inquire(*place, ctypes.byref(count), None) or count.value > _MOST:
        return ()
    if inquire(*place, ctypes.byref(count), numbers):
        return ()
    return tuple(
        f"{number} ({_NAMES[number]})" if number in _NAMES else f"{number}"
        for number in numbers[: count.value]
        if number > _ALWAYS_HERE and available(place[0], ctypes.c_uint(number))
    )


def chunk_bytes(variable: netCDF4.Variable[Any]) -> int:
    """Bytes that are unpacked at once to read any part of a variable; 0 if it is not chunked."""
    chunks, size = variable.chunking(), getattr(variable.dtype, "itemsize", 0)
    if not isinstance(chunks, (list, tuple)):
        return 0
    for cells in chunks:
        size *= int(cells)
    return size
