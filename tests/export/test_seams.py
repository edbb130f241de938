"""Tile borders do not show in real fields."""

from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE
from seams import seam_index

from wdm_export.coarsen import coarsen
from wdm_runtime import Downscaler, read_field, tiling
from wdm_runtime.conditioning import look_at

MRMS = Path(__file__).resolve().parents[3] / "shared/data/mrms/train"
FRAME = MRMS / "PrecipRate_00.00_20190610-000000.grib2"


def indices(bundle, field, members):
    flip = slice(None) if field.grid.north_first else slice(None, None, -1)
    with Downscaler.open(bundle) as downscaler:
        tiles = look_at(field.frame(0)[flip], downscaler.manifest).tiling.tiles
        stride = downscaler.manifest.wavelet.stride
        return len(tiles), [
            seam_index(sample.rate_mm_h[flip], tiles, stride)
            for sample in downscaler.downscale(field, members)
        ]


def test_borders_do_not_show_on_the_sample_and_would_without_windows(tiny, monkeypatch):
    # The small tiles of this bundle give hundreds of borders on the sample.
    field = read_field(SAMPLE)
    tiles, found = indices(tiny, field, 4)
    assert tiles > 100 and 0.9 < np.mean(found) <= 1.05
    monkeypatch.setattr(tiling, "bump", lambda size: np.ones(size, np.float32))
    assert np.mean(indices(tiny, field, 2)[1]) > 1.1


@pytest.mark.skipif(not FRAME.exists(), reason="needs the MRMS files, which are not here")
def test_borders_do_not_show_with_the_shipped_bundle_on_a_real_frame():
    field = coarsen(read_field(FRAME), 10).crop(slice(60, 180), slice(330, 520))
    # One member's index is uncertain by 0.05: each border is crossed by the weather of one day.
    tiles, found = indices(None, field, 4)
    assert tiles > 15 and 0.9 < np.mean(found) <= 1.05


def test_a_step_at_a_border_is_seen_and_missing_cells_are_not():
    rate = np.random.default_rng(0).gamma(1, 2, (160, 160)).astype(np.float32)
    tiles = tiling.Tiling((40, 40), 16, 4).tiles
    assert seam_index(rate, tiles, 4) == pytest.approx(1, abs=0.05)
    border = 4 * (tiles[0].column + tiles[0].size)
    stepped = rate.copy()
    stepped[:, border:] *= 50
    assert seam_index(stepped, tiles, 4) > 1.2
    rate[:, border] = np.nan
    assert np.isfinite(seam_index(rate, tiles, 4))
