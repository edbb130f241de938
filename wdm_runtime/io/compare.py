"""Outputs as their arrays and attributes: compares two, a slice at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.io.dataset import LIBRARY_LOCK
from wdm_runtime.io.layout import FILL_VALUE
from wdm_runtime.io.stored import Stored, open_output

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
        (first, said), (second, _) = (open_output(path, stack) for path in (a, b))
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


def _compare(
    name: str, a: Stored, b: Stored, period_h: float | None, differences: list[str]
) -> float | None:
    """The largest difference [mm h-1], None if it is not precipitation; notes what differs."""
    for what, one, other in (
        ("dimensions", (a.dimensions, a.array.shape), (b.dimensions, b.array.shape)),
        ("type", a.array.dtype, b.array.dtype),
        *((key, a.attributes.get(key), b.attributes.get(key)) for key in _COMPARED_ATTRIBUTES),
    ):
        if one != other:
            differences.append(f"'{name}': {what} {one} against {other}")
    # Coordinates, among them thresholds, have no missing values.
    factor = a.mm_h(period_h) if "_FillValue" in a.attributes else None
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
