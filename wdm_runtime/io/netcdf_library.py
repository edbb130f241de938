"""Opening files with the netCDF4 library."""

from __future__ import annotations

from pathlib import Path

import netCDF4

from wdm_runtime.io.limits import reads_structure


def open_dataset(path: Path) -> netCDF4.Dataset:
    """Open a file for reading, within `limits.reads_structure`."""
    with reads_structure():
        # An absolute path is never mistaken for the address of a server.
        return netCDF4.Dataset(str(path.absolute()))
