"""Wavelets by name: the filter banks of PyWavelets, which the runtime gets as data."""

from __future__ import annotations

from itertools import groupby

import pywt

from wdm_runtime.errors import InputError
from wdm_runtime.wavelets import HAAR, FilterBank, WaveletSpec


def named_wavelet(name: str, levels: int) -> WaveletSpec:
    """A discrete wavelet of PyWavelets with its filters.

    Raises
    ------
    InputError
        PyWavelets has none of that name, or one that does not reconstruct perfectly (``"dmey"``),
        or the levels are too many.
    """
    known = pywt.wavelist(kind="discrete")
    if name not in known:
        raise InputError(
            f"--wavelet got '{name}'; expected a discrete wavelet of PyWavelets: "
            f"{', '.join(_families(known))}. Correct it."
        )
    filters = None if name == HAAR else FilterBank(*pywt.Wavelet(name).filter_bank)
    return WaveletSpec(name, levels, filters)


def _families(names: list[str]) -> list[str]:
    """The first and last name of each family."""
    families = [list(f) for _, f in groupby(names, lambda name: name.rstrip("0123456789."))]
    return [f"{f[0]} to {f[-1]}" if len(f) > 1 else f[0] for f in families]
