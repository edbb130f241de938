"""Tiles cover everything, blend to one, and leave no trace of their borders."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdm_runtime.errors import InputError
from wdm_runtime.tiling import Tiling


@given(data=st.data(), height=st.integers(16, 70), width=st.integers(16, 70))
def test_every_active_cell_is_in_a_tile_and_away_from_its_inner_borders(data, height, width):
    active = np.zeros((height, width), bool)
    for _ in range(data.draw(st.integers(0, 6))):
        row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        active[row : row + 9, column : column + 5] = True
    inside = np.zeros_like(active)
    for tile in Tiling((height, width), 16, 4, active).tiles:
        assert 0 <= tile.row <= height - 16 and 0 <= tile.column <= width - 16
        rows, columns = (
            slice(start + 2 * (start > 0), start + 16 - 2 * (start + 16 < length))
            for start, length in ((tile.row, height), (tile.column, width))
        )
        inside[rows, columns] = True
    assert inside[active].all()


def test_tiles_lie_where_the_rain_is():
    active = np.zeros((200, 200), bool)
    active[90:98, 60:70] = active[20:22, 180:183] = True
    tiles = Tiling((200, 200), 16, 4, active).tiles
    assert [(t.row, t.column) for t in tiles] == [(13, 173), (86, 57)]
    assert Tiling((200, 200), 16, 4, np.zeros((200, 200), bool)).tiles == []
    # A full grid needs no more tiles than a regular one: cores of 12, at the borders 14.
    assert len(Tiling((200, 200), 16, 4).tiles) == 17**2


@given(height=st.integers(16, 70), width=st.integers(16, 70))
def test_cut_and_blend_give_a_field_back(height, width):
    tiling = Tiling((height, width), 16, 4)
    field = np.random.default_rng(0).standard_normal((3, height, width)).astype(np.float32)
    out = np.zeros_like(field)
    for index in range(len(tiling.tiles)):
        tiling.blend(tiling.cut(field, index).copy(), index, out)
    np.testing.assert_allclose(out, field, atol=1e-5)


def test_blending_is_smooth_where_tiles_disagree():
    tiling = Tiling((16, 28), 16, 4)
    assert len(tiling.tiles) == 2
    out = np.zeros((1, 16, 28), np.float32)
    tiling.blend(np.ones((1, 16, 16), np.float32), 1, out)
    profile = out[0, 8]
    assert profile[0] == 0 and profile[-1] == pytest.approx(1)
    assert np.all(np.diff(profile) >= 0) and np.diff(profile).max() < 0.7


def test_cells_outside_all_tiles_are_not_covered():
    active = np.zeros((64, 64), bool)
    active[3, 3] = True
    tiling = Tiling((64, 64), 16, 4, active)
    assert [(t.row, t.column) for t in tiling.tiles] == [(0, 0)]
    assert tiling.covered[:16, :16].all() and tiling.covered.sum() == 16 * 16
    assert Tiling((64, 64), 16, 4).covered.all()


def test_a_grid_below_a_tile_is_refused():
    with pytest.raises(InputError, match="at least a tile"):
        Tiling((15, 40), 16, 4)
