"""What tuning and evaluation judge by: tiles with rain, the fair CRPS, and spectra.

Arrays are (y, x) [mm h-1]; members come first, (member, y, x). One cell of the fine grid is called
1 km wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from wdm_runtime.transform import PrecipTransform

Array = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]
Places = Sequence[tuple[int, int]]  # first row and column of every tile in the fine field

WET_MM_H = 0.1
MIN_WET_SHARE = 0.05
MAX_MISSING_SHARE = 0.01
TILE_PX = 288
BANDS_KM = ((2, 4), (4, 8), (8, 16), (16, 32))
Z_RANGE = 3.176  # z of 150 mm/h: PSNR, SSIM and spectra see z / Z_RANGE, whose data range is 1
# Far above float32 rounding, far below any rain: keeps the ratio of a dry forecast finite.
LEAST_POWER = 1e-12
_TRANSFORM = PrecipTransform()


def find_tiles(
    fine: Array, size: int = TILE_PX, missing_share: float = MAX_MISSING_SHARE
) -> list[tuple[int, int]]:
    """Non-overlapping tiles with rain and hardly a missing cell.

    Parameters
    ----------
    fine
        (y, x) [mm h-1], NaN where missing; tiles lie on a grid that starts at its first cell.
    size
        Tile edge in cells.
    missing_share
        Tiles have less than this missing, 1 % by default.

    Returns
    -------
    First (row, column) of every tile with less missing and over 5 % at 0.1 mm/h or more.
    """
    found = []
    for row in range(0, fine.shape[0] - size + 1, size):
        for column in range(0, fine.shape[1] - size + 1, size):
            tile = fine[window((row, column), size)]
            missing = np.count_nonzero(np.isnan(tile))
            wet = np.count_nonzero(tile >= WET_MM_H)
            if missing < missing_share * tile.size and wet > MIN_WET_SHARE * tile.size:
                found.append((row, column))
    return found


def window(place: tuple[int, int], size: int) -> tuple[slice, slice]:
    """The tile at a place."""
    return slice(place[0], place[0] + size), slice(place[1], place[1] + size)


def wanted_cells(shape: tuple[int, ...], places: Places, size: int) -> npt.NDArray[np.bool_]:
    """Fine mask of the cells in any of the tiles."""
    wanted = np.zeros(shape, dtype=np.bool_)
    for place in places:
        wanted[window(place, size)] = True
    return wanted


def cut_tiles(rate_mm_h: Array, places: Places, size: int) -> Array:
    """(tile, size, size) copies of the tiles of a domain."""
    return np.stack([rate_mm_h[window(place, size)] for place in places])


def scaled_z(rate_mm_h: Array) -> npt.NDArray[np.float32]:
    """Rates [mm h-1] -> z / 3.176, z = log10(rate + 0.1) + 1: dry is 0, 150 mm/h is 1."""
    return np.asarray(_TRANSFORM.forward(rate_mm_h) / np.float32(Z_RANGE))


@lru_cache(maxsize=4)
def _wavenumbers(size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rounded radial wavenumber of every Fourier coefficient, and how many have each."""
    frequency = np.fft.fftfreq(size) * size
    radius = np.rint(np.hypot(frequency[:, None], frequency)).astype(np.intp).ravel()
    return radius, np.bincount(radius)


def radial_spectrum(field: Array) -> Float64:
    """Radially averaged power spectrum of a square field.

    |FFT|^2 / cells, averaged over the coefficients whose radial wavenumber rounds to k; no
    window, no detrending. White noise of variance s^2 has the level s^2 at every k.

    Parameters
    ----------
    field
        (n, n), no missing cells.

    Returns
    -------
    (n // 2 + 1,), power at k = 0 .. n // 2 cycles across the field.
    """
    size = field.shape[0]
    radius, count = _wavenumbers(size)
    power = np.abs(np.fft.fft2(field.astype(np.float64))) ** 2 / field.size
    mean = np.bincount(radius, power.ravel()) / count
    return np.asarray(mean[: size // 2 + 1])


def windowed(field: Array) -> Float64:
    """A square field without its mean, brought to 0 at its edges.

    By a periodic Hann window along both axes, of mean square 1: white noise keeps its level. A tile
    of rain does not go on where it began. Without a window that step is in the spectra of truth and
    forecast alike, falls slower with the wavenumber than rain's own, and pulls their ratio to 1.
    """
    along = np.hanning(field.shape[0] + 1)[:-1]
    hann = np.outer(along, along)
    anomaly = field - (hann * field).sum() / hann.sum()
    return np.asarray(hann * anomaly / np.sqrt(np.mean(hann**2)))


def band_ratio_db(
    forecast: Float64, truth: Float64, bands: Sequence[tuple[int, int]] = BANDS_KM
) -> Float64:
    """Mean log ratio of two radial spectra in bands of wavelength [low, high) km, in dB.

    The spectra are those of z (dry cells are 0 there), not of rates: rates would be ruled by the
    few heaviest cells. So defined, with the mean of the ratios in dB over the wavenumbers of a
    band, bicubic gives -4.0 -4.3 -4.3 -2.2 dB on the 57 validation tiles of August 2022; spectra
    of rates give -5.3 -7.8 -8.8 -4.0.

    Parameters
    ----------
    forecast, truth
        (n // 2 + 1,) from `radial_spectrum` of n x n cells of 1 km.

    Returns
    -------
    (bands,), 0 where both have the same power. NaN where a band holds no wavenumber.
    """
    wavenumber = np.arange(truth.size)
    size = 2 * (truth.size - 1)
    ratio = 10 * np.log10(np.maximum(forecast, LEAST_POWER) / np.maximum(truth, LEAST_POWER))
    out = np.full(len(bands), np.nan)
    for i, (low, high) in enumerate(bands):
        inside = (wavenumber > size / high) & (wavenumber <= size / low)
        if inside.any():
            out[i] = ratio[inside].mean()
    return out


def fair_crps(members: Array, truth: Array) -> Float64:
    """Fair continuous ranked probability score of every cell.

    mean|x_i - y| - sum_ij|x_i - x_j| / (2 M (M - 1)): its expectation does not depend on M.
    Ferro 2014, doi 10.1002/qj.2270. A single member has no spread: its score is |x - y|.

    Parameters
    ----------
    members
        (member, ...) [mm h-1].
    truth
        (...) [mm h-1].

    Returns
    -------
    (...) [mm h-1], NaN where truth or a member is.
    """
    count = members.shape[0]
    error = np.abs(members - truth).mean(axis=0, dtype=np.float64)
    if count == 1:
        return np.asarray(error)
    # Sorted, member k exceeds k others and is exceeded by the rest: no M x M pairs in memory.
    weights = 2 * np.arange(count) - count + 1
    half_pairs = np.tensordot(weights.astype(np.float64), np.sort(members, axis=0), axes=1)
    return np.asarray(error - half_pairs / (count * (count - 1)))
