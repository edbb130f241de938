"""Outputs as their arrays and attributes, in NetCDF or Zarr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import netCDF4
import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError, require
from wdm_runtime.io.atomic import ZARR_SUFFIX
from wdm_runtime.io.dataset import LIBRARY_LOCK, Index, Variable
from wdm_runtime.io.netcdf_library import open_dataset
from wdm_runtime.io.units import amount_factor, rate_factor, to_mm_h

_DIMENSIONS = "_ARRAY_DIMENSIONS"  # of Zarr format 2


class _Array(Protocol):
    """An array on disk: netCDF4's variable without masks and scales, or Zarr's array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, index: tuple[int | slice, ...], /) -> Any: ...


@dataclass(frozen=True)
class Stored:
    """One array of an output that is open."""

    path: Path
    array: _Array
    dimensions: tuple[str, ...]
    attributes: dict[str, Any]

    def read(self, index: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        """A part of the array."""
        with _reading(self.path):
            return np.asarray(self.array[index])

    def decoded(self, index: Index) -> npt.NDArray[np.float64]:
        """A part of the array as the numbers meant, NaN where missing."""
        name, shape = "", tuple(self.array.shape)
        described = Variable(
            name, self.dimensions, shape, self.array.dtype, self.attributes, self.read
        )
        return described.decoded(index)

    def mm_h(self, period_h: float | None) -> float | None:
        """What makes rates, or amounts over a period [h], mm h-1; None for other things."""
        units = str(self.attributes.get("units", ""))
        if amount_factor(units) is not None and period_h is not None:
            return to_mm_h(units, period_h)
        return rate_factor(units)


def open_output(path: Path, stack: ExitStack) -> tuple[dict[str, Stored], dict[str, Any]]:
    """All arrays of an output by name, and its global attributes; hold `LIBRARY_LOCK`.

    Raises
    ------
    InputError
        It is missing or cannot be read.
    MissingDependencyError
        Zarr without the extra ``xarray``.
    """
    with _reading(path):
        if path.is_dir() or path.suffix.lower() == ZARR_SUFFIX:
            group = require("zarr", "xarray", "Reading Zarr").open_group(str(path), mode="r")
            return {name: _zarr(path, array) for name, array in group.arrays()}, dict(group.attrs)
        dataset = stack.enter_context(open_dataset(path))
        dataset.set_auto_maskandscale(False)
        stored = {name: _netcdf(path, variable) for name, variable in dataset.variables.items()}
        return stored, {name: dataset.getncattr(name) for name in dataset.ncattrs()}


def read_attributes(output: Path) -> dict[str, Any]:
    """The global attributes of an output in NetCDF or Zarr.

    Raises
    ------
    InputError
        It is missing or cannot be read.
    MissingDependencyError
        Zarr without the extra ``xarray``.
    """
    with LIBRARY_LOCK, ExitStack() as stack:
        _, attributes = open_output(output, stack)
    return attributes


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected an output of 'wdm-run infer' in NetCDF or "
            "Zarr. Hand in another file."
        ) from error


def _netcdf(path: Path, variable: netCDF4.Variable[Any]) -> Stored:
    attributes = {name: variable.getncattr(name) for name in variable.ncattrs()}
    return Stored(path, variable, variable.dimensions, attributes)


def _zarr(path: Path, array: Any) -> Stored:
    attributes = dict(array.attrs)
    dimensions = tuple(attributes.pop(_DIMENSIONS, ()))
    if array.metadata.fill_value is not None:
        attributes["_FillValue"] = array.metadata.fill_value
    return Stored(path, array, dimensions, attributes)
