"""Addressed Gaussian noise: the same address gives the same words on every machine.

A draw is addressed by (seed, valid time, member, step, subband, row, column), rows and columns
counted in coefficients from the north-west corner of the whole input. Nothing depends on how many
members, frames or tiles are computed, nor in which order.

The stream is Philox 4x64-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405), whose raw output
NumPy keeps stable. Its 128-bit key is the BLAKE2b hash of (seed, valid time, member, step). One
block (counter) gives four 64-bit words; a coefficient column with ``c`` subbands uses
``ceil(c / 8)`` blocks, at counter (column * blocks, row, 0, 0). Word ``j`` of a column gives the
subbands ``2 j`` and ``2 j + 1`` by Box and Muller's map, because NumPy does not promise to keep
its own normals: with a = its upper and b = its lower 32 bits,
    u = (a + 1) 2^-32 in (0, 1],   phi = b 2^-32 * 2 pi,   r = sqrt(-2 ln u),
    n0 = r cos(phi),  n1 = r sin(phi)
in float32. The largest magnitude is 6.66. NumPy rounds float32 logarithms and cosines by the
instructions a CPU has, so the normals of two machines agree within 5e-7, and on one to the bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError, check_number

Array = npt.NDArray[np.float32]

_WORDS_PER_BLOCK = 4
_NORMALS_PER_BLOCK = 2 * _WORDS_PER_BLOCK
# Keeps positions left of or above the origin (padding) positive, so counters never borrow.
_ORIGIN = 1 << 32
_BAND_ROWS = 64
_LEAST_PERIOD_MIN = 1e-3  # of noise that evolves: anchors are counted since 1970
INITIAL_STEP = -1  # the address of the state that sampling starts from


def normals_from_words(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Box and Muller's map as documented above: (n, ...) words -> (2 n, ...) normals."""
    radius = (words >> np.uint64(32)).astype(np.float32)
    angle = (words & np.uint64(0xFFFFFFFF)).astype(np.float32)
    # float32 cannot tell 2^32 - 1 from 2^32: then u = 1 and the radius is 0, as it should be.
    radius += np.float32(1.0)
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle *= np.float32(2.0 * np.pi * 2.0**-32)
    out = np.empty((2 * len(words), *words.shape[1:]), dtype=np.float32)
    np.multiply(radius, np.cos(angle), out=out[0::2])
    np.multiply(radius, np.sin(angle), out=out[1::2])
    return out


@dataclass(frozen=True)
class NoiseSource:
    """Noise of one member of one frame.

    Parameters
    ----------
    seed
        The user's seed, any integer.
    valid_time
        Identifies the frame: its valid time as text, for example ``"2022-08-09T15:00:00"``.
    member
        Member number from 0.
    """

    seed: int
    valid_time: str
    member: int

    def draw(
        self,
        step: int,
        subbands: int,
        rows: tuple[int, int],
        columns: tuple[int, int],
        covered: npt.NDArray[np.bool_] | None = None,
    ) -> Array:
        """Standard normals of a window of the coefficient grid.

        Parameters
        ----------
        step
            Sampling step, or `INITIAL_STEP`.
        subbands
            Channels of the coefficient grid.
        rows, columns
            Half-open ranges in coefficients from the input's north-west corner; may be negative.
        covered
            Optional (rows, columns) mask: only these cells are drawn, the others are 0.

        Returns
        -------
        (subbands, rows, columns), float32.
        """
        stream = _Stream(self._key(step), -(-subbands // _NORMALS_PER_BLOCK))
        height, width = rows[1] - rows[0], columns[1] - columns[0]
        out = np.zeros((subbands, height, width), dtype=np.float32)
        for top in range(0, height, _BAND_ROWS):
            # A band of rows at a time: the raw words of a whole domain would be twice its noise.
            band = slice(top, min(height, top + _BAND_ROWS))
            mask = np.ones((band.stop - top, width), np.bool_) if covered is None else covered[band]
            # Word by word, so that each subband is one piece; no more than the subbands need.
            words = np.empty((-(-subbands // 2), np.count_nonzero(mask)), dtype=np.uint64)
            done = 0
            for row, start, stop in _runs(mask):
                drawn = stream.words(rows[0] + top + row, columns[0] + start, stop - start)
                words[:, done : done + len(drawn)] = drawn[:, : len(words)].T
                done += len(drawn)
            out[:, band][:, mask] = normals_from_words(words)[:subbands]
        return out

    def _key(self, step: int) -> npt.NDArray[np.uint64]:
        address = f"wdm-noise-1|{self.seed}|{self.valid_time}|{self.member}|{step}"
        digest = hashlib.blake2b(address.encode(), digest_size=16).digest()
        return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


@dataclass(frozen=True)
class EvolvingNoise:
    """cos(a) e_k + sin(a) e_k+1: a rotation between two draws, so the variance is exactly 1."""

    earlier: NoiseSource
    later: NoiseSource
    angle: float

    def draw(
        self,
        step: int,
        subbands: int,
        rows: tuple[int, int],
        columns: tuple[int, int],
        covered: npt.NDArray[np.bool_] | None = None,
    ) -> Array:
        """As `NoiseSource.draw`."""
        drawn = self.earlier.draw(step, subbands, rows, columns, covered)
        drawn *= np.float32(math.cos(self.angle))
        later = self.later.draw(step, subbands, rows, columns, covered)
        later *= np.float32(math.sin(self.angle))
        drawn += later
        return drawn


Noise = NoiseSource | EvolvingNoise


def noise_of(seed: int, valid_time: str, member: int, decorrelation_min: float = 0.0) -> Noise:
    """The noise of one member of one frame.

    Parameters
    ----------
    seed, valid_time, member
        As for `NoiseSource`.
    decorrelation_min
        0: frames are independent. Otherwise draws are anchored at the multiples of this period
        since 1970, and a frame between two anchors blends them: two frames less than a period apart
        share noise, frames two periods apart share none. A frame's noise depends on its own
        valid time only, not on which other frames are computed.

    Raises
    ------
    InputError
        A negative, infinite or tiny period, or a frame without a date of the Gregorian calendar in
        UTC.
    """
    check_number("noise_decorrelation_min", decorrelation_min)
    if decorrelation_min != 0.0 and not _LEAST_PERIOD_MIN <= decorrelation_min < math.inf:
        raise InputError(
            f"Got a noise decorrelation of {decorrelation_min:g} minutes; expected 0, or "
            f"{_LEAST_PERIOD_MIN:g} or more. Set --noise-decorrelation."
        )
    if decorrelation_min == 0.0:
        return NoiseSource(seed, valid_time, member)
    try:
        minutes = (datetime.fromisoformat(valid_time) - datetime(1970, 1, 1)).total_seconds() / 60.0
    except (ValueError, TypeError) as error:  # no date, or one with a zone
        raise InputError(
            f"Got the valid time '{valid_time}' with a noise decorrelation of "
            f"{decorrelation_min:g} minutes; expected a date of the Gregorian calendar without "
            "zone. Leave --noise-decorrelation at 0 for this file."
        ) from error
    anchor, rest = divmod(minutes, decorrelation_min)
    earlier, later = (
        NoiseSource(seed, f"anchor {float(decorrelation_min)!r} min {int(anchor) + k}", member)
        for k in (0, 1)
    )
    return EvolvingNoise(earlier, later, math.pi / 2.0 * rest / decorrelation_min)


class _Stream:
    """Raw words by place, in the order of counters: row by row, from west to east.

    One generator that is moved on: making one for each row would take as long as its words.
    """

    def __init__(self, key: npt.NDArray[np.uint64], blocks: int) -> None:
        self._philox, self._blocks, self._counter = np.random.Philox(key=key, counter=0), blocks, 0

    def words(self, row: int, column: int, columns: int) -> npt.NDArray[np.uint64]:
        """Words of consecutive columns of a row, (columns, words of a column)."""
        counter = ((row + _ORIGIN) << 64) + (column + _ORIGIN) * self._blocks
        self._philox.advance(counter - self._counter)
        self._counter = counter + columns * self._blocks
        found = self._philox.random_raw(columns * self._blocks * _WORDS_PER_BLOCK)
        return found.reshape(columns, -1)


def _runs(mask: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """(row, start, stop) of every run of a mask, row by row."""
    edges = np.zeros((mask.shape[0], mask.shape[1] + 2), dtype=np.int8)
    edges[:, 1:-1] = mask
    steps = np.diff(edges, axis=1)
    rows, starts = np.nonzero(steps == 1)
    stops = np.nonzero(steps == -1)[1]
    return zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)
