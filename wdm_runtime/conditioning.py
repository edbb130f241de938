"""What all members of one valid time share: where it may rain, tiles, and the network's condition.

Arrays are north first. A block of ``factor`` x ``factor`` fine cells whose wettest cell stands at
the dry threshold has a mean of threshold / factor^2: a coarse cell below that is dry. Bicubic
interpolation carries a coarse cell's rain two coarse cells far. Beyond that distance from rain the
result is 0 by definition, and no tile is needed.

A cell of wavelets longer than Haar's also depends on coefficients beyond its own, up to the
wavelet's margin away. The coefficient grid therefore reaches a margin beyond the domain on every
side, where the interpolated field goes on as at its border. The transform of it is made of a field
that reaches as far again, so that what wraps around its borders is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wdm_runtime.grid import CUBIC_REACH, cubic_stencil, interpolate
from wdm_runtime.manifest import Manifest
from wdm_runtime.orientation import AS_IT_IS, restored, turned
from wdm_runtime.tiling import Tiling

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

OVERLAP_PX = 32


class Graph(Protocol):
    """What computes a wavelet transform: an engine, or what runs like one."""

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """The graph's output (1, c, y, x) for its one input by name."""
        ...


@dataclass(frozen=True)
class Frame:
    """One valid time before the network sees it.

    Parameters
    ----------
    coarse_mm_h
        (y, x) [mm h-1], NaN where missing.
    near_rain
        (y, x) coarse cells in which there may be fine rain.
    tiling
        Tiles over the coefficient grid, which begins a margin before the domain; none if the frame
        is dry or missing.
    complete
        Whether the tiles cover all of ``near_rain``, not only what was wanted.
    """

    coarse_mm_h: Array
    near_rain: Mask
    tiling: Tiling
    complete: bool


@dataclass(frozen=True)
class Condition:
    """The interpolated field's coefficients (c, h, w), as they are and standardised.

    They are those of the field in ``orientation``, each at its place in the field as it is: tiles,
    noise and the sampler's states never hear of orientations.
    """

    coeffs: Array
    standardised: Array
    orientation: int = AS_IT_IS


def look_at(coarse_mm_h: Array, manifest: Manifest, wanted: Mask | None = None) -> Frame:
    """Find where a coarse frame (y, x) [mm h-1] may rain, and place tiles there.

    ``wanted`` is a fine mask (y * factor, x * factor): no tile answers for other cells.
    """
    near = near_rain(coarse_mm_h, manifest.transform.dry_threshold_mm_h / manifest.factor**2)
    stride, size = manifest.wavelet.stride, manifest.tile_px // manifest.wavelet.stride
    asked = near
    if wanted is not None:
        # Whole coarse cells: their means are only right over all of their fine cells.
        asked = near & _any_in_blocks(wanted, manifest.factor, near.shape)
    fine = spread(asked, manifest.factor)
    shape, margin = grid_shape(fine.shape, manifest), manifest.wavelet.margin
    overlap = _overlap(manifest)
    active = _any_in_blocks(np.pad(fine, ((margin * stride, 0),) * 2), stride, shape)
    tiling = Tiling(shape, size, overlap, _widened(active, margin))
    return Frame(coarse_mm_h, near, tiling, complete=wanted is None)


def grid_shape(fine_shape: tuple[int, ...], manifest: Manifest) -> tuple[int, int]:
    """(height, width) of the coefficient grid of a domain (y, x): never less than a tile."""
    spec = manifest.wavelet
    rows, columns = (
        max(manifest.tile_px // spec.stride, -(-n // spec.stride) + 2 * spec.margin)
        for n in fine_shape
    )
    return rows, columns


def most_tiles(grid: tuple[int, int], manifest: Manifest) -> int:
    """Tiles of a coefficient grid (height, width) with rain everywhere."""
    size = manifest.tile_px // manifest.wavelet.stride
    rows, columns = (1 - (size - n) // (size - _overlap(manifest)) for n in grid)
    return rows * columns


def _overlap(manifest: Manifest) -> int:
    # Small tiles (tests) keep some of their own: a quarter is overlap enough.
    stride = manifest.wavelet.stride
    return min(OVERLAP_PX // stride, manifest.tile_px // stride // 4)


def covered_cells(frame: Frame, manifest: Manifest) -> Mask:
    """Fine cells (y * factor, x * factor) all of whose coefficients lie in tiles."""
    margin, stride = manifest.wavelet.margin, manifest.wavelet.stride
    covered = ~_widened(~frame.tiling.covered, margin)[margin:, margin:]
    height, width = (n * manifest.factor for n in frame.near_rain.shape)
    return spread(covered, stride)[:height, :width]


def near_rain(coarse_mm_h: Array, wet_from_mm_h: float) -> Mask:
    """Coarse cells within `CUBIC_REACH` of one that is wet; missing cells count as dry."""
    # Half the threshold: the mean of a block with one wet cell may be rounded down.
    return _widened(np.nan_to_num(coarse_mm_h, nan=0.0) >= 0.5 * wet_from_mm_h, CUBIC_REACH)


def valid_cells(coarse_mm_h: Array, factor: int) -> Mask:
    """Fine cells whose interpolation reads no missing coarse cell, (y * factor, x * factor)."""
    valid = np.isfinite(coarse_mm_h)
    for axis in (0, 1):
        taps, _ = cubic_stencil(valid.shape[axis], factor)
        valid = np.asarray(np.take(valid, taps, axis=axis).all(axis=axis + 1))
    return valid


def interpolated(coarse_mm_h: Array, factor: int) -> Array:
    """Bicubic interpolation with missing cells taken as dry, (y * factor, x * factor) [mm h-1]."""
    return interpolate(np.nan_to_num(coarse_mm_h, nan=0.0), factor)


def condition(
    frame: Frame, manifest: Manifest, dwt: Graph, orientation: int = AS_IT_IS
) -> Condition:
    """Interpolate, transform in an orientation of `wdm_runtime.orientation` and standardise."""
    fine = interpolated(frame.coarse_mm_h, manifest.factor)
    spec, sizes = manifest.wavelet, zip(frame.tiling.shape, fine.shape, strict=True)
    before = 2 * spec.margin * spec.stride  # the grid's own margin, and the one that is cut off
    padding = [(before, n * spec.stride - m) for n, m in sizes]
    z = manifest.transform.forward(np.pad(fine, padding, mode="edge"))
    field = np.ascontiguousarray(turned(z, orientation))
    coeffs = restored(dwt.run({"field": field[None, None]})[0][spec.inner], orientation)
    coeffs = np.ascontiguousarray(coeffs)
    return Condition(coeffs, manifest.condition_scale.standardise(coeffs), orientation)


def finish(
    frame: Frame, condition: Condition, residual: Array, manifest: Manifest, idwt: Graph
) -> Array:
    """Standardised residual coefficients (c, h, w) to rates (y, x) [mm h-1], missing ones too.

    0 where it is farther from rain than interpolation reaches. Rates below the dry threshold are
    still there: `make_consistent` knows what becomes of them.
    """
    coeffs = manifest.residual_scale.restore(residual)
    coeffs += condition.coeffs
    first = manifest.wavelet.margin * manifest.wavelet.stride
    rows, columns = (slice(first, first + n * manifest.factor) for n in frame.near_rain.shape)
    coeffs = np.ascontiguousarray(turned(coeffs, condition.orientation))
    z = restored(idwt.run({"coeffs": coeffs[None]})[0, 0], condition.orientation)
    rate = manifest.transform.inverse(z[rows, columns])
    rate[~spread(frame.near_rain, manifest.factor)] = 0.0
    return rate


def spread(mask: Mask, factor: int) -> Mask:
    """Each cell as a block of ``factor`` x ``factor`` fine ones."""
    return mask.repeat(factor, axis=0).repeat(factor, axis=1)


def _widened(mask: Mask, cells: int) -> Mask:
    """A mask with all within some cells of it along both axes."""
    for axis in (0, 1):
        padded = np.pad(mask, [(cells, cells) if a == axis else (0, 0) for a in (0, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * cells + 1, axis=axis)
        mask = np.asarray(windows.any(axis=-1))
    return mask


def _any_in_blocks(mask: Mask, size: int, shape: tuple[int, ...]) -> Mask:
    """Whether a mask holds anywhere in each size x size block; cells beyond it do not."""
    padded = np.zeros((shape[0] * size, shape[1] * size), dtype=bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    return np.asarray(padded.reshape(shape[0], size, shape[1], size).any(axis=(1, 3)))
