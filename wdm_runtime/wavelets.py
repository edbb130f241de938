"""Orthonormal Haar wavelet packets in NumPy: the oracle for every other implementation.

Subband order of one level is (LL, LH, HL, HH) as PyWavelets' (cA, cH, cV, cD): H is the
difference between rows, V between columns, D between diagonals, upper/left minus lower/right.
A further level splits every subband of the level before (a full packet), so subband ``i`` of
level one becomes ``4 i .. 4 i + 3``. Index 0 is always the approximation, all others are details.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError

Array = npt.NDArray[np.floating]

WAVELETS = ("haar",)
_LEVEL_NAMES = ("A", "H", "V", "D")
# Rows: output subband; columns: the 2 x 2 block's cells (0,0), (0,1), (1,0), (1,1).
HAAR_KERNELS = 0.5 * np.array(
    [[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]],
    dtype=np.float32,
)


@dataclass(frozen=True)
class WaveletSpec:
    """Which transform the model works in. ``levels`` 0 is the identity (the pixel model)."""

    name: str = "haar"
    levels: int = 2

    def __post_init__(self) -> None:
        if self.name not in WAVELETS or not 0 <= self.levels <= 4:
            raise InputError(
                f"Wavelet '{self.name}' with {self.levels} levels is unknown; expected one of "
                f"{', '.join(WAVELETS)} with 0 to 4 levels. Correct the wavelet's settings."
            )

    @property
    def stride(self) -> int:
        """Fine cells per coefficient along one axis."""
        return int(2**self.levels)

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


def _analyse(x: Array) -> Array:
    """(c, 2h, 2w) -> (4c, h, w), channels grouped by input channel."""
    a, b = x[:, 0::2, 0::2], x[:, 0::2, 1::2]
    c, d = x[:, 1::2, 0::2], x[:, 1::2, 1::2]
    top, bottom, left, right = a + b, c + d, a - b, c - d
    out = np.stack((top + bottom, top - bottom, left + right, left - right), axis=1)
    out *= 0.5
    return out.reshape(-1, *a.shape[1:])


def _synthesise(y: Array) -> Array:
    """(4c, h, w) -> (c, 2h, 2w), the inverse of `_analyse`."""
    ll, lh, hl, hh = (y[k::4] for k in range(4))
    top, bottom, left, right = ll + lh, ll - lh, hl + hh, hl - hh
    out = np.empty((y.shape[0] // 4, 2 * y.shape[1], 2 * y.shape[2]), dtype=y.dtype)
    out[:, 0::2, 0::2], out[:, 0::2, 1::2] = top + left, top - left
    out[:, 1::2, 0::2], out[:, 1::2, 1::2] = bottom + right, bottom - right
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
        field = _analyse(field)
    return field


def idwt(coeffs: Array, spec: WaveletSpec) -> Array:
    """Inverse packet transform: (c * subbands, h, w) -> (c, h * stride, w * stride)."""
    if coeffs.ndim != 3 or coeffs.shape[0] % spec.subbands:
        raise InputError(
            f"The inverse wavelet transform got coefficients of shape {coeffs.shape}; expected "
            f"(c, h, w) with c a multiple of {spec.subbands}. Check the number of levels."
        )
    for _ in range(spec.levels):
        coeffs = _synthesise(coeffs)
    return coeffs
