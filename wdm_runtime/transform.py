"""Between rain rates and the space the model works in, and the standardisation of subbands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError

Array = npt.NDArray[np.floating]

# A function of rates and its inverse, each into an array of its argument's kind.
_FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "log10": (np.log10, lambda z, out: np.power(np.float32(10.0), z, out=out)),
    "cube-root": (np.cbrt, lambda z, out: np.power(z, np.float32(3.0), out=out)),
}
_MOST_MM_H = 100.0  # with more, no rain differs from none
TRANSFORMS = LOG10, CUBE_ROOT = tuple(_FUNCTIONS)


@dataclass(frozen=True)
class PrecipTransform:
    """z = f(r + offset) + shift, r in mm h-1, f the decimal logarithm or the cube root.

    With the defaults a dry cell is 0, 1 mm/h is 1.04 and 100 mm/h is 3.0. What comes back below
    ``dry_threshold_mm_h`` is no rain, or another cell's: see `consistency`.
    """

    name: str = "log10"
    offset_mm_h: float = 0.1
    shift: float = 1.0
    dry_threshold_mm_h: float = 0.1

    def __post_init__(self) -> None:
        sizes = (
            0 < self.offset_mm_h < _MOST_MM_H
            and 0 <= self.dry_threshold_mm_h < _MOST_MM_H
            and np.isfinite(self.shift)
        )
        if self.name not in TRANSFORMS or not sizes:
            raise InputError(
                f"Transform '{self.name}' with offset {self.offset_mm_h}, shift {self.shift} and "
                f"dry threshold {self.dry_threshold_mm_h} is unknown; expected one of "
                f"{', '.join(TRANSFORMS)} with a positive offset below {_MOST_MM_H:g} mm/h. "
                "Correct --transform or --transform-offset."
            )

    @classmethod
    def zero_where_dry(cls, name: str = LOG10, offset_mm_h: float = 0.1) -> PrecipTransform:
        """The transform with the shift that makes a dry cell 0.

        Raises
        ------
        InputError
            The name is none of ``TRANSFORMS``, or the offset is out of bounds.
        """
        unshifted = cls(name, offset_mm_h, 0.0)
        return cls(name, offset_mm_h, -float(_FUNCTIONS[name][0](unshifted.offset_mm_h)))

    def forward(self, rate_mm_h: Array) -> npt.NDArray[np.float32]:
        """Rates [mm h-1], any shape -> z, float32. Negative rates count as 0; NaN stays NaN."""
        z: npt.NDArray[np.float32] = np.maximum(rate_mm_h, 0).astype(np.float32)
        z += np.float32(self.offset_mm_h)
        _FUNCTIONS[self.name][0](z, out=z)
        z += np.float32(self.shift)
        return z

    def inverse(self, z: Array) -> npt.NDArray[np.float32]:
        """z, any shape -> rates [mm h-1], float32, never negative; faint ones are kept."""
        rate: npt.NDArray[np.float32] = z.astype(np.float32) - np.float32(self.shift)
        with np.errstate(over="ignore"):  # infinite rates are refused with the member they are in
            _FUNCTIONS[self.name][1](rate, out=rate)
        rate -= np.float32(self.offset_mm_h)
        return np.maximum(rate, 0, out=rate)


@dataclass(frozen=True)
class SubbandScale:
    """Mean and standard deviation of one quantity for each subband, in channel order."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        ok = len(self.mean) == len(self.std) and all(s > 0 for s in self.std)
        if not ok or not np.all(np.isfinite((*self.mean, *self.std))):
            raise InputError(
                f"Subband scales have {len(self.mean)} means and {len(self.std)} standard "
                "deviations; expected as many finite means as positive standard deviations. "
                "Export the bundle again."
            )

    def standardise(self, coeffs: Array) -> npt.NDArray[np.float32]:
        """(c, h, w) -> (coeffs - mean) / std."""
        mean, std = self._columns()
        return np.asarray((coeffs - mean) / std, dtype=np.float32)

    def restore(self, scaled: Array) -> npt.NDArray[np.float32]:
        """(c, h, w) -> scaled * std + mean, the inverse of `standardise`."""
        mean, std = self._columns()
        return np.asarray(scaled * std + mean, dtype=np.float32)

    def _columns(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        mean = np.asarray(self.mean, dtype=np.float32)[:, None, None]
        return mean, np.asarray(self.std, dtype=np.float32)[:, None, None]
