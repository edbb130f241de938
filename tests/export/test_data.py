"""From radar files to stores of patches: what is cut, what it means, and what is recorded."""

import hashlib
import json

import numpy as np
import pytest
from conftest import TRUTH

pytest.importorskip("torch")
xr = pytest.importorskip("xarray")

from wdm_export.crops import CropSampler  # noqa: E402
from wdm_export.data import PatchStore, prepare  # noqa: E402
from wdm_export.patches import cut_patches  # noqa: E402
from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.grid import block_mean, interpolate  # noqa: E402
from wdm_runtime.input_hash import hash_of  # noqa: E402
from wdm_runtime.manifest import Domain  # noqa: E402

SIZE, FACTOR = 40, 10  # a stride of half a patch keeps to whole coarse cells


def rain(shape=(120, 160), seed=0):
    """Showers on a smooth background, all of it wet."""
    rng = np.random.default_rng(seed)
    return (0.2 + rng.gamma(0.5, 4.0, shape)).astype(np.float32)


def write_netcdf(path, frames, times, north=45.0, step=0.01, units="degrees"):
    rows, columns = frames[0].shape
    y, x = ({"units": f"{units}{end}"} for end in ("_north", "_east"))
    if units != "degrees":
        y, x = ({"units": units, "axis": axis} for axis in "YX")
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
            "lat": ("lat", north - step * np.arange(rows), y),
            "lon": ("lon", 5 + step * np.arange(columns), x),
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


def test_patches_that_read_a_missing_block_are_skipped():
    fine = rain((40, 160))
    fine[10:20, 40:50] = np.nan  # 6 % of one patch; two blocks around it read it
    truths = [truth for truth, _ in cut_patches(fine, FACTOR, SIZE)]
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


def test_what_fails_leaves_no_patches_behind(two_days, tmp_path):
    (tmp_path / "broken.nc").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.nc"):
        prepare([*two_days, tmp_path / "broken.nc"], tmp_path / "store", size=SIZE)
    assert not list((tmp_path / "store").glob("*"))


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


def test_a_zarr_store_is_trained_on_as_the_file_it_was_made_of(two_days, tmp_path):
    pytest.importorskip("zarr")
    with xr.open_dataset(two_days[0]) as dataset:
        dataset.to_zarr(tmp_path / "first.zarr", zarr_format=2)
    file, folder = (
        prepare([path], tmp_path / name, size=SIZE)
        for path, name in ((two_days[0], "a"), (tmp_path / "first.zarr", "b"))
    )
    assert np.array_equal(file.fine, folder.fine)
    before = {source.sha256 for source in folder.sources}
    assert len(before) == 1 and hash_of(tmp_path / "first.zarr") in before
    (tmp_path / "first.zarr" / ".zattrs").write_text('{"title": "another"}')
    assert hash_of(tmp_path / "first.zarr") not in before


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


def test_a_store_knows_spacing_and_latitudes_of_its_fields(tmp_path):
    day = ["2019-06-10"]
    south = write_netcdf(tmp_path / "s.nc", [rain((60, 80))], day, north=-10.005)
    wider = write_netcdf(tmp_path / "w.nc", [rain((60, 80))], day, north=44.995, step=0.0105)
    store = prepare([south], tmp_path / "one", size=SIZE)
    assert store.domain == Domain(1.0, (-10.6, -10.0))  # the cells' outer borders
    both = prepare([south, wider], tmp_path / "both", size=SIZE)
    assert both.domain == Domain(1.0, (-10.6, 45.0))
    assert PatchStore.open(tmp_path / "both").domain == both.domain


def test_fields_of_different_spacing_are_not_mixed(two_days, tmp_path):
    other = write_netcdf(tmp_path / "two.nc", [rain((60, 80))], ["2019-06-10"], step=0.02)
    with pytest.raises(InputError, match=r"two\.nc: .*2 x 2 km.*expected 1 km within 10%"):
        prepare([*two_days, other], tmp_path / "store", size=SIZE)


def test_fields_of_unknown_spacing_or_place_are_refused(tmp_path):
    day = ["2019-06-10"]
    for units, what in (("furlong", "spacing"), ("km", "latitudes")):
        file = write_netcdf(tmp_path / f"{units}.nc", [rain((60, 80))], day, step=1.0, units=units)
        with pytest.raises(InputError, match=f"{units}.*{what} cannot be had"):
            prepare([file], tmp_path / units, size=SIZE)


def test_patches_lie_north_up_whichever_way_the_rows_go(two_days, tmp_path):
    with xr.open_dataset(two_days[0]) as dataset:
        dataset.isel(lat=slice(None, None, -1)).to_netcdf(tmp_path / "south.nc")
    north, south = (
        prepare([path], tmp_path / f"{path.stem} store", size=SIZE)
        for path in (two_days[0], tmp_path / "south.nc")
    )
    assert np.array_equal(north.fine, south.fine) and np.array_equal(north.coarse, south.coarse)


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


def test_unreadable_files_end_it_or_are_left_out(two_days, tmp_path):
    void = np.full((60, 80), np.nan, np.float32)
    nothing = write_netcdf(tmp_path / "nothing.nc", [void], ["2019-06-10"])
    # Its second frame is refused after the first one gave patches.
    half = write_netcdf(tmp_path / "half.nc", [rain((60, 80)), rain((60, 80))], ["2019-06-12"] * 2)
    with xr.open_dataset(half) as dataset:
        bad = dataset.load().assign_coords(time=[0.0, 1.0])
    bad["time"].attrs["units"] = "hours since 2019-06-12"
    name = next(name for name in bad.data_vars if bad[name].ndim == 3)
    bad[name][1, 5, 5] = -5.0
    bad.to_netcdf(half)
    files = [two_days[0], half, nothing, two_days[1]]
    with pytest.raises(InputError, match=r"half\.nc"):
        prepare(files, tmp_path / "a", size=SIZE)
    errors = []
    found = prepare(files, tmp_path / "b", size=SIZE, on_unreadable=errors.append)
    assert [("half.nc" in str(e), "nothing.nc" in str(e)) for e in errors] == [
        (True, False),
        (False, True),
    ]
    expected = prepare(two_days, tmp_path / "c", size=SIZE)
    assert found.sources == expected.sources
    assert np.array_equal(found.fine, expected.fine)
    assert np.array_equal(found.coarse, expected.coarse)


def test_the_same_file_does_not_count_twice(two_days, tmp_path):
    copy = tmp_path / "copy.nc"
    copy.write_bytes(two_days[0].read_bytes())
    with pytest.raises(InputError, match=r"copy\.nc: has the same bytes as .*first\.nc"):
        prepare([*two_days, copy], tmp_path / "store", size=SIZE)
    errors = []
    files = [two_days[0], copy, two_days[1]]
    found = prepare(files, tmp_path / "s", size=SIZE, on_unreadable=errors.append)
    assert len(errors) == 1 and len(found.fine) == 18


def test_why_nothing_could_be_used_is_said(two_days, tmp_path):
    asked = {"variable": "typo", "on_unreadable": lambda error: None}
    with pytest.raises(InputError, match=r"None of the files.*'typo'"):
        prepare(two_days, tmp_path / "store", size=SIZE, **asked)


def test_another_factor_interpolates_other_blocks(two_days, tmp_path):
    store = prepare(two_days, tmp_path / "store", factor=5, size=SIZE)
    assert PatchStore.open(tmp_path / "store").factor == 5
    tens = prepare(two_days, tmp_path / "tens", size=SIZE)
    finer, coarser = (np.abs(s.fine.astype(float) - s.coarse).mean() for s in (store, tens))
    assert finer < coarser
    for factor in (1, 0, -10, SIZE + 1):
        with pytest.raises(InputError, match=f"factor of {factor}; expected 2 to {SIZE}"):
            prepare(two_days, tmp_path / "none", factor=factor, size=SIZE)


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
        _index(domain=None),
        _index(domain={"spacing_km": 1.0}),
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
