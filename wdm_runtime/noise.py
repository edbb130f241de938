"""Addressed Gaussian noise: the same address gives the same number on every machine.

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
in float32. The largest magnitude is 6.66.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_WORDS_PER_BLOCK = 4
_NORMALS_PER_BLOCK = 2 * _WORDS_PER_BLOCK
# Keeps positions left of or above the origin (padding) positive, so counters never borrow.
_ORIGIN = 1 << 32
INITIAL_STEP = -1  # the address of the state that sampling starts from


def normals_from_words(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Box and Muller's map as documented above: (..., n) words -> (..., 2 n) normals."""
    upper = (words >> np.uint64(32)).astype(np.float32)
    lower = (words & np.uint64(0xFFFFFFFF)).astype(np.float32)
    # float32 cannot tell 2^32 - 1 from 2^32: then u = 1 and the radius is 0, as it should be.
    upper += np.float32(1.0)
    upper *= np.float32(2.0**-32)
    radius = np.sqrt(np.float32(-2.0) * np.log(upper))
    lower *= np.float32(2.0 * np.pi * 2.0**-32)
    out = np.empty((*words.shape[:-1], 2 * words.shape[-1]), dtype=np.float32)
    np.multiply(radius, np.cos(lower), out=out[..., 0::2])
    np.multiply(radius, np.sin(lower), out=out[..., 1::2])
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
        self, step: int, subbands: int, rows: tuple[int, int], columns: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        """Standard normals of a window of the coefficient grid.

        Parameters
        ----------
        step
            Sampling step, or `INITIAL_STEP`.
        subbands
            Channels of the coefficient grid.
        rows, columns
            Half-open ranges in coefficients from the input's north-west corner; may be negative.

        Returns
        -------
        (subbands, rows, columns), float32.
        """
        key = self._key(step)
        blocks = -(-subbands // _NORMALS_PER_BLOCK)
        height, width = rows[1] - rows[0], columns[1] - columns[0]
        words = np.empty((height, width * blocks * _WORDS_PER_BLOCK), dtype=np.uint64)
        first = (columns[0] + _ORIGIN) * blocks
        for i in range(height):
            counter = np.array([first, rows[0] + i + _ORIGIN, 0, 0], dtype=np.uint64)
            words[i] = np.random.Philox(key=key, counter=counter).random_raw(words.shape[1])
        normals = normals_from_words(words.reshape(height, width, -1))
        return np.ascontiguousarray(np.moveaxis(normals[..., :subbands], -1, 0))

    def _key(self, step: int) -> npt.NDArray[np.uint64]:
        address = f"wdm-noise-1|{self.seed}|{self.valid_time}|{self.member}|{step}"
        digest = hashlib.blake2b(address.encode(), digest_size=16).digest()
        return np.frombuffer(digest, dtype="<u8").astype(np.uint64)
