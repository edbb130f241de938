"""Wavelet packets of any two-channel filter bank in NumPy: the oracle for every other form.

Subband order of one level is (LL, LH, HL, HH) as PyWavelets' (cA, cH, cV, cD): H is the
difference between rows, V between columns, D between diagonals; with Haar, upper/left minus
lower/right. A further level splits every subband of the level before (a full packet), so subband
``i`` of level one becomes ``4 i .. 4 i + 3``. Index 0 is always the approximation, all others are
details.

Borders are periodic (PyWavelets' mode 'periodization'), so that a field of any size has as many
coefficients as cells and comes back exactly. Filters longer than Haar's see the opposite border:
whoever cares about borders gives a field a `WaveletSpec.margin` more on each side than needed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.records import OPTIONAL

Array = npt.NDArray[np.floating]
Taps = tuple[float, ...]

HAAR = "haar"
MAX_TAPS = 128  # PyWavelets' longest filters have 102
# The longest filters lose 1e-11 by their own rounding; fields are float32, which resolve 6e-8.
RECONSTRUCTION_LIMIT = 1e-7
_MAX_TAP = 8.0  # of PyWavelets' filters none exceeds 1.1; a steeper bank overflows
_LEVEL_NAMES = ("A", "H", "V", "D")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_HALF = math.sqrt(0.5)  # Haar's tap


# Taps are scaled by sqrt 2, so that Haar's are exactly ±1. After both axes the result is 2 times
# too large; `_analyse` and `_synthesise` halve it.


def _split(x: Array, bank: FilterBank, axis: int) -> tuple[Array, Array]:
    """Low and high pass at every second place along an axis of (c, y, x)."""
    x = _wrapped(x, len(bank) // 2 - 1, axis)
    low, high = (
        sum(
            (tap / _HALF) * x[_along(axis, slice(first, x.shape[axis] - len(bank) + 1 + first, 2))]
            for first, tap in enumerate(reversed(taps))
        )
        for taps in (bank.dec_lo, bank.dec_hi)
    )
    return np.asarray(low), np.asarray(high)


def _join(low: Array, high: Array, bank: FilterBank, axis: int) -> Array:
    """The inverse of `_split` but for a factor of 2."""
    half, reach, size = len(bank) // 2, len(bank) // 4, low.shape[axis]
    out = np.zeros([2 * n if a == axis else n for a, n in enumerate(low.shape)], low.dtype)
    for part, taps in ((low, bank.rec_lo), (high, bank.rec_hi)):
        part = _wrapped(part, reach, axis)
        for place, tap in enumerate(taps):
            # Cells of one parity, each from the coefficient that lies so that it sees this tap.
            parity = (place - half + 1) % 2
            first = reach + (parity + half - 1 - place) // 2
            taken = part[_along(axis, slice(first, first + size))]
            out[_along(axis, slice(parity, None, 2))] += (tap / _HALF) * taken
    return out


def _wrapped(x: Array, cells: int, axis: int) -> Array:
    """The array continued periodically by some cells at both ends of an axis."""
    size = x.shape[axis]
    return np.take(x, np.arange(-cells, size + cells), axis, mode="wrap") if cells else x


def _along(axis: int, cells: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, cells)


@dataclass(frozen=True)
class FilterBank:
    """Analysis (``dec``) and synthesis (``rec``) filters in PyWavelets' order and normalisation.

    Raises
    ------
    InputError
        Of different, odd or too great lengths, not finite, low and high passes that are none, or
        filters that do not give back what they split.
    """

    dec_lo: Taps
    dec_hi: Taps
    rec_lo: Taps
    rec_hi: Taps

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        every = (self.dec_lo, self.dec_hi, self.rec_lo, self.rec_hi)
        lengths = sorted({len(taps) for taps in every})
        if len(lengths) > 1 or lengths[0] % 2 or not 2 <= lengths[0] <= MAX_TAPS:
            raise InputError(
                f"A filter bank has filters of {lengths} taps; expected four of one even length "
                f"from 2 to {MAX_TAPS}. Correct the wavelet's filters."
            )
        if not all(abs(tap) <= _MAX_TAP for taps in every for tap in taps):  # nor is NaN
            raise InputError(
                f"A filter bank has taps that are not finite or beyond {_MAX_TAP:g}; expected "
                "filters whose low passes sum to the root of 2. Correct the wavelet's filters."
            )
        fault = max(self._gain_fault(), self._reconstruction_fault())
        if not fault <= RECONSTRUCTION_LIMIT:
            raise InputError(
                f"A filter bank changes what it splits and joins again by {fault:.1e}, or its high "
                f"passes let a constant through; expected {RECONSTRUCTION_LIMIT:.0e} at most. "
                "Choose a wavelet of perfect reconstruction."
            )

    def __len__(self) -> int:
        """Taps of each filter."""
        return len(self.dec_lo)

    def _gain_fault(self) -> float:
        """How far a constant is from going through the low passes alone."""
        low = max(abs(sum(taps) - math.sqrt(2)) for taps in (self.dec_lo, self.rec_lo))
        return max(low, *(abs(sum(taps)) for taps in (self.dec_hi, self.rec_hi)))

    def _reconstruction_fault(self) -> float:
        """Largest change of an impulse by splitting and joining, at either phase."""
        size = 2 * len(self)  # so long that nothing meets itself around the border
        impulses = np.eye(2, size)[:, None]
        joined = _join(*_split(impulses, self, 2), self, 2) / 2  # their gain is 2
        return float(np.abs(joined - impulses).max())


_HAAR_BANK = FilterBank((_HALF, _HALF), (-_HALF, _HALF), (_HALF, _HALF), (_HALF, -_HALF))


@dataclass(frozen=True)
class WaveletSpec:
    """Which transform the model works in. ``levels`` 0 is the identity (the pixel model).

    ``name`` is a label: what it stands for are the ``filters``, which all but Haar bring along.
    """

    name: str = HAAR
    levels: int = 2
    filters: FilterBank | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.name) or not 0 <= self.levels <= 4:
            raise InputError(
                f"Wavelet {self.name[:40]!r} with {self.levels} levels is unknown; expected a "
                "plain name with 0 to 4 levels. Correct the wavelet's settings."
            )
        if (self.name == HAAR) != (self.filters is None):
            raise InputError(
                f"Wavelet '{self.name}' comes {'without' if self.filters is None else 'with'} "
                f"filters of its own; expected them of every wavelet but '{HAAR}'. Correct the "
                "wavelet's settings."
            )

    @property
    def bank(self) -> FilterBank:
        """The filters of one level."""
        return self.filters or _HAAR_BANK

    @property
    def stride(self) -> int:
        """Fine cells per coefficient along one axis."""
        return int(2**self.levels)

    @property
    def margin(self) -> int:
        """How many coefficients beyond its own a cell touches, and a coefficient cells; Haar 0."""
        reach = (len(self.bank) // 2 - 1) * (self.stride - 1)  # cells beyond a coefficient's own
        return -(-reach // self.stride)

    @property
    def least_coeffs(self) -> int:
        """Coefficients along an axis that the graphs need: theirs wrap around once at most."""
        return max(1, len(self.bank) // 4)

    @property
    def inner(self) -> tuple[Any, ...]:
        """Index of (..., h, w) coefficients without a margin along each border."""
        inside = slice(self.margin, -self.margin or None)
        return ..., inside, inside

    @property
    def subbands(self) -> int:
        """Coefficient channels per field channel."""
        return int(4**self.levels)

    @property
    def subband_names(self) -> tuple[str, ...]:
        """Names in channel order, for example ``("AA", "AH", ...)`` for two levels."""
        names = [""]
        for _ in range(self.levels):
            names = [name + letter for name in names for letter in _LEVEL_NAMES]
        return tuple(name or "pixel" for name in names)


def _analyse(x: Array, bank: FilterBank) -> Array:
    """(c, 2h, 2w) -> (4c, h, w), channels grouped by input channel."""
    bands = [band for part in _split(x, bank, 2) for band in _split(part, bank, 1)]
    out = np.stack(bands, axis=1)
    out *= 0.5
    return out.reshape(-1, *out.shape[2:])


def _synthesise(y: Array, bank: FilterBank) -> Array:
    """(4c, h, w) -> (c, 2h, 2w), the inverse of `_analyse`."""
    low, high = (_join(y[k::4], y[k + 1 :: 4], bank, 1) for k in (0, 2))
    out = _join(low, high, bank, 2)
    out *= 0.5
    return out


def dwt(field: Array, spec: WaveletSpec) -> Array:
    """Forward packet transform.

    Parameters
    ----------
    field
        (c, y, x), both sizes multiples of ``spec.stride``. NaN spreads to every subband.

    Returns
    -------
    (c * spec.subbands, y / stride, x / stride), same dtype.

    Raises
    ------
    InputError
        A size is not a multiple of the stride.
    """
    if field.ndim != 3 or field.shape[1] % spec.stride or field.shape[2] % spec.stride:
        raise InputError(
            f"The wavelet transform got a field of shape {field.shape}; expected (c, y, x) with "
            f"y and x multiples of {spec.stride}. Pad the field first."
        )
    for _ in range(spec.levels):
        field = _analyse(field, spec.bank)
    return field


def idwt(coeffs: Array, spec: WaveletSpec) -> Array:
    """Inverse packet transform: (c * subbands, h, w) -> (c, h * stride, w * stride).

    Raises
    ------
    InputError
        The coefficients are not (c, h, w), or c is no multiple of the subbands.
    """
    if coeffs.ndim != 3 or coeffs.shape[0] % spec.subbands:
        raise InputError(
            f"The inverse wavelet transform got coefficients of shape {coeffs.shape}; expected "
            f"(c, h, w) with c a multiple of {spec.subbands}. Check the number of levels."
        )
    for _ in range(spec.levels):
        coeffs = _synthesise(coeffs, spec.bank)
    return coeffs
