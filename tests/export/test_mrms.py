"""Real MRMS files, where they are at hand: codes, grid, patches, and damage."""

import gzip
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
eccodes = pytest.importorskip("eccodes")

from wdm_export.data import prepare  # noqa: E402
from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.io import read_field  # noqa: E402
from wdm_runtime.manifest import Domain  # noqa: E402

MRMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "mrms"
MRMS_2004 = MRMS / "train" / "MRMS_PrecipRate_00.00_20040101-120000.grib2"
MRMS_GZ = MRMS / "train" / "MRMS_MultiSensor_QPE_01H_Pass2_00.00_20220602-120000.CONUS.grib2.gz"
needs_mrms = pytest.mark.skipif(not MRMS_2004.is_file(), reason=f"no MRMS files in {MRMS}")


@pytest.fixture(scope="module")
def reanalysis():
    """The field of 2004, which marks uncovered cells 9999, and ecCodes' values of it."""

    with open(MRMS_2004, "rb") as file:
        handle = eccodes.codes_grib_new_from_file(file)
    raw = eccodes.codes_get_values(handle).reshape(3500, 7000)
    eccodes.codes_release(handle)
    return read_field(MRMS_2004), raw


@needs_mrms
def test_mrms_codes_are_missing_and_everything_else_is_kept(reanalysis):
    field, raw = reanalysis
    assert field.rate_mm_h.shape == (1, 3500, 7000) and field.frame(0).dtype == np.float32
    assert (raw == 9999).any(), "the file no longer shows what this test is about"
    coded = (raw < 0) | (raw >= 9999)
    rate = field.frame(0)
    np.testing.assert_array_equal(np.isnan(rate), coded)
    np.testing.assert_allclose(rate[~coded], raw[~coded], rtol=1e-6)
    assert np.nanmin(rate) >= 0 and 10 < np.nanmax(rate) < 500


@needs_mrms
def test_mrms_time_and_grid_are_as_in_the_file(reanalysis):
    field, _ = reanalysis
    assert field.valid_times == ("2004-01-01T12:00:00",)
    assert field.grid.north_first and field.grid.is_latlon
    assert field.grid.y[[0, -1]] == pytest.approx([54.995, 20.005], abs=1e-5)
    assert field.grid.x[[0, -1]] == pytest.approx([230.005, 299.995], abs=1e-5)
    # the zone between two parallels on a sphere: R^2 (sin 55 - sin 20) times 70 degrees
    zone = 6371.0**2 * np.deg2rad(70) * (np.sin(np.deg2rad(55)) - np.sin(np.deg2rad(20)))
    assert field.grid.area_km2() == pytest.approx(zone, rel=1e-4)


@needs_mrms
def test_mrms_file_to_store(tmp_path):
    store = prepare([MRMS_2004], tmp_path / "store")
    assert store.fine.shape[1:] == (288, 288) and len(store.fine) > 20
    assert isinstance(store.fine, np.memmap)
    assert list(store.by_day()) == ["2004-01-01"]
    assert [s.storm_day for s in store.sources] == ["2004-01-01"]
    assert store.domain == Domain(1.0, (20.0, 55.0))
    for values in (store.fine, store.coarse):
        assert np.isfinite(values).all() and values.min() >= 0
        assert values.max() < 500  # neither 9999 nor a block mean it leaked into
    wet = (store.fine >= np.float16(0.1)).mean(axis=(1, 2))
    assert wet.min() > 0.049


@pytest.mark.skipif(not MRMS_GZ.is_file(), reason=f"no MRMS files in {MRMS}")
def test_a_damaged_mrms_file_is_an_input_error(tmp_path):
    whole = MRMS_GZ.read_bytes()
    message = gzip.decompress(whole)
    damaged = {
        "truncated.grib2.gz": whole[: len(whole) // 2],
        "garbled.grib2.gz": whole[:200] + bytes(2000),
        "truncated.grib2": message[: len(message) // 2],
        "header.grib2": message[:16],
        "zipped-text.grib2.gz": gzip.compress(b"no field at all"),
        "text.grib2": b"no field at all, and not even short: " * 40,
        "page.grib2.gz": b"<html>404 not found</html>",
        "empty.grib2": b"",
    }
    for name, data in damaged.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError, match=name) as caught:
            prepare([path], tmp_path / f"{name}-store")
        is_grib = data[:4] == b"GRIB" or data[:2] == b"\x1f\x8b"
        remedy = "Fetch the file again" if is_grib else "hand in another file"
        assert remedy in str(caught.value), name
