"""Training patches of one field: where they are cut, and what they hold."""

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("torch")

from small_training import rain

from wdm_export.patches import cut_patches
from wdm_runtime.grid import block_mean, interpolate

SIZE, FACTOR = 40, 10  # a stride of half a patch keeps to whole coarse cells


def test_patches_cover_the_field_and_pair_truth_with_interpolated_block_means():
    fine = rain()
    patches = list(cut_patches(fine, FACTOR, SIZE))
    blocks = fine.reshape(12, FACTOR, 16, FACTOR).mean(axis=(1, 3))
    smooth = interpolate(blocks, FACTOR)
    expected = [(r, c) for r in range(0, 81, 20) for c in range(0, 121, 20)]
    assert len(patches) == len(expected)
    for (row, column), (truth, coarse) in zip(expected, patches, strict=True):
        window = np.s_[row : row + SIZE, column : column + SIZE]
        np.testing.assert_array_equal(truth, fine[window])
        np.testing.assert_allclose(coarse, smooth[window], rtol=1e-5)
        np.testing.assert_allclose(
            block_mean(truth, FACTOR),
            blocks[row // 10 : row // 10 + 4, column // 10 : column // 10 + 4],
            rtol=1e-5,
        )


def test_the_coarse_patch_knows_block_means_and_nothing_finer():
    fine = rain()
    rng = np.random.default_rng(1)
    blocks = fine.reshape(12, FACTOR, 16, FACTOR).transpose(0, 2, 1, 3).reshape(12, 16, -1)
    shuffled = rng.permuted(blocks, axis=2).reshape(12, 16, FACTOR, FACTOR)
    other = shuffled.transpose(0, 2, 1, 3).reshape(fine.shape)
    assert np.abs(other - fine).max() > 1
    for (_, a), (_, b) in zip(
        cut_patches(fine, FACTOR, SIZE), cut_patches(other, FACTOR, SIZE), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_constant_field_is_its_own_coarse_field_and_mass_is_kept_in_the_large():
    (truth, coarse), *_ = cut_patches(np.full((40, 40), 3.0, np.float32), FACTOR, SIZE)
    np.testing.assert_allclose(coarse, truth, rtol=1e-6)
    y, x = np.mgrid[:240, :240] / 240 * 2 * np.pi
    smooth = (5 + np.sin(y) + np.cos(x)).astype(np.float32)
    ((truth, coarse),) = cut_patches(smooth, FACTOR, 240)
    assert coarse.mean() == pytest.approx(truth.mean(), rel=2e-3)


def test_dry_patches_are_skipped():
    fine = np.zeros((40, 120), np.float32)
    assert not list(cut_patches(fine, FACTOR, SIZE))
    fine[:, :40] = 0.09  # below what radar reports as rain
    fine[:2, 80:] = 1.0  # 5 % of the last patch
    (truth, _), *rest = cut_patches(fine, FACTOR, SIZE)
    assert not rest
    np.testing.assert_array_equal(truth, fine[:, 80:])
    fine[0, 80] = 0.0
    left_out = Counter()
    assert not list(cut_patches(fine, FACTOR, SIZE, left_out))
    assert left_out == {"too little rain": 5}


def test_patches_that_read_a_missing_block_are_skipped():
    fine = rain((40, 160))
    fine[10:20, 40:50] = np.nan  # 6 % of one patch; two blocks around it read it
    left_out = Counter()
    truths = [truth for truth, _ in cut_patches(fine, FACTOR, SIZE, left_out)]
    assert left_out == {"missing cells": 4}
    reached = np.isnan(interpolate(block_mean(fine, FACTOR), FACTOR))[:SIZE]
    kept = [c for c in range(0, 121, 20) if not reached[:, c : c + SIZE].any()]
    assert 0 < len(kept) < 6 and kept == [80, 100, 120]
    for truth, column in zip(truths, kept, strict=True):
        np.testing.assert_array_equal(truth, fine[:, column : column + SIZE])


def test_patches_with_missing_cells_are_skipped_and_stray_ones_are_interpolated():
    fine = rain((40, 80))
    fine[5:20, 50:55] = np.nan  # 4.7 % of the eastern patch, 1.6 % of the middle one: no
    fine[3, 3] = np.nan
    (truth, coarse), *rest = cut_patches(fine, FACTOR, SIZE)
    assert not rest
    assert truth[3, 3] == coarse[3, 3] > 0 and np.isfinite(truth).all()
    assert np.isfinite(coarse).all()
    # the stray cell does not pull its block's mean down
    block = fine[:10, :10]
    expected = block_mean(fine, FACTOR)
    assert expected[0, 0] == pytest.approx(float(np.nanmean(block)), rel=1e-6)
    np.testing.assert_allclose(coarse, interpolate(np.nan_to_num(expected), 10)[:, :40], rtol=1e-5)


@pytest.mark.parametrize("shape", [(70, 95), (40, 79), (41, 40)])
def test_patches_reach_the_far_edges(shape):
    fine = rain(shape)
    seen = np.zeros(shape, bool)
    for patch, _ in cut_patches(fine, FACTOR, SIZE):
        for row, column in np.argwhere(fine == patch[0, 0]):
            if np.array_equal(fine[row : row + SIZE, column : column + SIZE], patch):
                seen[row : row + SIZE, column : column + SIZE] = True
    whole = tuple(n // FACTOR * FACTOR for n in shape)
    assert seen[: whole[0], : whole[1]].all()


@pytest.mark.parametrize(("size", "factor"), [(50, 10), (26, 10), (30, 8), (35, 10)])
def test_patches_begin_where_coarse_cells_and_coefficients_meet_as_in_tiles(size, factor):
    fine = rain((10 * factor, 13 * factor))
    phases = {n * 4 % factor for n in range(factor)}  # tiles begin at multiples of the stride 4
    starts = set()
    for patch, _ in cut_patches(fine, factor, size):
        starts |= {(int(r), int(c)) for r, c in np.argwhere(fine == patch[0, 0])}
    assert len(starts) > 4
    assert {start % factor for place in starts for start in place} <= phases


def test_a_field_smaller_than_a_patch_gives_none():
    assert not list(cut_patches(rain((39, 400)), FACTOR, SIZE))
    assert not list(cut_patches(rain((5, 5)), FACTOR, SIZE))
