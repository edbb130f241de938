"""`wdm-export prepare` and `coarsen` as users call them: which fields become which patches."""

import re

import netCDF4
import numpy as np
import pytest
from conftest import TRUTH

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
xarray = pytest.importorskip("xarray")

from command_line import QUICK, run  # noqa: E402

from wdm_runtime.grid import block_mean  # noqa: E402
from wdm_runtime.io import read_field  # noqa: E402


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepare") / "store"
    out = run("wdm-export", "prepare", TRUTH, "-o", path, "--patch", "64")
    assert "2022-08-09" in out
    return path


def test_coarsen_writes_block_means(tmp_path):
    out = run(
        "wdm-export", "coarsen", TRUTH, "-o", tmp_path / "coarse.nc",
        "--truth", tmp_path / "truth.nc", "--crop", "2,3,20,30",
    )  # fmt: skip
    assert "coarse.nc" in out
    with (
        xarray.open_dataset(tmp_path / "coarse.nc") as coarse,
        xarray.open_dataset(tmp_path / "truth.nc") as fine,
        xarray.open_dataset(TRUTH) as whole,
    ):
        rate, truth = (d["precipitation_rate"].values[0] for d in (coarse, fine))
        np.testing.assert_array_equal(truth, whole["precipitation_rate"].values[0, 20:220, 30:330])
        blocks = truth.astype(float).reshape(20, 10, 30, 10).mean(axis=(1, 3))
        np.testing.assert_allclose(rate, blocks, rtol=1e-5, atol=1e-6)
        assert rate.mean() == pytest.approx(truth.mean(), rel=1e-5)
    message = run("wdm-export", "coarsen", TRUTH, "-o", tmp_path / "coarse.nc", code=2)
    assert "exists" in message


def test_coarsen_says_where_cells_end(tmp_path):
    run("wdm-export", "coarsen", TRUTH, "-o", tmp_path / "coarse.nc", "--truth", tmp_path / "f.nc")
    with (
        xarray.open_dataset(tmp_path / "coarse.nc") as coarse,
        xarray.open_dataset(tmp_path / "f.nc") as fine,
    ):
        for bounds in ("lat_bnds", "lon_bnds"):
            edges = fine[bounds].values[::10, 0]
            np.testing.assert_allclose(coarse[bounds].values[:, 0], edges, atol=1e-9)
        assert set(coarse.sizes) == {"time", "lat", "lon", "bnds"}


@pytest.mark.parametrize("factor", ["1", "0", "100000"])
def test_coarsen_wants_two_blocks_a_side(tmp_path, factor):
    message = run(
        "wdm-export", "coarsen", TRUTH, "-o", tmp_path / "c.nc", "--factor", factor, code=2
    )
    assert f"--factor got {factor}; expected 2 to" in " ".join(message.split())


def test_coarsen_takes_a_field_without_a_time(tmp_path):
    with xarray.open_dataset(TRUTH) as whole:
        whole["precipitation_rate"].isel(time=0, drop=True).to_netcdf(tmp_path / "still.nc")
    run("wdm-export", "coarsen", tmp_path / "still.nc", "-o", tmp_path / "coarse.nc")
    found = read_field(tmp_path / "coarse.nc")
    assert found.valid_times == ("none-0",)
    expected = block_mean(read_field(TRUTH).frame(0), 10)
    np.testing.assert_allclose(found.frame(0), expected, atol=1e-5)


def test_a_cut_of_a_map_projection_can_be_trained_on(tmp_path):
    """As of a single radar's disc: what `coarsen` writes says where its cells are, and of when."""
    with xarray.open_dataset(TRUTH) as whole:
        sums = whole["precipitation_rate"][:, 300:400, 160:280].astype("float32").load()
    hour = np.array([[14, 15]], dtype="int64") + 24 * 220
    radar = xarray.Dataset(
        {
            "rain": (("time", "y", "x"), sums.values, {
                "standard_name": "lwe_thickness_of_precipitation_amount", "units": "mm",
                "grid_mapping": "aeqd", "cell_methods": "time: sum",
            }),
            "aeqd": ((), 0, {
                "grid_mapping_name": "azimuthal_equidistant", "earth_radius": 6371000.0,
                "latitude_of_projection_origin": 50.0, "longitude_of_projection_origin": 8.0,
            }),
            "time_bnds": (("time", "bnds"), hour),
        },
        coords={
            "time": ("time", hour[:, 1], {
                "standard_name": "time", "bounds": "time_bnds", "units": "hours since 2022-01-01",
            }),
            "y": 1000.0 * np.arange(100)[::-1],
            "x": 1000.0 * np.arange(120),
        },
    )  # fmt: skip
    for axis in "yx":
        radar[axis].attrs = {"standard_name": f"projection_{axis}_coordinate", "units": "m"}
    radar.to_netcdf(tmp_path / "radar.nc")
    cut = ("-o", tmp_path / "coarse.nc", "--truth", tmp_path / "truth.nc", "--crop", "1,1,8,9")
    run("wdm-export", "coarsen", tmp_path / "radar.nc", *cut)
    whole, coarse, truth = (read_field(tmp_path / f"{n}.nc") for n in ("radar", "coarse", "truth"))
    np.testing.assert_allclose(truth.frame(0), whole.frame(0)[10:90, 10:100], rtol=1e-6)
    assert coarse.valid_times == truth.valid_times == whole.valid_times
    for field in (coarse, truth):
        assert field.source.grid_mapping == whole.source.grid_mapping
        assert "time: mean" in field.source.cell_methods
        np.testing.assert_array_equal(field.source.time.bounds, whole.source.time.bounds)
    said = []
    for name in ("coarse", "truth"):
        with netCDF4.Dataset(tmp_path / f"{name}.nc") as dataset:
            said.append(dataset.source)
    assert said == ["radar.nc, block means of 10 x 10 cells", "radar.nc"]
    with netCDF4.Dataset(tmp_path / "coarse.nc") as dataset:  # of CF
        assert "coordinates" not in (*dataset.ncattrs(), *dataset["precipitation_rate"].ncattrs())
        for name in ("time", "time_bnds", "y", "x", "aeqd"):
            assert "_FillValue" not in dataset[name].ncattrs()
    out = run("wdm-export", "prepare", tmp_path / "truth.nc", "-o", tmp_path / "s", "--patch", "64")
    assert "2022-08-09" in out


def test_coarsen_says_the_period_of_sums_without_bounds(amounts, tmp_path):
    asked = ("--variable", "rain_amount", "--accumulation", "30min")
    run("wdm-export", "coarsen", amounts, "-o", tmp_path / "a.nc", *asked)
    methods = read_field(tmp_path / "a.nc").source.cell_methods
    assert methods == "area: mean time: mean (interval: 0.5 hours comment: accumulation period)"
    with xarray.open_dataset(amounts) as dataset:
        dataset[["rain_amount"]].isel(time=0, drop=True).to_netcdf(tmp_path / "still.nc")
    run("wdm-export", "coarsen", tmp_path / "still.nc", "-o", tmp_path / "b.nc", *asked[2:])
    with xarray.open_dataset(tmp_path / "b.nc") as dataset:
        rate = dataset["precipitation_rate"]
        assert (rate.cell_methods, rate.comment) == ("area: mean", "of sums over 0.5 hours")


def test_files_that_cannot_be_read_are_counted(tmp_path):
    (tmp_path / "junk.nc").write_bytes(b"no rain")
    files = (tmp_path / "junk.nc", TRUTH)
    out = run("wdm-export", "prepare", *files, "-o", tmp_path / "s", "--skip-unreadable")
    assert "2022-08-09" in out and "Left out 1 of 2 files." in out
    assert re.search(r"Cut \d+ patches; left out \d+ for ", out)


def test_rates_and_sums_in_one_store_are_said(amounts, tmp_path):
    asked = ("--variable", "rain_amount", "--accumulation", "30min")
    out = run("wdm-export", "prepare", amounts, "-o", tmp_path / "a", "--patch", "64", *asked)
    assert "The fields are" not in out
    with xarray.open_dataset(
        amounts
    ) as dataset:  # with bounds, so that nothing needs to be asked for
        sums = dataset[["rain_amount"]].load()
    times = sums["time"].values
    sums["time"].attrs["bounds"] = "time_bnds"
    sums["time_bnds"] = ("time", "nv"), np.stack([times - np.timedelta64(30, "m"), times], axis=1)
    sums.to_netcdf(tmp_path / "sums.nc")
    out = run("wdm-export", "prepare", tmp_path / "sums.nc", TRUTH, "-o", tmp_path / "b")
    assert "The fields are rates and sums over 0.5 h" in out


def test_a_model_of_another_factor(tmp_path):
    """From 5 km to 1 km, from the fields to an ensemble whose block means are its input."""
    factor, names = 5, ("s", "r", "b", "coarse.nc", "fine.nc")
    store, folder, bundle, coarse, fine = (tmp_path / name for name in names)
    run("wdm-export", "prepare", TRUTH, "-o", store, "--patch", "64", "--factor", factor)
    run("wdm-export", "train", store, "-o", folder, "--steps", 2, *QUICK, "--crop", "16")
    run("wdm-export", "export", folder / "weights.safetensors", "-o", bundle, "--tile", "64")
    run("wdm-export", "coarsen", TRUTH, "-o", coarse, "--factor", factor, "--crop", "0,0,30,40")
    run("wdm-run", "infer", coarse, "--bundle", bundle, "-o", fine, "--no-pixel-probe")
    given = read_field(coarse).load()[0]
    with xarray.open_dataset(fine) as drawn:
        member = next(v for v in drawn.data_vars.values() if v.ndim == 4).values[0, 0]
    assert member.shape == tuple(factor * size for size in given.shape)
    means = block_mean(member, factor)
    np.testing.assert_allclose(means[given > 0.5], given[given > 0.5], rtol=1e-4)


@pytest.fixture
def amounts(tmp_path):
    """The sample's rain as 30-minute amounts without a stated period, beside another variable."""
    with xarray.open_dataset(TRUTH) as truth:
        rate = next(v for v in truth.data_vars.values() if v.ndim == 3)
        amount = (0.5 * rate).rename("rain_amount")
        amount.attrs = {"standard_name": "lwe_thickness_of_precipitation_amount", "units": "mm"}
        other = (2 * rate).rename("rain_rate")
        other.attrs = dict(rate.attrs)
        xarray.merge([amount, other]).to_netcdf(tmp_path / "amounts.nc")
    return tmp_path / "amounts.nc"


def test_amounts_and_one_of_several_variables_can_be_trained_on(amounts, store, tmp_path):
    from wdm_export.data import PatchStore

    asked = ("--variable", "rain_amount", "--accumulation", "30min")
    run("wdm-export", "prepare", amounts, "-o", tmp_path / "own", "--patch", "64", *asked)
    own, expected = PatchStore.open(tmp_path / "own"), PatchStore.open(store)
    np.testing.assert_allclose(own.fine, expected.fine, rtol=2e-3)
    assert (own.variable, own.accumulation_h) == ("rain_amount", 0.5)
    assert (expected.variable, expected.accumulation_h) == (None, None)
    run("wdm-export", "coarsen", amounts, "-o", tmp_path / "a.nc", *asked)
    run("wdm-export", "coarsen", TRUTH, "-o", tmp_path / "b.nc")
    with xarray.open_dataset(tmp_path / "a.nc") as a, xarray.open_dataset(tmp_path / "b.nc") as b:
        np.testing.assert_allclose(a.precipitation_rate, b.precipitation_rate, rtol=1e-5)
