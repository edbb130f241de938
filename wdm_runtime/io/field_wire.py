"""A field without its rates as a message, and back: all that is told is checked again.

Rates stay where they are read; `Described` has their shape, and the other end asks for frames.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wdm_runtime.field import GridMapping, PrecipField, Source, TimeAxis
from wdm_runtime.grid import Grid
from wdm_runtime.io.wire import Message, WireError

_TEXTS: Final = ("path", "variable", "units", "standard_name", "long_name", "cell_methods")
_ARRAY: Final = "array"  # {"array": 3} stands for the fourth array of the message
_NUMBERS: Final = "biuf"


@dataclass(frozen=True)
class Described:
    """All of a field but its rates, of which ``shape`` is (time, y, x)."""

    grid: Grid
    valid_times: tuple[str, ...]
    source: Source

    @property
    def shape(self) -> tuple[int, int, int]:
        """(time, y, x)."""
        return len(self.valid_times), *self.grid.shape


class _Packer:
    """Turns values into JSON, setting numpy's aside."""

    def __init__(self) -> None:
        self.arrays: list[npt.NDArray[Any]] = []

    def value(self, value: Any) -> Any:
        if isinstance(value, (np.ndarray, np.generic)):
            if value.dtype.kind in _NUMBERS and value.dtype.itemsize <= 8:
                self.arrays.append(np.asarray(value))
                return {_ARRAY: len(self.arrays) - 1}
            value = value.tolist()
        if isinstance(value, (list, tuple)):
            return [self.value(one) for one in value]
        return value if isinstance(value, (str, int, float)) else str(value)

    def mapping(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: self.value(value) for name, value in values.items()}


def describe(field: PrecipField) -> Message:
    """The message that `described` turns back."""
    packer, source = _Packer(), field.source
    time, mapping = source.time, source.grid_mapping
    head = {
        "grid": {
            "y": packer.value(field.grid.y),
            "x": packer.value(field.grid.x),
            "names": list(field.grid.names),
            "attributes": [packer.mapping(of_axis) for of_axis in field.grid.attributes],
        },
        "valid_times": list(field.valid_times),
        "source": {name: getattr(source, name) for name in _TEXTS} | {"period_h": source.period_h},
        "time": packer.mapping(_present(time)) if time else None,
        "grid_mapping": (
            {"name": mapping.name, "attributes": packer.mapping(mapping.attributes)}
            if mapping
            else None
        ),
    }
    return Message(head, tuple(packer.arrays))


def described(label: str, message: Message) -> Described:
    """What a message says of a field.

    Parameters
    ----------
    label
        The file's, which errors of its coordinates begin with.

    Raises
    ------
    InputError
        The coordinates are not those of a grid.
    WireError
        The message is not of a field.
    """
    try:
        return _described(label, message)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise WireError(f"no description of a field ({type(error).__name__}: {error})") from error


def _described(label: str, message: Message) -> Described:
    head, arrays = message.head, message.arrays
    grid, source = head["grid"], head["source"]
    y, x = (_floats(_value(grid[axis], arrays)) for axis in "yx")
    names, (of_y, of_x) = grid["names"], (_mapping(a, arrays) for a in grid["attributes"])
    valid_times = tuple(_text(time) for time in head["valid_times"])
    period_h = source["period_h"]
    if not valid_times or not (period_h is None or 0 < float(period_h) < np.inf):
        raise ValueError(f"{len(valid_times)} times, period {period_h}")
    time, mapping = head["time"], head["grid_mapping"]
    return Described(
        Grid.of_file(label, y, x, (_text(names[0]), _text(names[1])), (of_y, of_x)),
        valid_times,
        Source(
            **{name: _text(source[name]) for name in _TEXTS},
            period_h=None if period_h is None else float(period_h),
            time=_time(_mapping(time, arrays), len(valid_times)) if time else None,
            grid_mapping=(
                GridMapping(_text(mapping["name"]), _mapping(mapping["attributes"], arrays))
                if mapping
                else None
            ),
        ),
    )


def _present(time: TimeAxis) -> dict[str, Any]:
    """What is not None, by name."""
    found = {field.name: getattr(time, field.name) for field in fields(time)}
    return {name: value for name, value in found.items() if value is not None}


def _time(said: dict[str, Any], count: int) -> TimeAxis:
    values, bounds = said["values"], said.get("bounds")
    if values.shape != (count,) or (bounds is not None and bounds.shape != (count, 2)):
        raise ValueError("times of another number")
    units, calendar, name = (_text(said[key]) for key in ("units", "calendar", "name"))
    return TimeAxis(name, units, calendar, values, bounds, _text(said["bounds_name"]))


def _value(value: Any, arrays: tuple[npt.NDArray[Any], ...]) -> Any:
    if isinstance(value, dict):
        array = arrays[value[_ARRAY]]
        return array if array.ndim else array[()]
    if isinstance(value, list):
        return [_value(one, arrays) for one in value]
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"a {type(value).__name__}")
    return value


def _mapping(values: dict[str, Any], arrays: tuple[npt.NDArray[Any], ...]) -> dict[str, Any]:
    return {_text(name): _value(value, arrays) for name, value in values.items()}


def _floats(array: Any) -> npt.NDArray[np.float64]:
    if not isinstance(array, np.ndarray) or array.dtype != np.float64:
        raise TypeError("coordinates that are no float64")
    return array


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} for a text")
    return value
