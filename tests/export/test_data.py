"""From radar files to patches: what is cut, what it means, and how crops are drawn."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TRUTH

torch = pytest.importorskip("torch")
xr = pytest.importorskip("xarray")

from wdm_export.data import PatchStore, Source, cut_patches, prepare  # noqa: E402
from wdm_export.train import CropSampler  # noqa: E402
from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.grid import block_mean, interpolate  # noqa: E402

SIZE, FACTOR = 40, 10  # a stride of half a patch keeps to whole coarse cells
MRMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "mrms"
MRMS_2004 = MRMS / "train" / "MRMS_PrecipRate_00.00_20040101-120000.grib2"
MRMS_GZ = MRMS / "train" / "MRMS_MultiSensor_QPE_01H_Pass2_00.00_20220602-120000.CONUS.grib2.gz"
needs_mrms = pytest.mark.skipif(not MRMS_2004.is_file(), reason=f"no MRMS files in {MRMS}")


def rain(shape=(120, 160), seed=0):
    """Showers on a smooth background, all of it wet."""
    rng = np.random.default_rng(seed)
    return (0.2 + rng.gamma(0.5, 4.0, shape)).astype(np.float32)


def write_netcdf(path, frames, times):
    rows, columns = frames[0].shape
    dataset = xr.Dataset(
        {
            "precipitation_rate": (
                ("time", "lat", "lon"),
                np.stack(frames),
                {"standard_name": "lwe_precipitation_rate", "units": "mm h-1"},
            )
        },
        coords={
            "time": np.array(times, dtype="datetime64[ns]"),
            "lat": ("lat", 45 - 0.01 * np.arange(rows), {"units": "degrees_north"}),
            "lon": ("lon", 5 + 0.01 * np.arange(columns), {"units": "degrees_east"}),
        },
    )
    dataset.to_netcdf(path, encoding={"precipitation_rate": {"_FillValue": np.float32(-9999)}})
    return path


# --- cutting -----------------------------------------------------------------------------------


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
    assert not list(cut_patches(fine, FACTOR, SIZE))


def test_patches_with_missing_cells_are_skipped_and_stray_ones_are_dry():
    fine = rain((40, 80))
    fine[5:20, 50:55] = np.nan  # 4.7 % of the eastern patch, 1.6 % of the middle one: no
    fine[3, 3] = np.nan
    (truth, coarse), *rest = cut_patches(fine, FACTOR, SIZE)
    assert not rest
    assert truth[3, 3] == 0 and np.isfinite(truth).all() and np.isfinite(coarse).all()
    # the stray cell does not pull its block's mean down
    block = fine[:10, :10]
    expected = block_mean(fine, FACTOR)
    assert expected[0, 0] == pytest.approx(float(np.nanmean(block)), rel=1e-6)
    np.testing.assert_allclose(coarse, interpolate(np.nan_to_num(expected), 10)[:, :40], rtol=1e-5)


def test_a_field_smaller_than_a_patch_gives_none():
    assert not list(cut_patches(rain((39, 400)), FACTOR, SIZE))
    assert not list(cut_patches(rain((5, 5)), FACTOR, SIZE))


# --- stores ------------------------------------------------------------------------------------


@pytest.fixture
def two_days(tmp_path):
    dry = np.zeros((60, 80), np.float32)
    first = write_netcdf(
        tmp_path / "first.nc",
        [rain((60, 80)), dry, rain((60, 80), 1)],
        ["2019-06-10T23:56", "2019-06-10T23:58", "2019-06-11T00:00"],
    )
    second = write_netcdf(tmp_path / "second.nc", [rain((60, 80), 2)], ["2019-06-11T00:02"])
    return [first, second]


def test_prepare_writes_a_store_of_storm_days(two_days, tmp_path):
    seen = []
    store = prepare(
        two_days, tmp_path / "store", size=SIZE, on_file=lambda p, n: seen.append((p.name, n))
    )
    assert seen == [("first.nc", 12), ("second.nc", 6)]
    assert [(s.valid_time, s.first, s.count) for s in store.sources] == [
        ("2019-06-10T23:56:00", 0, 6),
        ("2019-06-10T23:58:00", 6, 0),
        ("2019-06-11T00:00:00", 6, 6),
        ("2019-06-11T00:02:00", 12, 6),
    ]
    assert [s.storm_day for s in store.sources] == ["2019-06-10"] * 2 + ["2019-06-11"] * 2
    days = store.by_day()
    assert {day: list(n) for day, n in days.items()} == {
        "2019-06-10": list(range(6)),
        "2019-06-11": list(range(6, 18)),
    }
    for file, source in zip(two_days, (store.sources[0], store.sources[3]), strict=True):
        assert source.file == file.name
        assert source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    expected = list(cut_patches(rain((60, 80), 2), FACTOR, SIZE))
    np.testing.assert_allclose(store.fine[12:], [p[0] for p in expected], rtol=1e-3)
    np.testing.assert_allclose(store.coarse[12:], [p[1] for p in expected], rtol=1e-3)


def test_a_store_is_mapped_not_loaded_and_holds_no_leftovers(two_days, tmp_path):
    prepare(two_days, tmp_path / "store", size=SIZE)
    store = PatchStore.open(tmp_path / "store")
    for values in (store.fine, store.coarse):
        assert isinstance(values, np.memmap) and not values.flags.writeable
        assert values.dtype == np.float16 and values.shape == (18, SIZE, SIZE)
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert names == {"fine.npy", "coarse.npy", "index.json"}
    for name in ("fine", "coarse"):  # no pickled objects
        np.load(tmp_path / "store" / f"{name}.npy", allow_pickle=False)


def test_a_day_whose_first_frame_is_dry_is_still_a_day(tmp_path):
    frames = [np.zeros((60, 80), np.float32), rain((60, 80))]
    file = write_netcdf(tmp_path / "a.nc", frames, ["2019-06-10T00:00", "2019-06-10T00:02"])
    store = prepare([file], tmp_path / "store", size=SIZE)
    assert {day: list(n) for day, n in store.by_day().items()} == {"2019-06-10": list(range(6))}
    CropSampler(store, 16, 4).draw(np.random.default_rng(0), 2)


def test_the_sample_gives_patches(tmp_path):
    store = prepare([TRUTH], tmp_path / "store", size=64)
    assert len(store.fine) > 50 and store.factor == 10
    assert list(store.by_day()) == ["2022-08-09"]
    fine, coarse = np.asarray(store.fine, float), np.asarray(store.coarse, float)
    assert fine.min() == 0 and coarse.min() >= 0 and 20 < fine.max() < 200
    # averaging loses peaks and keeps the amount
    assert coarse.max() < fine.max()
    assert coarse.mean() == pytest.approx(fine.mean(), rel=0.02)
    assert np.corrcoef(fine.ravel(), coarse.ravel())[0, 1] > 0.8


def test_a_folder_that_holds_a_store_is_refused(two_days, tmp_path):
    store = prepare(two_days, tmp_path / "store", size=SIZE)
    before = np.array(store.fine)
    with pytest.raises(InputError, match="already holds a store"):
        prepare(two_days[1:], tmp_path / "store", size=SIZE)
    np.testing.assert_array_equal(PatchStore.open(tmp_path / "store").fine, before)


def test_fields_without_a_patch_are_refused(tmp_path):
    dry = write_netcdf(tmp_path / "dry.nc", [np.zeros((60, 80), np.float32)], ["2019-06-10"])
    small = write_netcdf(tmp_path / "small.nc", [rain((20, 30))], ["2019-06-10"])
    for file in (dry, small):
        with pytest.raises(InputError, match=f"no training patch.*{SIZE} x {SIZE}"):
            prepare([file], tmp_path / file.stem, size=SIZE)
    with pytest.raises(InputError, match="no training patch"):
        prepare([], tmp_path / "none", size=SIZE)
    with pytest.raises(InputError, match="no such file"):
        prepare([tmp_path / "absent.nc"], tmp_path / "absent", size=SIZE)


@pytest.mark.parametrize("size", [1, 0, -4])
def test_patches_without_cells_are_refused(two_days, tmp_path, size):
    with pytest.raises(InputError, match="patch"):
        prepare(two_days, tmp_path / "store", size=size)


def _index(**changes):
    def change(store):
        path = store / "index.json"
        values = json.loads(path.read_text())
        values.update(changes)
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    return change


def _more_patches_than_there_are(store):
    path = store / "index.json"
    values = json.loads(path.read_text())
    values["sources"][0]["count"] += 1000
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: (s / "index.json").write_text("{"),
        lambda s: (s / "index.json").write_text("[]"),
        lambda s: (s / "index.json").write_bytes(b"\xff\xfe"),
        lambda s: (s / "index.json").unlink(),
        _index(version=99),
        _index(version=None),
        _index(factor=None),
        _index(sources=None),
        _index(sources=[{"file": "a"}]),
        _more_patches_than_there_are,
        lambda s: (s / "fine.npy").unlink(),
        lambda s: (s / "fine.npy").write_bytes(b""),
        lambda s: (s / "coarse.npy").write_bytes(b"not an array"),
        lambda s: (s / "fine.npy").write_bytes((s / "fine.npy").read_bytes()[:-100]),
        lambda s: np.save(s / "coarse.npy", np.zeros((3, SIZE, SIZE), np.float16)),
        lambda s: np.save(s / "fine.npy", np.array([{"a": 1}], object)),
    ],
)
def test_a_damaged_store_is_an_input_error(two_days, tmp_path, damage):
    prepare(two_days, tmp_path / "store", size=SIZE)
    damage(tmp_path / "store")
    with pytest.raises(InputError, match="store") as caught:
        PatchStore.open(tmp_path / "store")
    assert "prepare" in str(caught.value).lower()


# --- crops -------------------------------------------------------------------------------------


def unequal_days(many=30):
    """One day of ``many`` patches holding 1 .. many, another with a single patch of 999."""
    values = np.append(np.arange(1, many + 1), 999).astype(np.float16)
    fine = np.broadcast_to(values[:, None, None], (many + 1, 16, 16))
    sources = (
        Source("a", "", "2019-06-10T00:00:00", 0, 10),
        Source("b", "", "2022-06-02T12:00:00", many, 1),
        Source("c", "", "2019-06-10T00:02:00", 10, many - 10),
    )
    return PatchStore(Path(), FACTOR, sources, fine, fine)


def test_days_are_drawn_evenly_however_many_patches_they_have():
    sampler = CropSampler(unequal_days(), 8, 4)
    fine, _ = sampler.draw(np.random.default_rng(0), 4000)
    drawn = fine[:, 0, 0, 0].numpy()
    rare = int((drawn == 999).sum())
    assert abs(rare - 2000) < 4 * np.sqrt(4000 * 0.25)
    # within a day patches are even too: chi-square of 30 cells, far beyond its 0.1 % bound of 58
    counts = np.bincount(drawn[drawn != 999].astype(int), minlength=31)[1:]
    expected = counts.sum() / 30
    assert (counts > 0).all() and ((counts - expected) ** 2 / expected).sum() < 70


def test_crops_are_windows_on_the_stride_turned_alike_for_truth_and_condition():
    patch = np.arange(256, dtype=np.float16).reshape(1, 16, 16)
    source = (Source("a", "", "2019-06-10T00:00:00", 0, 1),)
    store = PatchStore(Path(), FACTOR, source, patch, patch + 256)
    fine, coarse = CropSampler(store, 8, 4).draw(np.random.default_rng(0), 400)
    assert fine.shape == coarse.shape == (400, 1, 8, 8) and fine.dtype == torch.float32
    np.testing.assert_array_equal(coarse, fine + 256)
    windows = {
        (r, c): patch[0, r : r + 8, c : c + 8].astype(float) for r in (0, 4, 8) for c in (0, 4, 8)
    }
    turned = {}
    for place, window in windows.items():
        for flip_y in (1, -1):
            for flip_x in (1, -1):
                for swap in (False, True):
                    view = window[::flip_y, ::flip_x]
                    view = view.T if swap else view
                    turned[view.tobytes()] = (place, flip_y, flip_x, swap)
    kinds = {turned[crop[0].numpy().astype(float).tobytes()] for crop in fine}
    assert len(turned) == 72 and len(kinds) > 65  # all nine places and eight symmetries occur


def test_draws_repeat_with_their_generator():
    sampler = CropSampler(unequal_days(), 8, 4)
    a, b = (sampler.draw(np.random.default_rng(5), 20)[0] for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, sampler.draw(np.random.default_rng(6), 20)[0])


@pytest.mark.parametrize("crop", [20, 6, 0, -4])
def test_crops_that_do_not_fit_are_refused(crop):
    with pytest.raises(InputError, match="--crop"):
        CropSampler(unequal_days(), crop, 4)


# --- real MRMS files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reanalysis():
    """The field of 2004, which marks uncovered cells 9999, and ecCodes' values of it."""
    eccodes = pytest.importorskip("eccodes")
    from wdm_runtime.io import read_field

    with open(MRMS_2004, "rb") as file:
        handle = eccodes.codes_grib_new_from_file(file)
    raw = eccodes.codes_get_values(handle).reshape(3500, 7000)
    eccodes.codes_release(handle)
    return read_field(MRMS_2004), raw


@needs_mrms
def test_mrms_codes_are_missing_and_everything_else_is_kept(reanalysis):
    field, raw = reanalysis
    assert field.rate_mm_h.shape == (1, 3500, 7000) and field.rate_mm_h.dtype == np.float32
    assert (raw == 9999).any(), "the file no longer shows what this test is about"
    coded = (raw < 0) | (raw >= 9999)
    np.testing.assert_array_equal(np.isnan(field.rate_mm_h[0]), coded)
    np.testing.assert_allclose(field.rate_mm_h[0][~coded], raw[~coded], rtol=1e-6)
    assert np.nanmin(field.rate_mm_h) >= 0 and 10 < np.nanmax(field.rate_mm_h) < 500


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
    pytest.importorskip("eccodes")
    store = prepare([MRMS_2004], tmp_path / "store")
    assert store.fine.shape[1:] == (288, 288) and len(store.fine) > 20
    assert isinstance(store.fine, np.memmap)
    assert list(store.by_day()) == ["2004-01-01"]
    assert [s.storm_day for s in store.sources] == ["2004-01-01"]
    for values in (store.fine, store.coarse):
        assert np.isfinite(values).all() and values.min() >= 0
        assert values.max() < 500  # neither 9999 nor a block mean it leaked into
    wet = (store.fine >= np.float16(0.1)).mean(axis=(1, 2))
    assert wet.min() > 0.049


@pytest.mark.skipif(not MRMS_GZ.is_file(), reason=f"no MRMS files in {MRMS}")
def test_a_damaged_mrms_file_is_an_input_error(tmp_path):
    pytest.importorskip("eccodes")
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
        assert "Fetch" in str(caught.value), name
