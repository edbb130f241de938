"""Filter banks in closed form, so that tests of the runtime need no PyWavelets."""

import math

from wdm_runtime.wavelets import FilterBank, WaveletSpec

ROOT = math.sqrt(2)


def orthogonal(rec_lo):
    """A bank whose synthesis mirrors its analysis."""
    rec_hi = tuple((-1) ** k * tap for k, tap in enumerate(reversed(rec_lo)))
    return FilterBank(tuple(reversed(rec_lo)), tuple(reversed(rec_hi)), tuple(rec_lo), rec_hi)


# Daubechies 1988, two vanishing moments.
DB2 = orthogonal(
    [(a + b * math.sqrt(3)) / (4 * ROOT) for a, b in ((1, 1), (3, 1), (3, -1), (1, -1))]
)
# Le Gall and Tabatabai 1988, the 5/3 pair of JPEG 2000; PyWavelets' bior2.2.
BIOR22 = FilterBank(
    tuple(ROOT * tap / 8 for tap in (0, -1, 2, 6, 2, -1)),
    tuple(ROOT * tap / 4 for tap in (0, 1, -2, 1, 0, 0)),
    tuple(ROOT * tap / 4 for tap in (0, 1, 2, 1, 0, 0)),
    tuple(ROOT * tap / 8 for tap in (0, 1, 2, -6, 2, 1)),
)


def spread_haar(taps):
    """Haar's filters with zeros around, which do the same by longer filters."""
    beside = (0.0,) * (taps // 2 - 1)
    half = ROOT / 2
    pairs = ((half, half), (-half, half), (half, half), (half, -half))
    return FilterBank(*(beside + pair + beside for pair in pairs))


BANKS = {"db2": DB2, "bior2.2": BIOR22}


def spec_of(name, levels=2):
    return WaveletSpec(name, levels, BANKS.get(name))
