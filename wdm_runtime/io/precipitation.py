"""Precipitation rates of any labelled dataset: chosen, placed, dated and read frame by frame.

Missing is never dry: what the file declares missing, NaN, 9999 and more, and the negative codes of
radar products (-1, -3, -99, -9999.9) all become NaN. Infinite and other negative numbers are
neither rain nor codes, and refused.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.field import DRY_FROM_MM_H, PrecipField, Source
from wdm_runtime.io.accumulation import period_of
from wdm_runtime.io.choice import choose
from wdm_runtime.io.coordinates import (
    Axis,
    find_axes,
    grid_mapping_of,
    grid_of,
)
from wdm_runtime.io.dataset import Dataset, Variable, check_fits
from wdm_runtime.io.times import valid_times_of
from wdm_runtime.io.units import rate_factor, to_mm_h

# Codes are in the file's units. A row of nines is one in any; what is more, only where it would
# be rain beyond any 10 km cell: 500 mm/h in mm/day is not (the hourly record is 401 mm, 1975).
_NINES: Final = tuple(float(f"{10**n - 1}.{tail}") for n in range(4, 8) for tail in (0, 9))
_CODE_FROM: Final = 9999.0
_IMPOSSIBLE_FROM_MM_H: Final = 1000.0
_NEGATIVE_CODES: Final = (-1.0, -3.0)  # MRMS: missing, no radar coverage
_CODE_TO: Final = -99.0  # -99, -999, -9999.9 and their like
_CLOSE: Final = 1e-6  # codes that went through float32


def read_precipitation(
    dataset: Dataset, path: str, requested: str | None, accumulation_h: float | None
) -> PrecipField:
    """The precipitation of a dataset as rates that are read one frame at a time.

    All frames are looked at once, one after the other, so that faulty numbers are found at once.

    Parameters
    ----------
    path
        The file's, "" if there is none.
    requested
        Variable; None looks for the only precipitation.
    accumulation_h
        The period amounts are summed over [h], where the dataset does not say.

    Raises
    ------
    InputError
        See `wdm_runtime.io.read_field`.
    """
    variable = choose(dataset, requested, accumulation_h)
    axes = find_axes(dataset, variable)
    times = axes["t"].size if "t" in axes else 1
    check_fits(dataset.label, variable, axes["y"].size * axes["x"].size, times)
    valid_times, time = valid_times_of(dataset, variable, axes.get("t"))
    units, period_h = variable.text("units"), None
    if rate_factor(units) is None:
        period_h = period_of(dataset, variable, time, accumulation_h)
    elif accumulation_h is not None:
        raise InputError(
            f"{dataset.label}: variable '{variable.path}' has units '{units}', a rate; expected an "
            "amount convertible to 'mm', as an accumulation period was stated. Leave out "
            "--accumulation, or choose another with --variable."
        )
    _check_packing(dataset, variable)
    _tell_fill(dataset, variable)
    mapping = grid_mapping_of(dataset, variable, axes)
    grid = grid_of(dataset, axes, mapping)
    shape = (len(valid_times), *grid.shape)
    frames = StoredFrames(dataset.label, variable, axes, shape, to_mm_h(units, period_h))
    frames.check()
    source = Source(
        path=path,
        variable=variable.name,
        units=units,
        period_h=period_h,
        standard_name=variable.text("standard_name"),
        long_name=variable.text("long_name"),
        cell_methods=variable.text("cell_methods"),
        time=time,
        grid_mapping=mapping,
    )
    return PrecipField(frames, grid, valid_times, source)


def _check_packing(dataset: Dataset, variable: Variable) -> None:
    """A factor of 0 would make dry ground of any number."""
    for name, default in (("scale_factor", 1.0), ("add_offset", 0.0)):
        found = variable.attributes.get(name, default)
        try:
            number = float(np.ravel(found)[0])
        except (ValueError, TypeError, IndexError):
            number = float("nan")
        if not np.isfinite(number) or (name == "scale_factor" and number == 0):
            raise InputError(
                f"{dataset.label}: variable '{variable.path}' has {name} = {found!r}; expected a "
                "finite number, and no factor of 0. Correct the attribute."
            )


def _tell_fill(dataset: Dataset, variable: Variable) -> None:
    """A fill value that is also a rate loses all cells of that rate: whose, nobody can tell."""
    is_float = variable.dtype is not None and variable.dtype.kind == "f"
    if is_float and np.all(variable.attributes.get("_FillValue") == 0):
        warnings.warn(
            f"{dataset.label}: variable '{variable.path}' has the fill value 0, so that its dry "
            "cells are missing; expected one that no rate has. Write it with another (Zarr 2 has 0 "
            "where none is stated).",
            stacklevel=2,
        )


@dataclass(frozen=True, repr=False)
class StoredFrames:
    """Rates [mm h-1] of a variable, read and decoded anew each time a frame is asked for.

    Parameters
    ----------
    label
        The dataset's, for messages.
    shape
        (time, y, x).
    factor
        From the stored units to mm h-1.
    """

    label: str
    variable: Variable
    axes: dict[str, Axis]
    shape: tuple[int, int, int]
    factor: float

    def __getitem__(self, index: int) -> npt.NDArray[np.float32]:
        return self._rates(self._values(range(self.shape[0])[index]))

    def check(self) -> None:
        """Refuse numbers that cannot be rates, holding one frame at a time.

        Raises
        ------
        InputError
            Infinite or negative numbers; every cell is missing.
        """
        valid = infinite = negative = 0
        lowest = 0.0
        for index in range(self.shape[0]):
            values = self._values(index)
            rates = values * self.factor
            below = rates < DRY_FROM_MM_H  # infinite ones too, which are reported as such
            infinite += int(np.isinf(values).sum())
            negative += int(below.sum())
            valid += int(np.isfinite(values).sum())
            lowest = min(lowest, values.min(where=below & np.isfinite(values), initial=0.0))
        cells = int(np.prod(self.shape))
        named = f"{self.label}: variable '{self.variable.path}'"
        units = self.variable.text("units")
        if infinite:
            raise InputError(
                f"{named} has {infinite} infinite numbers in its {cells} cells; expected finite "
                "rates, or NaN or _FillValue where they are missing. Correct them first, or choose "
                "another with --variable."
            )
        if negative:
            raise InputError(
                f"{named} has {negative} negative numbers in its {cells} cells, down to {lowest:g} "
                f"{units}; expected rates of at least 0, or _FillValue where they are missing. Set "
                "them to 0 or missing first, or choose another with --variable."
            )
        if not valid:
            raise InputError(
                f"{named} has no valid value in its {cells} cells; expected at least one. Choose "
                "another with --variable, or another file."
            )

    def _values(self, index: int) -> npt.NDArray[np.float64]:
        """One frame (y, x) in the file's units, NaN where missing."""
        places: dict[str, int | slice] = {
            self.axes["y"].dimension: slice(None),
            self.axes["x"].dimension: slice(None),
        }
        if "t" in self.axes:
            places[self.axes["t"].dimension] = index
        dimensions = self.variable.dimensions
        values = self.variable.decoded(tuple(places.get(d, 0) for d in dimensions))
        y, x = (dimensions.index(self.axes[kind].dimension) for kind in "yx")
        values = values if y < x else values.T
        # Codes are looked for among the few numbers that may be one: large frames stay quick.
        suspects = (values < 0) | (values > _CODE_FROM - 1)
        values[suspects] = self._without_codes(values[suspects])
        return values

    def _without_codes(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        codes = (values >= _CODE_FROM) & (values * self.factor >= _IMPOSSIBLE_FROM_MM_H)
        codes |= values <= _CODE_TO
        codes &= np.isfinite(values)
        for code in (*_NINES, *_NEGATIVE_CODES):
            codes |= np.abs(values - code) <= _CLOSE * abs(code)
        return np.where(codes, np.nan, values)

    def _rates(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        rates = np.maximum(values * self.factor, 0)  # np.maximum keeps NaN
        return rates.astype(np.float32)
