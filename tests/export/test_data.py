"""From radar files to stores of patches: what is read, what is recorded, what is refused."""

import hashlib
import json

import numpy as np
import pytest
from conftest import TRUTH

pytest.importorskip("torch")
xr = pytest.importorskip("xarray")

from small_training import rain  # noqa: E402

from wdm_export.crops import CropSampler  # noqa: E402
from wdm_export.data import PatchStore, prepare  # noqa: E402
from wdm_export.patches import cut_patches  # noqa: E402
from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.grid import block_mean  # noqa: E402
from wdm_runtime.input_hash import hash_of  # noqa: E402
from wdm_runtime.manifest import Domain  # noqa: E402

SIZE, FACTOR = 40, 10  # a stride of half a patch keeps to whole coarse cells


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


def test_what_fails_leaves_no_patches_behind(two_days, tmp_path):
    (tmp_path / "broken.nc").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.nc"):
        prepare([*two_days, tmp_path / "broken.nc"], tmp_path / "store", size=SIZE)
    assert not list((tmp_path / "store").glob("*"))


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
        with pytest.raises(InputError, match=rf"no training patch.*{SIZE} x {SIZE}.*got \d+ pl"):
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


def test_means_of_fields_are_rain_of_another_scale(tmp_path):
    fine = rain((120, 160))
    file = write_netcdf(tmp_path / "one.nc", [fine], ["2019-06-10T23:56"])
    store = prepare([file], tmp_path / "store", size=SIZE, augment_scale=2)
    own, means = (list(cut_patches(f, FACTOR, SIZE)) for f in (fine, block_mean(fine, 2)))
    assert len(means) == 6 and store.sources[0].count == len(own) + 6
    for kept, patches in zip(
        (store.fine, store.coarse), zip(*own, *means, strict=True), strict=True
    ):
        np.testing.assert_allclose(kept, np.stack(patches), rtol=1e-3)
    assert [line["augment_scale"] for line in store.listed_sources()] == [2]
    plain = prepare([file], tmp_path / "plain", size=SIZE)
    assert plain.augment_scale is None and "augment_scale" not in plain.listed_sources()[0]
    assert np.array_equal(plain.fine, store.fine[: len(own)])
    large = prepare([file], tmp_path / "large", size=SIZE, augment_scale=5)  # no room in 24 x 32
    assert large.augment_scale is None and np.array_equal(large.fine, plain.fine)
    for scale in (1, 0, -2):
        with pytest.raises(InputError, match=f"means of {scale} cells.*expected 2 or more"):
            prepare([file], tmp_path / "none", size=SIZE, augment_scale=scale)


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
