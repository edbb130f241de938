"""Precipitation fields: rates on a grid at one or more valid times, and where they come from.

Arrays are (time, y, x) or (y, x) [mm h-1], rows in the grid's own order; NaN is missing, 0 is dry.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.grid import Grid, as_numbers

Array = npt.NDArray[np.float32]
DRY_FROM_MM_H = -1e-3  # packing and resampling leave smaller negatives
_VALID_TIME = re.compile(
    r"none-(0|[1-9]\d*)|"
    r"-?(\d{4}|[1-9]\d{4,})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
    r"T([01]\d|2[0-3]):[0-5]\d:[0-5]\d",
    re.ASCII,
)


class Frames(Protocol):
    """(time, y, x) rates [mm h-1]: an array, or a file that is read frame by frame."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(time, y, x)."""
        ...

    def __getitem__(self, index: int, /) -> Array:
        """One frame (y, x), float32, NaN where missing."""
        ...


@dataclass(frozen=True)
class TimeAxis:
    """A time coordinate as its file encodes it, so that it can be written back verbatim.

    ``values`` is (time,) in ``units`` ("<unit> since <date>") and ``calendar``; ``bounds`` is
    (time, 2) in the same units, or None.
    """

    name: str
    units: str
    calendar: str
    values: npt.NDArray[Any]
    bounds: npt.NDArray[Any] | None = None
    bounds_name: str = "time_bnds"

    def at(self, indices: list[int]) -> TimeAxis:
        """The times at some indices."""
        bounds = None if self.bounds is None else self.bounds[indices]
        return replace(self, values=self.values[indices], bounds=bounds)


@dataclass(frozen=True)
class GridMapping:
    """A CF grid mapping variable: its name and attributes."""

    name: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What a reader found and a writer keeps.

    Parameters
    ----------
    path, variable
        File and variable; "" if the field was made in memory.
    units
        Of the file's numbers: a rate ("mm h-1"), or a depth ("mm") over ``period_h`` hours.
    period_h
        The period an amount is summed over [h]; None for rates.
    standard_name, long_name, cell_methods
        The variable's attributes, "" where it has none.
    time, grid_mapping
        None where the file has none.
    """

    path: str = ""
    variable: str = ""
    units: str = "mm h-1"
    period_h: float | None = None
    standard_name: str = ""
    long_name: str = ""
    cell_methods: str = ""
    time: TimeAxis | None = None
    grid_mapping: GridMapping | None = None


@dataclass(frozen=True)
class PrecipField:
    """Precipitation rates of one or more valid times on one grid.

    Raises `InputError` for rates or valid times that are not as said here.

    Parameters
    ----------
    rate_mm_h
        (time, y, x) [mm h-1], float32, NaN or masked where missing, in the grid's own row order: an
        array, nested lists of numbers, or `Frames` that are read one at a time.
    grid
        The cells' centres.
    valid_times
        One text for each time, ISO 8601 to the second without zone (UTC), or ``"none-<index>"`` if
        the source has no time, each once. Part of the noise's address.
    source
        What the reader found and the writer keeps.
    origin
        (rows, columns) of the whole input north and west of this field, in coarse cells. Noise is
        addressed from the whole input's north-west corner, so a crop draws the whole's noise.
    """

    rate_mm_h: Frames
    grid: Grid
    valid_times: tuple[str, ...]
    source: Source = field(default_factory=Source)
    origin: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not hasattr(self.rate_mm_h, "shape"):
            rates = as_numbers("The rates", self.rate_mm_h)
            object.__setattr__(self, "rate_mm_h", rates)
        expected = (len(self.valid_times), *self.grid.shape)
        if tuple(self.rate_mm_h.shape) != expected:
            raise InputError(
                f"The rates have shape {tuple(self.rate_mm_h.shape)}; expected (time, y, x) = "
                f"{expected} as the coordinates say. Check the order of the dimensions."
            )
        if not self.valid_times:
            raise InputError("The field has no times; expected one at least. Correct valid_times.")
        # Noise is addressed by these texts: another spelling would draw other members.
        for text, count in Counter(self.valid_times).items():
            if not isinstance(text, str) or not _VALID_TIME.fullmatch(text):
                raise InputError(
                    f"The field has the valid time {text!r}; expected ISO 8601 in UTC without a "
                    "zone, to the second, like '2022-08-09T15:00:00', or 'none-0', 'none-1' and so "
                    "on where there is no time. Correct the field's valid_times."
                )
            if count > 1:
                raise InputError(
                    f"The field has the valid time '{text}' {count} times; expected each once. "
                    "Remove the repeated frames."
                )

    def frame(self, index: int) -> Array:
        """One frame (y, x) [mm h-1], NaN where missing.

        Raises
        ------
        InputError
            Infinite rates, or negative ones that are more than rounding.
        """
        frame = self.rate_mm_h[index]
        if isinstance(frame, np.ma.MaskedArray):  # of who hands in netCDF4's own arrays
            frame = np.ma.filled(frame.astype(np.float32), np.nan)
        frame = np.asarray(frame, dtype=np.float32)
        # Both leave NaN out.
        lowest, highest = (extreme.reduce(frame, axis=None) for extreme in (np.fmin, np.fmax))
        if lowest < DRY_FROM_MM_H or np.isinf(highest):
            raise InputError(
                f"Frame {index} of the field has rates from {lowest:g} to {highest:g} mm/h; "
                "expected finite ones of at least 0, and NaN where they are missing. Correct them."
            )
        return np.maximum(frame, 0) if lowest < 0 else frame

    def load(self) -> npt.NDArray[np.float32]:
        """All frames as one array (time, y, x) [mm h-1]."""
        return np.stack([self.frame(index) for index in range(len(self.valid_times))])

    def at(self, indices: list[int]) -> PrecipField:
        """The field at some of its times, still read when asked for."""
        time = self.source.time
        return replace(
            self,
            rate_mm_h=FramesView(self.rate_mm_h, tuple(indices)),
            valid_times=tuple(self.valid_times[index] for index in indices),
            source=replace(self.source, time=time.at(indices) if time else None),
        )

    def alone(self, index: int) -> PrecipField:
        """One of its times by itself, read now, north first: tiles start in the north-west."""
        flip = self.grid.to_north_first
        return replace(
            self.at([index]),
            rate_mm_h=self.frame(index)[None, flip],
            grid=replace(self.grid, y=self.grid.y[flip]),
        )

    def crop(self, rows: slice, columns: slice) -> PrecipField:
        """The field within a window of its own rows and columns, still read when asked for."""
        rows, columns = (
            slice(*window.indices(size)[:2])
            for window, size in zip((rows, columns), self.grid.shape, strict=True)
        )
        north = rows.start if self.grid.north_first else self.grid.y.size - rows.stop
        return replace(
            self,
            rate_mm_h=FramesView(
                self.rate_mm_h, tuple(range(len(self.valid_times))), rows, columns
            ),
            grid=replace(self.grid, y=self.grid.y[rows], x=self.grid.x[columns]),
            origin=(self.origin[0] + north, self.origin[1] + columns.start),
        )


def each_time(fields: Iterable[PrecipField]) -> Iterator[PrecipField]:
    """Each valid time of fields by itself, read when its turn comes: `PrecipField.alone`."""
    for one in fields:
        for index in range(len(one.valid_times)):
            yield one.alone(index)


@dataclass(frozen=True)
class FramesView:
    """Some frames of others, or windows of them."""

    frames: Frames
    indices: tuple[int, ...]
    rows: slice = field(default_factory=lambda: slice(None))
    columns: slice = field(default_factory=lambda: slice(None))

    @property
    def shape(self) -> tuple[int, ...]:
        """(time, y, x)."""
        _, *sizes = self.frames.shape
        rows, columns = (
            len(range(*window.indices(size)))
            for window, size in zip((self.rows, self.columns), sizes, strict=True)
        )
        return len(self.indices), rows, columns

    def __getitem__(self, index: int) -> Array:
        return self.frames[self.indices[index]][self.rows, self.columns]
