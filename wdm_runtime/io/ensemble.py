"""Reads back one frame of an ensemble that `EnsembleWriter` wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.grid import Grid
from wdm_runtime.io.dataset import LIBRARY_LOCK
from wdm_runtime.io.dates import to_the_second
from wdm_runtime.io.netcdf_library import open_dataset
from wdm_runtime.io.units import amount_factor, rate_factor, to_mm_h

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EnsembleFrame:
    """One valid time of an ensemble; arrays (y, x) in the file's row order, NaN where missing.

    ``member_mm_h`` and ``mean_mm_h`` are rates [mm h-1], ``probability`` the share of the
    ``members`` members that reach the threshold; ``provenance`` holds the ``wdm_`` attributes.
    """

    grid: Grid
    variable: str
    valid_time: str
    members: int
    member_mm_h: Array
    mean_mm_h: Array
    probability: Array
    provenance: dict[str, Any]


def read_frame(output: Path, time: int, member: int, threshold: float) -> EnsembleFrame:
    """Read one frame of an ensemble, member by member: memory does not grow with their number.

    Parameters
    ----------
    output
        A file that ``wdm-run infer`` wrote.
    time, member
        Numbers from 0.
    threshold
        Rate the probability is of, reached or exceeded [mm h-1].

    Returns
    -------
    EnsembleFrame
        Mean and probability are NaN where any member is missing.

    Raises
    ------
    InputError
        Not such a file, one without members, no such time or member, or a threshold that is not
        positive.
    """
    if not 0 < threshold < math.inf:
        raise InputError(
            f"Got a threshold of {threshold:g} mm/h; expected a positive rate. Set --threshold."
        )
    with LIBRARY_LOCK, _open(output) as dataset:
        rates, factor = _ensemble(output, dataset)
        times, members = rates.shape[:2]
        for option, value, count in (("time", time, times), ("member", member, members)):
            if not 0 <= value < count:
                raise InputError(
                    f"{output}: got {option} {value}; expected 0 to {count - 1}. Set --{option}."
                )
        mean = np.zeros(rates.shape[2:], dtype=np.float64)
        reached = np.zeros(rates.shape[2:], dtype=np.int32)
        shown = np.empty(rates.shape[2:], dtype=np.float32)
        for index in range(members):
            raw = rates[time, index].astype(np.float64)
            rate = (np.ma.filled(raw, np.nan) * factor).astype(np.float32)
            mean += rate
            reached += rate >= threshold
            if index == member:
                shown = rate
        missing = np.isnan(mean)
        return EnsembleFrame(
            grid=_grid(dataset, rates),
            variable=rates.name,
            valid_time=_valid_time(dataset, rates.dimensions[0], time),
            members=members,
            member_mm_h=shown,
            mean_mm_h=(mean / members).astype(np.float32),
            probability=np.where(missing, np.nan, reached / members).astype(np.float32),
            provenance={
                name: dataset.getncattr(name)
                for name in dataset.ncattrs()
                if name.startswith("wdm_")
            },
        )


@contextmanager
def _open(output: Path) -> Iterator[netCDF4.Dataset]:
    try:
        with open_dataset(output) as dataset:
            yield dataset
    except (OSError, RuntimeError, ValueError, LookupError, AttributeError) as error:
        raise _not_an_output(output, str(error)) from error


def _not_an_output(output: Path, found: str) -> InputError:
    return InputError(
        f"{output}: is no NetCDF output of 'wdm-run infer' ({found}); expected precipitation over "
        "(time, realization, y, x). Hand in a NetCDF file that 'wdm-run infer' wrote."
    )


def _ensemble(output: Path, dataset: netCDF4.Dataset) -> tuple[netCDF4.Variable[Any], float]:
    """The ensemble's variable and what makes its values mm h-1."""
    if "wdm_input" not in dataset.ncattrs():
        raise _not_an_output(output, "no global attribute 'wdm_input'")
    period_h = getattr(dataset, "wdm_accumulation_h", None)
    for variable in dataset.variables.values():
        units = str(getattr(variable, "units", ""))
        if variable.ndim != 4 or variable.dimensions[1] != "realization":
            continue
        if rate_factor(units) is not None:
            return variable, to_mm_h(units, None)
        if amount_factor(units) is not None and period_h is not None:
            return variable, to_mm_h(units, float(period_h))
    if any(name.endswith("_standard_deviation") for name in dataset.variables):
        raise InputError(
            f"{output}: holds statistics and no members; expected precipitation over (time, "
            "realization, y, x). Hand in a file that keeps the members."
        )
    raise _not_an_output(output, "no such variable")


def _grid(dataset: netCDF4.Dataset, rates: netCDF4.Variable[Any]) -> Grid:
    y, x = (dataset.variables[name] for name in rates.dimensions[2:])
    values = [np.ma.filled(v[:].astype(np.float64), np.nan) for v in (y, x)]
    attributes = tuple({name: v.getncattr(name) for name in v.ncattrs()} for v in (y, x))
    return Grid(values[0], values[1], (y.name, x.name), (attributes[0], attributes[1]))


def _valid_time(dataset: netCDF4.Dataset, name: str, index: int) -> str:
    """As `PrecipField.valid_times` has it."""
    if name not in dataset.variables:
        return f"none-{index}"
    coordinate = dataset.variables[name]
    date: Any = netCDF4.num2date(coordinate[index], coordinate.units, coordinate.calendar)
    return to_the_second(date)
