"""A labelled dataset as the CF logic sees it, whichever library has opened it.

Numbers are as stored, packed and with their codes for missing; `Variable.decoded` makes real ones.
Nothing is read before it is asked for, and only the part that is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.io.limits import beat, memory_bytes

# HDF5 keeps state per library, not per file: every call into netCDF4, here and in the writer, and
# every read through xarray, which may come out there too, holds it.
LIBRARY_LOCK = threading.RLock()
_BYTES_PER_CELL = 32  # of one frame while it is decoded
_BYTES_PER_TIME = 500  # its date and text, while they are decoded

Index = tuple[int | slice, ...]


@dataclass(frozen=True, eq=False)
class Variable:
    """One variable: its description, and a way to read a part of it.

    Parameters
    ----------
    path
        Groups and name: ``"Grid/precipitation"``.
    dtype
        Of the stored numbers; None for what is no array of numbers, texts or times.
    read
        Takes one int or slice for each dimension and gives the stored numbers.
    default_fill
        What the format holds where nothing was written, if it has such a number.
    chunk_bytes
        What is unpacked at once to read any part of it; 0 where nothing is packed.
    """

    path: str
    dimensions: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    attributes: dict[str, Any]
    read: Callable[[Index], Any]
    default_fill: Any = None
    chunk_bytes: int = 0

    @property
    def name(self) -> str:
        """Without groups."""
        return self.path.rpartition("/")[2]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return int(np.prod(self.shape, dtype=object))  # object: huge shapes do not overflow

    def text(self, attribute: str) -> str:
        """An attribute as text, "" if there is none."""
        return str(self.attributes.get(attribute, "")).strip()

    def raw(self, index: Index | None = None) -> npt.NDArray[Any]:
        """The stored numbers."""
        beat()
        everything = tuple(slice(None) for _ in self.shape)
        return np.asarray(self.read(everything if index is None else index))

    def decoded(self, index: Index | None = None) -> npt.NDArray[np.float64]:
        """The numbers meant: unpacked, NaN where missing or outside the valid range."""
        return _decode(self.raw(index), self.attributes, self.default_fill)

    @property
    def is_packed(self) -> bool:
        """Whether the stored numbers are to be scaled."""
        return "scale_factor" in self.attributes or "add_offset" in self.attributes


@dataclass(frozen=True)
class Dataset:
    """Variables by path; ``label`` names the whole in messages: the file's path."""

    label: str
    variables: dict[str, Variable]

    def scope(self, variable: Variable) -> Iterator[Variable]:
        """What lies in the variable's group and its parents, where CF looks names up."""
        group = variable.path
        while group:
            group = group.rpartition("/")[0]
            for other in self.variables.values():
                if other.path.rpartition("/")[0] == group:
                    yield other

    def named(self, reference: str, variable: Variable) -> Variable | None:
        """What an attribute of the variable refers to by name, nearest group first."""
        name = reference.rstrip(":").rpartition("/")[2]
        return next((v for v in self.scope(variable) if v.name == name), None)


def identity(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when a file, or the metadata in a folder, is written again.

    Raises
    ------
    InputError
        It is not there any more.
    """
    try:
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files]
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected the file to stay until all of its times "
            "are read. Keep it in place and run again."
        ) from error
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def check_unchanged(path: Path, before: tuple[tuple[str, int, int], ...]) -> None:
    """Refuse a file that is not the one that was opened.

    Raises
    ------
    InputError
        It was changed or removed.
    """
    if identity(path) != before:
        raise InputError(
            f"{path}: was changed while it was being read; expected the same file until all of "
            "its times are read. Let its writer finish and run again."
        )


def check_fits(label: str, variable: Variable, cells: int, times: int = 1) -> None:
    """Refuse what could not be read one frame at a time, before anything of that size is made.

    Parameters
    ----------
    label
        The dataset's.
    cells
        Of one frame of the variable.

    Raises
    ------
    InputError
        A frame, or a chunk it is stored in, takes more memory than there is or is allowed.
    """
    needed_bytes = _BYTES_PER_CELL * cells + _BYTES_PER_TIME * times + variable.chunk_bytes
    if needed_bytes > memory_bytes():
        sizes = " x ".join(map(str, variable.shape))
        raise InputError(
            f"{label}: variable '{variable.path}' has {sizes} cells "
            f"({', '.join(variable.dimensions)}), which take {needed_bytes / 2**20:,.0f} MiB to "
            "read one time after the other; expected less than "
            f"{memory_bytes() / 2**20:,.0f} MiB of memory. Extract a part of it first, or raise "
            "--max-memory."
        )


def _decode(
    raw: npt.NDArray[Any], attributes: dict[str, Any], default_fill: Any
) -> npt.NDArray[np.float64]:
    stored = raw.dtype
    if stored.kind == "i" and holds_unsigned(attributes):
        raw = raw.view(stored.str.replace("i", "u"))
    missing = np.zeros(raw.shape, dtype=bool)
    fills = [attributes.get("_FillValue", default_fill), attributes.get("missing_value")]
    for code in (number for fill in fills for number in _numbers(fill)):
        missing |= raw == _as_meant(code, stored, raw.dtype)
    values = raw.astype(np.float64)
    scale, offset = (
        float(np.ravel(attributes.get(name, default))[0])
        for name, default in (("scale_factor", 1.0), ("add_offset", 0.0))
    )
    unpacked = values * scale + offset if (scale, offset) != (1.0, 0.0) else values
    limits = _numbers(attributes.get("valid_range"))[:2]
    lower = _numbers(attributes.get("valid_min")) or limits[:1]
    upper = _numbers(attributes.get("valid_max")) or limits[1:]
    for limit, beyond in [(n, np.less) for n in lower] + [(n, np.greater) for n in upper]:
        # Limits are packed like the data, unless only they are of a floating type (NUG).
        wider = limit.dtype.kind == "f" and raw.dtype.kind != "f"
        missing |= beyond(
            unpacked if wider else values, limit if wider else _as_meant(limit, stored, raw.dtype)
        )
    # Not in place: without packing both are one array, of stored numbers that may be views.
    return np.where(missing, np.nan, unpacked)


def _numbers(value: Any) -> list[Any]:
    """The numbers of an attribute; none if it is missing or no number."""
    if value is None:
        return []
    numbers = np.ravel(value)
    if numbers.dtype.kind not in "iuf":
        try:
            numbers = numbers.astype(np.float64)  # "-9999" as text
        except (ValueError, TypeError):
            return []
    return list(numbers)


def _as_meant(number: Any, stored: np.dtype[Any], meant: np.dtype[Any]) -> Any:
    """A code or limit as the data has it: -9999.9 in float32, or -1 in uint8 for 255."""
    if meant.kind == "f":
        with np.errstate(over="ignore"):
            return number.astype(meant)
    # Of a native uint8 a wider -1 is no code: as a limit it says that nothing lies below.
    is_code = stored.kind == "i" or number.dtype.itemsize == meant.itemsize
    if meant.kind == "u" and number.dtype.kind == "i" and is_code:
        return as_unsigned(number, meant)
    return number


def holds_unsigned(attributes: Mapping[str, Any]) -> bool:
    """Whether integers of a signed type stand for unsigned ones, as the NetCDF guide has it."""
    return str(attributes.get("_Unsigned", "")).casefold() == "true"


def as_unsigned(code: Any, dtype: np.dtype[Any]) -> Any:
    """What a signed code means in an unsigned type: -1 is 255 in uint8.

    The code may be of any width (Zarr's attributes are JSON, so int64); one that does not fit into
    the type stays as it is.
    """
    bits = 8 * dtype.itemsize
    fits = -(2 ** (bits - 1)) <= int(code) < 2**bits
    return dtype.type(int(code) % 2**bits) if fits else code
