"""Outputs as their arrays and attributes: compares two, a slice at a time."""

from __future__ import annotations

import itertools
import math
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
from wdm_runtime.io.dataset import LIBRARY_LOCK
from wdm_runtime.io.layout import FILL_VALUE
from wdm_runtime.io.netcdf_library import open_dataset
from wdm_runtime.io.units import amount_factor, rate_factor, to_mm_h

_DIMENSIONS = "_ARRAY_DIMENSIONS"  # of Zarr format 2
_COMPARED_ATTRIBUTES = ("units", "calendar", "standard_name", "cell_methods", "grid_mapping")


@dataclass(frozen=True)
class Comparison:
    """What two outputs have in common.

    ``identical`` says that all arrays have the same names, dimensions, units and bits.
    ``max_abs_difference_mm_h`` is the largest difference between precipitation of the same cell
    [mm h-1]: NaN if some cell is missing in one of them only, or nothing could be compared.
    ``variables`` were compared, and ``differences`` says in one line each what differs.
    """

    identical: bool
    max_abs_difference_mm_h: float
    variables: tuple[str, ...]
    differences: tuple[str, ...]


class _Array(Protocol):
    """An array on disk: netCDF4's variable without masks and scales, or Zarr's array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, index: tuple[int | slice, ...], /) -> Any: ...


@dataclass(frozen=True)
class _Stored:
    path: Path
    array: _Array
    dimensions: tuple[str, ...]
    attributes: dict[str, Any]

    def read(self, index: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        """A part of the array."""
        with _reading(self.path):
            return np.asarray(self.array[index])

    def mm_h(self, period_h: float | None) -> float | None:
        """What makes precipitation mm h-1; None for other things, and for coordinates."""
        units = str(self.attributes.get("units", ""))
        if "_FillValue" not in self.attributes:
            return None
        if amount_factor(units) is not None and period_h is not None:
            return to_mm_h(units, period_h)
        return rate_factor(units)


def compare_outputs(a: Path, b: Path) -> Comparison:
    """Compare the arrays of two outputs in NetCDF or Zarr, coordinates and statistics included.

    Global attributes are not compared: among them are the times of writing.

    Raises
    ------
    InputError
        One of them is missing or cannot be read.
    MissingDependencyError
        Zarr without the extra ``xarray``.
    """
    with LIBRARY_LOCK, ExitStack() as stack:
        (first, said), (second, _) = (_open(path, stack) for path in (a, b))
        period_h = said.get("wdm_accumulation_h")
        shared = tuple(name for name in first if name in second)
        differences = [
            f"'{name}' is in {(a if name in first else b).name} only"
            for name in [*first, *second]
            if name not in shared
        ]
        hours = None if period_h is None else float(period_h)
        largest = [_compare(name, first[name], second[name], hours, differences) for name in shared]
    known = [value for value in largest if value is not None]
    most = float(np.max(known)) if known else math.nan  # np.max keeps NaN
    return Comparison(not differences, most, shared, tuple(differences))


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
        _, attributes = _open(output, stack)
    return attributes


def _compare(
    name: str, a: _Stored, b: _Stored, period_h: float | None, differences: list[str]
) -> float | None:
    """The largest difference [mm h-1], None if it is not precipitation; notes what differs."""
    for what, one, other in (
        ("dimensions", (a.dimensions, a.array.shape), (b.dimensions, b.array.shape)),
        ("type", a.array.dtype, b.array.dtype),
        *((key, a.attributes.get(key), b.attributes.get(key)) for key in _COMPARED_ATTRIBUTES),
    ):
        if one != other:
            differences.append(f"'{name}': {what} {one} against {other}")
    factor = a.mm_h(period_h)
    if a.array.shape != b.array.shape or a.attributes.get("units") != b.attributes.get("units"):
        return None if factor is None else math.nan
    unequal, largest = 0, 0.0
    for index in _slices(a.array.shape):
        one, other = a.read(index), b.read(index)
        apart = (one != other) & ~((one != one) & (other != other))  # NaN equals NaN
        if apart.any():
            unequal += int(apart.sum())
            largest = float(np.max((largest, _largest_difference(one[apart], other[apart]))))
    if unequal:
        differences.append(f"'{name}': {unequal} of {math.prod(a.array.shape)} values differ")
    return None if factor is None else largest * factor


def _largest_difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Of values that are not equal; NaN if one of a pair is missing."""
    if a.dtype.kind not in "iuf":
        return math.nan
    pair = [np.where(v == FILL_VALUE, np.nan, v.astype(np.float64)) for v in (a, b)]
    return float(np.max(np.abs(pair[0] - pair[1])))


def _slices(shape: tuple[int, ...]) -> Iterator[tuple[int | slice, ...]]:
    """Frames: all of the last two dimensions at a time."""
    yield from itertools.product(*(range(size) for size in shape[:-2]))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected an output of 'wdm-run infer' in NetCDF or "
            "Zarr. Hand in another file."
        ) from error


def _open(path: Path, stack: ExitStack) -> tuple[dict[str, _Stored], dict[str, Any]]:
    """All arrays of an output by name, and its global attributes."""
    with _reading(path):
        if path.is_dir() or path.suffix.lower() == ZARR_SUFFIX:
            group = require("zarr", "xarray", "Reading Zarr").open_group(str(path), mode="r")
            return {name: _zarr(path, array) for name, array in group.arrays()}, dict(group.attrs)
        dataset = stack.enter_context(open_dataset(path))
        dataset.set_auto_maskandscale(False)
        stored = {name: _netcdf(path, variable) for name, variable in dataset.variables.items()}
        return stored, {name: dataset.getncattr(name) for name in dataset.ncattrs()}


def _netcdf(path: Path, variable: netCDF4.Variable[Any]) -> _Stored:
    attributes = {name: variable.getncattr(name) for name in variable.ncattrs()}
    return _Stored(path, variable, variable.dimensions, attributes)


def _zarr(path: Path, array: Any) -> _Stored:
    attributes = dict(array.attrs)
    dimensions = tuple(attributes.pop(_DIMENSIONS, ()))
    if array.metadata.fill_value is not None:
        attributes["_FillValue"] = array.metadata.fill_value
    return _Stored(path, array, dimensions, attributes)
