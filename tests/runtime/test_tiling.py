"""Tiles cover everything, blend to one, and leave no trace of their borders."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdm_runtime.errors import InputError
from wdm_runtime.tiling import Tiling, starts


@given(length=st.integers(1, 900), size=st.integers(8, 80), overlap=st.integers(0, 7))
def test_starts_cover_with_the_asked_overlap(length, size, overlap):
    first = starts(length, size, overlap)
    assert first[0] == 0
    if length > size:
        assert first[-1] == length - size
        assert all(b - a <= size - overlap for a, b in pairwise(first))


@given(height=st.integers(16, 70), width=st.integers(16, 70))
def test_cut_and_blend_give_a_field_back(height, width):
    tiling = Tiling((height, width), 16, 4)
    field = np.random.default_rng(0).standard_normal((3, height, width)).astype(np.float32)
    out = np.zeros_like(field)
    for first in range(0, len(tiling.tiles), 3):
        tiling.blend(tiling.cut(field, first, first + 3), first, out)
    np.testing.assert_allclose(out, field, atol=1e-5)


def test_blending_is_smooth_where_tiles_disagree():
    tiling = Tiling((16, 28), 16, 4)
    assert len(tiling.tiles) == 2
    out = np.zeros((1, 16, 28), np.float32)
    tiling.blend(np.stack([np.zeros((1, 16, 16)), np.ones((1, 16, 16))]), 0, out)
    profile = out[0, 8]
    assert profile[0] == 0 and profile[-1] == pytest.approx(1)
    assert np.all(np.diff(profile) >= 0) and np.diff(profile).max() < 0.7


def test_unwanted_tiles_are_left_out():
    wanted = np.zeros((64, 64), bool)
    wanted[3, 3] = True
    tiling = Tiling((64, 64), 16, 4, wanted)
    assert [(t.row, t.column) for t in tiling.tiles] == [(0, 0)]
    assert not tiling.complete and tiling.covered[:16, :16].all()
    assert Tiling((64, 64), 16, 4).complete


def test_a_grid_below_a_tile_is_refused():
    with pytest.raises(InputError, match="at least a tile"):
        Tiling((15, 40), 16, 4)
