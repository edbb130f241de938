"""Statistics over the members of an ensemble, exact and within a given memory.

Mean, standard deviation, quantiles and exceedance need all members of a cell at once. Members are
kept as they are drawn, in memory or in a temporary file, and read back a few rows at a time.
"""

from __future__ import annotations

import io
import itertools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError, OutputError

Array = npt.NDArray[np.float32]

_CELL_BYTES = 4  # float32
# Beside the members themselves, a cell needs its sums and a quantile's terms in float64.
_WORKING_BYTES = 8 * 6
# Larger blocks only miss the caches: a third of the speed at 300 MB, measured.
_BLOCK_BYTES = 32 << 20
_THRESHOLDS = "positive rates [mm h-1] that float32 tells apart, increasing"


@dataclass(frozen=True)
class StatisticsSpec:
    """Which statistics are wanted besides mean and standard deviation.

    Parameters
    ----------
    quantiles
        Between 0 and 1, increasing.
    thresholds_mm_h
        Rates whose exceedance is counted [mm h-1], positive and increasing.

    Raises
    ------
    InputError
        A value outside its range, not a number, or out of order.
    """

    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    thresholds_mm_h: tuple[float, ...] = (0.1, 1.0, 5.0, 10.0, 20.0, 50.0)

    def __post_init__(self) -> None:
        if not _increase(self.quantiles) or any(not 0 <= value <= 1 for value in self.quantiles):
            raise _bad("--quantiles", _text(self.quantiles), "numbers from 0 to 1, increasing")
        # As members are: of two that are one in float32, or of 0, all say the same.
        compared = _in_float32(self.thresholds_mm_h)
        if not _increase((0.0, *compared)):
            raise _bad("--thresholds", _text(self.thresholds_mm_h), _THRESHOLDS)

    @classmethod
    def parse(cls, quantiles: str | None = None, thresholds: str | None = None) -> StatisticsSpec:
        """Read comma-separated text; None takes the default.

        >>> StatisticsSpec.parse("0.5, 0.9").quantiles
        (0.5, 0.9)

        Raises
        ------
        InputError
            As for the class, or the text holds something else than numbers.
        """
        values = {}
        if quantiles is not None:
            values["quantiles"] = _numbers("--quantiles", quantiles)
        if thresholds is not None:
            values["thresholds_mm_h"] = _numbers("--thresholds", thresholds)
        return cls(**values)


def _in_float32(values: tuple[float, ...]) -> tuple[float, ...]:
    with np.errstate(over="ignore"):
        return tuple(np.array(values, np.float32).tolist())


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise _bad(option, text, "numbers separated by commas") from error


def _increase(values: tuple[float, ...]) -> bool:
    return all(map(math.isfinite, values)) and all(a < b for a, b in itertools.pairwise(values))


def _text(values: tuple[float, ...]) -> str:
    return ",".join(map(str, values))


def _bad(option: str, got: str, expected: str) -> InputError:
    return InputError(f"{option} got '{got}'; expected {expected}. Correct {option}.")


@dataclass(frozen=True)
class StatisticsBlock:
    """Statistics of some rows of one frame, float32, NaN where any member is missing.

    ``first_row`` says where the block starts. ``mean_mm_h`` and ``std_mm_h`` are (rows, x)
    [mm h-1], ``quantiles_mm_h`` (quantile, rows, x) [mm h-1], ``exceedance`` (threshold, rows, x):
    the share of members at or above each threshold, 0 to 1. The standard deviation is the
    sample's, with M - 1; one member has none, so that it is NaN everywhere.
    """

    first_row: int
    mean_mm_h: Array
    std_mm_h: Array
    quantiles_mm_h: Array
    exceedance: Array


def _statistics(first_row: int, members: Array, spec: StatisticsSpec) -> StatisticsBlock:
    """Statistics of (member, rows, x), which is sorted in place.

    Sums run over sorted values, one member after the other: the result depends neither on the
    order of members nor on how NumPy splits a sum of this shape.
    """
    members.sort(axis=0)  # NaN goes last
    count = len(members)
    missing = np.isnan(members[-1])
    total = np.zeros(members.shape[1:])
    for member in members:
        total += member
    mean = total / count
    total[:] = 0
    for member in members:
        deviation = member - mean
        total += np.multiply(deviation, deviation, out=deviation)
    spread = np.sqrt(total / (count - 1)) if count > 1 else np.full_like(mean, np.nan)
    quantiles = np.empty((len(spec.quantiles), *mean.shape), dtype=np.float32)
    for out, quantile in zip(quantiles, spec.quantiles, strict=True):
        out[:] = _quantile(members, quantile)
        out[missing] = np.nan
    exceedance = np.empty((len(spec.thresholds_mm_h), *mean.shape), dtype=np.float32)
    for out, threshold in zip(exceedance, spec.thresholds_mm_h, strict=True):
        # In float32 on both sides: 0.7 as a member holds it is not below 0.7.
        out[:] = np.count_nonzero(members >= np.float32(threshold), axis=0) / count
        out[missing] = np.nan
    return StatisticsBlock(
        first_row, mean.astype(np.float32), spread.astype(np.float32), quantiles, exceedance
    )


def _quantile(members: Array, quantile: float) -> npt.NDArray[np.float64]:
    """NumPy's method "linear" (type 7 of Hyndman and Fan 1996) on members that are sorted."""
    place = quantile * (len(members) - 1)
    below = min(int(place), max(len(members) - 2, 0))
    lower: npt.NDArray[np.float64] = members[below].astype(np.float64)
    step = members[min(below + 1, len(members) - 1)] - lower
    step *= place - below
    lower += step
    return lower


class MemberStore:
    """The members of one frame, until their statistics are read.

    Members stay in memory if they take at most half of ``max_bytes``; otherwise they go to a
    temporary file without a name, which the system deletes even if the process is killed.

    Parameters
    ----------
    members
        Ensemble size.
    shape
        (y, x) of one member.
    max_bytes
        Memory the store may use for members and statistics together.
    folder
        Where the temporary file would go: the output's folder has room for results.
    spec
        Which statistics are wanted.

    Raises
    ------
    InputError
        No members, or the memory does not hold one row's statistics.

    Examples
    --------
    >>> with MemberStore(2, (1, 3), 1 << 20, ".", StatisticsSpec()) as store:
    ...     store.add(0, np.float32([[0, 1, 2]]))
    ...     store.add(1, np.float32([[0, 3, 4]]))
    ...     [block.mean_mm_h.tolist() for block in store.blocks()]
    [[[0.0, 2.0, 3.0]]]
    """

    def __init__(
        self,
        members: int,
        shape: tuple[int, int],
        max_bytes: int,
        folder: str | Path,
        spec: StatisticsSpec,
    ) -> None:
        if members < 1:
            raise InputError(f"Got {members} members; expected at least 1. Set --members.")
        self.members, self.shape, self.max_bytes, self.spec = members, shape, max_bytes, spec
        self._rows = self._rows_at_once()  # raises before a member is drawn
        self._folder = Path(folder)
        self._added: set[int] = set()
        self._held: Array | None = None
        self._file: io.BufferedRandom | None = None

    @property
    def spills(self) -> bool:
        """Whether members go to a temporary file."""
        return 2 * self._total_bytes > self.max_bytes

    @property
    def _total_bytes(self) -> int:
        return self.members * self.shape[0] * self.shape[1] * _CELL_BYTES

    def __enter__(self) -> MemberStore:
        if not self.spills:
            self._held = np.empty((self.members, *self.shape), dtype=np.float32)
            return self
        try:
            # Plain reads and writes: pages of a memory map would count as this process's memory.
            self._file = tempfile.TemporaryFile(dir=self._folder)
        except OSError as error:
            raise self._cannot_spill(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._held = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, member: int, rate_mm_h: Array) -> None:
        """Keep a copy of one member (y, x) [mm h-1], NaN where missing; in any order.

        Raises
        ------
        InputError
            The member's number or shape is not one of this store's.
        OutputError
            The temporary file cannot be written, for example on a full disk.
        """
        if not 0 <= member < self.members or rate_mm_h.shape != self.shape:
            raise InputError(
                f"Got member {member} of shape {rate_mm_h.shape}; expected one of 0 to "
                f"{self.members - 1} of shape {self.shape}. Open a store of that size."
            )
        if self._held is not None:
            self._held[member] = rate_mm_h
        else:
            assert self._file is not None, "the store is a context manager"
            try:
                self._file.seek(member * (self._total_bytes // self.members))
                self._file.write(np.ascontiguousarray(rate_mm_h, dtype=np.float32).data)
                self._file.flush()  # a full disk is to be told here, not when the file is closed
            except OSError as error:
                raise self._cannot_spill(error) from error
        self._added.add(member)

    def blocks(self) -> Iterator[StatisticsBlock]:
        """Statistics over all members, from the first rows to the last; then the store is empty.

        The result depends neither on the memory given nor on the order of members, bit for bit.

        Raises
        ------
        InputError
            A member was not added.
        OutputError
            The temporary file cannot be read back.
        """
        absent = self.members - len(self._added)
        if absent:
            raise InputError(
                f"{absent} of {self.members} members are not in the store; expected all of them. "
                "Add them before asking for statistics."
            )
        for first in range(0, self.shape[0], self._rows):
            last = min(first + self._rows, self.shape[0])
            yield _statistics(first, self._read(first, last), self.spec)
        self._added.clear()  # the next frame's members are others

    def _rows_at_once(self) -> int:
        results = 2 + len(self.spec.quantiles) + len(self.spec.thresholds_mm_h)
        # The members, the mask of those at or above a threshold, sums, and the results: those of
        # the block before too, which its reader still holds.
        cell = self.members * (_CELL_BYTES + 1) + _WORKING_BYTES + 2 * results * _CELL_BYTES
        free = self.max_bytes - (0 if self.spills else self._total_bytes)
        rows = free // (cell * self.shape[1])
        if rows < 1:
            raise InputError(
                f"Statistics of {self.members} members got {self.max_bytes:,} bytes; expected at "
                f"least {cell * self.shape[1] + self.max_bytes - free:,} for one row of "
                f"{self.shape[1]} cells. Set a larger --max-memory."
            )
        return min(rows, max(1, _BLOCK_BYTES // (cell * self.shape[1])))

    def _read(self, first: int, last: int) -> Array:
        """A copy of some rows of all members, (member, rows, x)."""
        if self._held is not None:
            return np.array(self._held[:, first:last])
        assert self._file is not None, "the store is a context manager"
        width = self.shape[1]
        out = np.empty((self.members, last - first, width), dtype=np.float32)
        try:
            for member in range(self.members):
                self._file.seek((member * self.shape[0] + first) * width * _CELL_BYTES)
                if self._file.readinto(out[member].data) != out[member].nbytes:
                    raise OSError("the temporary file has been cut short")
        except OSError as error:
            raise self._cannot_spill(error) from error
        return out

    def _cannot_spill(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._folder}: the temporary file of {self.members} members cannot be used "
            f"({error}); expected room for {self._total_bytes / 2**20:,.0f} MiB. Free some space, "
            "write to another folder, or set a larger --max-memory."
        )
