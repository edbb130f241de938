"""Grids, and the two maps between coarse and fine cells.

Coarse cell (i, j) covers fine cells (factor i .. factor i + factor - 1, likewise j): cell centres
are half-pixel aligned. All arrays are (..., y, x); NaN is missing, 0 is dry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError

Array = npt.NDArray[np.floating]

KM_PER_DEGREE = 6371.0 * np.pi / 180.0  # mean Earth radius
NOMINAL_KM_PER_DEGREE = 100.0  # what radar and satellite grids are named by: 0.01 degrees is 1 km
SPACING_TOLERANCE = 0.1
_POLE = 90.001  # degrees, with float32's rounding
_DEGREES = re.compile(r"(arc_?)?deg(ree)?s?([_ ]?(n|e|north|east|true))?", re.IGNORECASE)
_KM_PER_UNIT = {
    **dict.fromkeys(("m", "metre", "meter", "metres", "meters"), 1e-3),
    **dict.fromkeys(("km", "kilometre", "kilometer", "kilometres", "kilometers"), 1.0),
}
KEYS_A = -0.75  # Keys 1981, doi 10.1109/TASSP.1981.1163711; the value common in image resizing


def are_degrees(units: str) -> bool:
    """Whether a coordinate's units are degrees, in any of the spellings that files have."""
    return _DEGREES.fullmatch(units.strip()) is not None


def as_numbers(what: str, values: Any) -> npt.NDArray[np.float64]:
    """What may be a list, as an array of float64.

    Raises
    ------
    InputError
        It holds no numbers, or rows of several lengths; ``what`` begins the message.
    """
    try:
        # What is masked is no number: NaN, not what lies under the mask.
        return np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{what}: no array can be made of what was handed in ({error}); expected numbers. Hand "
            "in a NumPy array."
        ) from error


@dataclass(frozen=True)
class Grid:
    """Cell-centre coordinates along y and x, as read, with their CF attributes.

    ``y`` and ``x`` are 1-D and evenly spaced, at distinct places, and may be lists of numbers;
    ``attributes`` keeps what the file said of each (units, standard_name, axis), and ``names``
    their variable names. ``lat`` and ``lon`` of which nothing is said are degrees north and east.
    """

    y: npt.NDArray[np.float64]
    x: npt.NDArray[np.float64]
    names: tuple[str, str] = ("lat", "lon")
    attributes: tuple[dict[str, Any], dict[str, Any]] = field(default_factory=lambda: ({}, {}))

    def __post_init__(self) -> None:
        if self.names == ("lat", "lon") and not any(self.attributes):
            object.__setattr__(self, "attributes", _latlon_attributes())
        for axis, name in zip(("y", "x"), self.names, strict=True):
            values = as_numbers(f"Coordinate '{name}'", getattr(self, axis))
            object.__setattr__(self, axis, values)
            if values.ndim != 1 or values.size == 0:
                raise InputError(
                    f"Coordinate '{name}' has shape {values.shape}; expected one dimension that "
                    "is not empty. Choose a variable on a regular grid with --variable."
                )
            odd = values.size - np.count_nonzero(np.isfinite(values))
            if odd:
                raise InputError(
                    f"Coordinate '{name}' has {odd} values that are not finite among its "
                    f"{values.size}; expected all to be numbers. Correct the coordinate, or choose "
                    "a variable on a regular grid with --variable."
                )
            if values.size > 1 and values.min() == values.max():
                raise InputError(
                    f"Coordinate '{name}' has {values.size} cells, all at {values[0]:g}; expected "
                    "an even spacing. Correct the coordinate first."
                )
            if values.size < 3:
                continue
            steps = np.diff(values)
            if abs(steps - steps.mean()).max() > 0.01 * abs(steps.mean()):
                raise InputError(
                    f"Coordinate '{name}' has spacings from {steps.min():g} to {steps.max():g}; "
                    "expected an even spacing. Regrid the field first."
                )

    @classmethod
    def of_file(
        cls,
        label: str,
        y: npt.NDArray[np.float64],
        x: npt.NDArray[np.float64],
        names: tuple[str, str],
        attributes: tuple[dict[str, Any], dict[str, Any]],
    ) -> Grid:
        """The grid a file describes, whose latitudes must end at the poles.

        Not checked in `Grid`: refining a cell centred on a pole gives centres beyond 90 degrees.

        Parameters
        ----------
        label
            The file's, which the messages begin with.

        Raises
        ------
        InputError
            The coordinates are not finite and evenly spaced, or lie beyond a pole.
        """
        try:
            grid = cls(y, x, names, attributes)
        except InputError as error:
            raise InputError(f"{label}: {error}") from error
        if grid.is_latlon and np.abs(y).max() > _POLE:
            raise InputError(
                f"{label}: coordinate '{names[0]}' goes from {y.min():g} to {y.max():g} in units "
                f"'{grid.units[0]}'; expected latitudes from -90 to 90. Correct its numbers, or "
                "its units if they are no degrees."
            )
        return grid

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x)."""
        return self.y.size, self.x.size

    @property
    def north_first(self) -> bool:
        """Whether y falls from the first row to the last."""
        return bool(self.y.size > 1 and self.y[0] > self.y[-1])

    @property
    def to_north_first(self) -> slice:
        """Turns rows of the grid north first, and such rows back into its own order."""
        return slice(None) if self.north_first else slice(None, None, -1)

    @property
    def units(self) -> tuple[str, str]:
        """The coordinates' units, "" where the file says none."""
        y, x = (str(attributes.get("units", "")).strip() for attributes in self.attributes)
        return y, x

    @property
    def is_latlon(self) -> bool:
        """Whether the coordinates are degrees rather than distances."""
        return all(are_degrees(units) for units in self.units)

    @property
    def spacing(self) -> tuple[float, float]:
        """Distance of neighbouring centres along y and x, in their units; NaN for a single one."""
        y, x = (_spacing(centres) for centres in (self.y, self.x))
        return y, x

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Outer edges of the cells, in their units: least and largest x, least and largest y.

        An axis with a single cell has no width.
        """
        half_y, half_x = np.nan_to_num(self.spacing) / 2
        x, y = self.x, self.y
        edges = x.min() - half_x, x.max() + half_x, y.min() - half_y, y.max() + half_y
        west, east, south, north = map(float, edges)
        return west, east, south, north

    @property
    def spacing_km(self) -> tuple[float, float] | None:
        """The spacing along y and x, None if the units are unknown or an axis has one cell.

        Degrees count at their nominal 100 km, whatever the latitude: a grid of 0.01 degrees is
        called a grid of 1 km.
        """
        if self.is_latlon:
            scales = (NOMINAL_KM_PER_DEGREE, NOMINAL_KM_PER_DEGREE)
        elif all(units in _KM_PER_UNIT for units in self.units):
            scales = (_KM_PER_UNIT[self.units[0]], _KM_PER_UNIT[self.units[1]])
        else:
            return None
        y, x = (step * scale for step, scale in zip(self.spacing, scales, strict=True))
        return None if np.isnan(y + x) else (y, x)

    def area_km2(self) -> float:
        """The area the cells cover [km2], 0 if the coordinates' units are unknown."""
        dy, dx = np.nan_to_num(self.spacing)
        if self.is_latlon:
            widths = np.cos(np.deg2rad(self.y)) * dx * self.x.size
            return float((widths * dy).sum() * KM_PER_DEGREE**2)
        scales = [_KM_PER_UNIT.get(units, 0.0) for units in self.units]
        return float(dy * self.y.size * scales[0] * dx * self.x.size * scales[1])

    def refined(self, factor: int) -> Grid:
        """The grid of cells ``factor`` times finer that covers the same area."""
        return Grid(_refine(self.y, factor), _refine(self.x, factor), self.names, self.attributes)


def _latlon_attributes() -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        {"units": "degrees_north", "standard_name": "latitude"},
        {"units": "degrees_east", "standard_name": "longitude"},
    )


def same_spacing(got: float, expected: float) -> bool:
    """Whether two grids' spacings are close enough for a model that knows one of them."""
    return abs(got - expected) <= SPACING_TOLERANCE * expected


def _spacing(centres: npt.NDArray[np.float64]) -> float:
    if centres.size == 1:
        return float("nan")
    return float(abs(centres[-1] - centres[0]) / (centres.size - 1))


def _refine(centres: npt.NDArray[np.float64], factor: int) -> npt.NDArray[np.float64]:
    if centres.size == 1:
        raise InputError(
            "The field is one cell wide, so its spacing is unknown; expected at least two cells "
            "along each axis. Hand in a larger area."
        )
    step = (centres[-1] - centres[0]) / (centres.size - 1)
    offsets = (np.arange(factor) + 0.5) / factor - 0.5
    return np.asarray((centres[:, None] + step * offsets).ravel(), dtype=np.float64)


def _cubic_weights(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    d, a = np.abs(distance), KEYS_A
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.asarray(np.where(d <= 1, near, np.where(d < 2, far, 0.0)))


CUBIC_REACH = 2  # coarse cells on either side that a fine cell is interpolated from


def cubic_stencil(size: int, factor: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Source indices and weights of every fine cell along one axis.

    Returns
    -------
    (size * factor, 4) indices, edges replicated, and (size * factor, 4) weights.
    """
    centre = (np.arange(size * factor) + 0.5) / factor - 0.5
    base = np.floor(centre).astype(np.intp)
    taps = base[:, None] + np.arange(-1, 3)
    weights = _cubic_weights(centre[:, None] - taps)
    return np.clip(taps, 0, size - 1), weights.astype(np.float32)


def interpolate(coarse: Array, factor: int) -> npt.NDArray[np.float32]:
    """Bicubic interpolation to the fine grid, clipped at 0.

    Keys' kernel with a = -0.75, half-pixel centres, edges replicated. A fine cell is NaN exactly
    where one of the 4 x 4 coarse cells it is computed from is NaN.

    Parameters
    ----------
    coarse
        (y, x) [mm h-1].
    factor
        Fine cells per coarse cell along one axis.

    Returns
    -------
    (y * factor, x * factor) [mm h-1], float32.
    """
    rows, row_weights = cubic_stencil(coarse.shape[0], factor)
    columns, column_weights = cubic_stencil(coarse.shape[1], factor)
    wide = np.zeros((coarse.shape[0], columns.shape[0]), dtype=np.float32)
    for k in range(columns.shape[1]):
        wide += coarse[:, columns[:, k]].astype(np.float32, copy=False) * column_weights[:, k]
    fine = np.zeros((rows.shape[0], columns.shape[0]), dtype=np.float32)
    for k in range(rows.shape[1]):
        fine += wide[rows[:, k]] * row_weights[:, k, None]
    np.maximum(fine, 0, out=fine)  # keeps NaN
    return fine


def block_mean(fine: Array, factor: int) -> npt.NDArray[np.float64]:
    """Mean of the valid cells of each block; NaN where a block has none.

    Parameters
    ----------
    fine
        (..., y, x); trailing rows and columns that do not fill a block are left out.

    Returns
    -------
    (..., y // factor, x // factor), float64.
    """
    rows, columns = fine.shape[-2] // factor, fine.shape[-1] // factor
    blocks = fine[..., : rows * factor, : columns * factor].reshape(
        *fine.shape[:-2], rows, factor, columns, factor
    )
    valid = np.isfinite(blocks)
    count = valid.sum(axis=(-3, -1))
    total = np.where(valid, blocks, 0).sum(axis=(-3, -1), dtype=np.float64)
    mean = np.full(total.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean
