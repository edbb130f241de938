"""Reads back one frame of an ensemble that `EnsembleWriter` wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from wdm_runtime.io.stored import Stored, open_output
from wdm_runtime.select import times_named

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EnsembleFrame:
    """One valid time of an ensemble; arrays (y, x) in the file's row order, NaN where missing.

    ``index`` is the time's number in the file. ``member_mm_h`` and ``mean_mm_h`` are rates
    [mm h-1], ``probability`` the share of the ``members`` members that reach the threshold;
    ``provenance`` holds the ``wdm_`` attributes.
    """

    grid: Grid
    variable: str
    index: int
    valid_time: str
    members: int
    member_mm_h: Array
    mean_mm_h: Array
    probability: Array
    provenance: dict[str, Any]


def read_frame(output: Path, time: int | str, member: int, threshold: float) -> EnsembleFrame:
    """Read one frame of an ensemble, member by member: memory does not grow with their number.

    Parameters
    ----------
    output
        A NetCDF file or Zarr store that ``wdm-run infer`` wrote.
    time
        A number, or a text that names one time as `wdm_runtime.select.select_times` takes it.
    member
        Number from 0.
    threshold
        Rate the probability is of, reached or exceeded [mm h-1].

    Returns
    -------
    EnsembleFrame
        Mean and probability are NaN where any member is missing.

    Raises
    ------
    InputError
        Not such a file, one without members, no such member, no or several such times, or a
        threshold that is not positive.
    MissingDependencyError
        Zarr without the extra ``xarray``.
    """
    if not 0 < threshold < math.inf:
        raise InputError(
            f"Got a threshold of {threshold:g} mm/h; expected a positive rate. Set --threshold."
        )
    with LIBRARY_LOCK, ExitStack() as stack, _damage(output):
        arrays, attributes = open_output(output, stack)
        name, factor = _ensemble(output, arrays, attributes)
        rates = arrays[name]
        shape, index = rates.array.shape, _index(output, arrays, rates, time)
        if not 0 <= member < shape[1]:
            raise InputError(
                f"{output}: got member {member}; expected 0 to {shape[1] - 1}. Set --member."
            )
        mean = np.zeros(shape[2:], dtype=np.float64)
        reached = np.zeros(shape[2:], dtype=np.int32)
        shown = np.empty(shape[2:], dtype=np.float32)
        for number in range(shape[1]):
            stored = rates.decoded((index, number, slice(None), slice(None)))
            rate = (stored * factor).astype(np.float32)
            mean += rate
            reached += rate >= threshold
            if number == member:
                shown = rate
        missing = np.isnan(mean)
        return EnsembleFrame(
            grid=_grid(arrays, rates),
            variable=name,
            index=index,
            valid_time=_valid_times(arrays, rates)[index],
            members=shape[1],
            member_mm_h=shown,
            mean_mm_h=(mean / shape[1]).astype(np.float32),
            probability=np.where(missing, np.nan, reached / shape[1]).astype(np.float32),
            provenance={k: v for k, v in attributes.items() if k.startswith("wdm_")},
        )


@contextmanager
def _damage(output: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, LookupError, AttributeError) as error:
        raise _not_an_output(output, str(error)) from error


def _not_an_output(output: Path, found: str) -> InputError:
    return InputError(
        f"{output}: is no output of 'wdm-run infer' with members ({found}); expected precipitation "
        "over (time, realization, y, x). Hand in a NetCDF file or Zarr store that 'wdm-run infer' "
        "wrote."
    )


def _ensemble(
    output: Path, arrays: dict[str, Stored], attributes: dict[str, Any]
) -> tuple[str, float]:
    """The name of the ensemble's variable, and what makes its values mm h-1."""
    if "wdm_input" not in attributes:
        raise _not_an_output(output, "no global attribute 'wdm_input'")
    stated = attributes.get("wdm_accumulation_h")
    period_h = None if stated is None else float(stated)
    for name, stored in arrays.items():
        if len(stored.array.shape) != 4 or stored.dimensions[1] != "realization":
            continue
        factor = stored.mm_h(period_h)
        if factor is not None:
            return name, factor
    if any(name.endswith("_standard_deviation") for name in arrays):
        raise InputError(
            f"{output}: holds statistics and no members; expected precipitation over (time, "
            "realization, y, x). Hand in a file that keeps the members."
        )
    raise _not_an_output(output, "no such variable")


def _index(output: Path, arrays: dict[str, Stored], rates: Stored, text: int | str) -> int:
    """The number of the one frame that is drawn."""
    times = _valid_times(arrays, rates)
    found = times_named(times, str(text), str(output))
    if len(found) > 1:
        raise InputError(
            f"{output}: has {len(found)} times within '{text}', from {times[found[0]]} to "
            f"{times[found[-1]]}; expected one to draw. Name one of them with --time."
        )
    return found[0]


def _grid(arrays: dict[str, Stored], rates: Stored) -> Grid:
    names = rates.dimensions[2], rates.dimensions[3]
    y, x = (arrays[name] for name in names)
    values = [v.read((slice(None),)).astype(np.float64) for v in (y, x)]
    return Grid(values[0], values[1], names, (y.attributes, x.attributes))


def _valid_times(arrays: dict[str, Stored], rates: Stored) -> tuple[str, ...]:
    """As `PrecipField.valid_times` has them."""
    time = arrays.get(rates.dimensions[0])
    if time is None:
        return tuple(f"none-{index}" for index in range(rates.array.shape[0]))
    units, calendar = time.attributes["units"], time.attributes.get("calendar", "standard")
    dates: Any = netCDF4.num2date(time.read((slice(None),)), units, calendar)
    return tuple(to_the_second(date) for date in dates)
