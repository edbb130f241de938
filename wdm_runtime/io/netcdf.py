"""NetCDF files as labelled datasets, opened for each read and never left open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.io.classic import check_classic_length
from wdm_runtime.io.dataset import (
    LIBRARY_LOCK,
    Dataset,
    Index,
    Variable,
    check_unchanged,
    identity,
)
from wdm_runtime.io.hdf5_filters import check_filters, chunk_bytes
from wdm_runtime.io.netcdf_library import open_dataset
from wdm_runtime.io.precipitation import read_precipitation


def read_netcdf(
    path: Path, variable: str | None = None, accumulation_h: float | None = None
) -> PrecipField:
    """Read one precipitation variable of a NetCDF file as rates [mm h-1].

    Parameters
    ----------
    path
        NetCDF-3 or NetCDF-4 file on a regular grid; groups are searched too.
    variable
        Name, or path within the file (``Grid/precipitation``); None looks for the only variable
        with the standard_name or well-known name and the units of precipitation.
    accumulation_h
        The period that amounts are summed over [h], where the file does not say.

    Returns
    -------
    PrecipField
        Rates (time, y, x) float32, rows in the file's order, NaN where missing. Each frame is read
        from the file when it is asked for, and none is kept. ``source`` holds what the writer
        needs.

    Raises
    ------
    InputError
        See `wdm_runtime.io.read_field`; also when a frame is read and the file is gone or changed.
    """
    path = Path(path)
    file = NetcdfFile(path)
    with _library_errors(path):
        check_classic_length(path)  # first: the library may never come back from a damaged header
    with file.opened() as opened:
        dataset = Dataset(str(path), dict(file.variables(opened)))
        return read_precipitation(dataset, str(path), variable, accumulation_h)


def is_odim(path: Path) -> bool:
    """Whether an HDF5 file follows ODIM_H5, the convention of European weather radars."""
    try:
        with LIBRARY_LOCK, open_dataset(path) as opened:
            conventions = str(getattr(opened, "Conventions", ""))
            return conventions.startswith("ODIM_H5") or {"what", "where"} <= set(opened.groups)
    except (OSError, RuntimeError, UnicodeError, AttributeError):
        return False  # reading it says what is wrong


class NetcdfFile:
    """A NetCDF file that opens for each read, or once for all reads within ``opened()``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = identity(path)
        self._opened: netCDF4.Dataset | None = None

    @contextmanager
    def opened(self) -> Iterator[netCDF4.Dataset]:
        """The open file, giving numbers as stored.

        Raises
        ------
        InputError
            It is damaged, no NetCDF, or not what it was.
        """
        with LIBRARY_LOCK, _library_errors(self.path):
            if self._opened is not None:
                yield self._opened
                return
            check_unchanged(self.path, self._identity)
            with open_dataset(self.path) as opened:
                opened.set_auto_maskandscale(False)
                self._opened = opened
                try:
                    yield opened
                finally:
                    self._opened = None

    def read(self, path: str, index: Index) -> npt.NDArray[Any]:
        """A part of a variable, as stored."""
        with self.opened() as opened:
            check_filters(self.path, opened[path])
            return np.asarray(opened[path][index])

    def variables(self, group: netCDF4.Dataset) -> Iterator[tuple[str, Variable]]:
        """All variables of a group and the groups within, by path."""
        for name, variable in group.variables.items():
            path = f"{group.path}/{name}".strip("/")
            yield path, self._variable(path, variable)
        for child in group.groups.values():
            yield from self.variables(child)

    def _variable(self, path: str, variable: netCDF4.Variable[Any]) -> Variable:
        numbers = isinstance(variable.datatype, np.dtype)
        dtype = np.dtype(variable.datatype) if numbers else None
        attributes = {name: variable.getncattr(name) for name in variable.ncattrs()}
        # Of one byte any number may be meant, so those have no default.
        fill = netCDF4.default_fillvals.get(dtype.str[1:]) if dtype and dtype.itemsize > 1 else None
        return Variable(
            path,
            tuple(variable.dimensions),
            tuple(variable.shape),
            dtype,
            attributes,
            read=lambda index: self.read(path, index),
            default_fill=fill,
            chunk_bytes=chunk_bytes(variable),
        )


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        remedy = "Fetch or write the file again."
        if "filter" in str(error).casefold():
            remedy = "Rewrite it with zlib compression, e.g. with nccopy -d 1."
        raise InputError(
            f"{path}: cannot be read ({error}); expected a complete NetCDF file. {remedy}"
        ) from error
