"""Labelled arrays: what `wdm-run infer` gives for the file, with coordinates and attributes."""

from __future__ import annotations

import netCDF4
import numpy as np
import pytest
from conftest import SAMPLE

from wdm_runtime.downscale import Downscaler
from wdm_runtime.errors import InputError
from wdm_runtime.grid import block_mean
from wdm_runtime.io import read_field
from wdm_runtime.io.xarray_reader import field_from_dataarray
from wdm_runtime.labelled import downscale
from wdm_runtime.settings import Settings

xarray = pytest.importorskip("xarray")

TIMES = np.array(["2022-08-09T15:00", "2022-08-09T15:30"], "datetime64[ns]")
HOURS = {"units": "hours since 2022-08-09", "calendar": "standard", "dtype": np.dtype("f4")}
PROJECTION = {
    "grid_mapping_name": "lambert_conformal_conic",
    "standard_parallel": [30.0, 60.0],
    "longitude_of_central_meridian": -97.0,
    "latitude_of_projection_origin": 40.0,
}


@pytest.fixture
def downscaler(tiny):
    with Downscaler.open(tiny) as opened:
        yield opened


@pytest.fixture
def fine(downscaler):
    """The call with three steps."""
    return lambda labelled, **options: downscale(labelled, downscaler, **{"steps": 3, **options})


def rainy(units="mm h-1"):
    """Two frames of 7 x 9 coarse cells, one of them missing, latitude descending."""
    values = np.random.default_rng(0).gamma(0.4, 6.0, (2, 7, 9)).astype(np.float32)
    values[values < 0.5] = 0
    values[0, 3, 4] = np.nan
    axes = {
        "time": ("time", TIMES, {"standard_name": "time"}, HOURS),
        "lat": ("lat", 40.05 - 0.1 * np.arange(7), {"units": "degrees_north"}),
        "lon": ("lon", -99.95 + 0.1 * np.arange(9), {"units": "degrees_east"}),
    }
    name = "lwe_precipitation_rate" if units == "mm h-1" else ""
    attributes = {"units": units} | ({"standard_name": name} if name else {})
    return xarray.DataArray(values, axes, ("time", "lat", "lon"), "rain", attributes)


def projected():
    """The same rain in metres on a map, with its grid mapping as a coordinate."""
    rain = rainy().rename(lat="y", lon="x")
    centres = {name: -1e4 * np.arange(rain.sizes[name]) for name in ("y", "x")}
    rain = rain.assign_coords(centres | {"crs": ((), 0, PROJECTION)})
    rain.attrs["grid_mapping"] = "crs"
    for name in ("y", "x"):
        rain[name].attrs = {"units": "m", "standard_name": f"projection_{name}_coordinate"}
    return rain


@pytest.mark.parametrize("decoding", [{}, {"decode_times": False}, {"decode_coords": "all"}])
def test_the_same_as_from_the_file(infer, fine, decoding):
    options = ("--members", 2, "--seed", 9, "--noise-decorrelation", 20, "--units", "mm d-1")
    assert infer("-o", "out.nc", "--no-pixel-probe", *options)[0] == 0
    chosen = {"members": 2, "seed": 9, "noise_decorrelation_min": 20, "units": "mm d-1"}
    with xarray.open_dataset(SAMPLE, **decoding) as source:
        found = fine(source, **chosen)
    with xarray.open_dataset("out.nc", **decoding) as written:
        expected = written["precipitation_rate"].load()
        facts = written.attrs
    xarray.testing.assert_equal(found, expected.reset_coords(drop=True))
    assert found.dtype == np.float32 and found.dims == ("time", "realization", "lat", "lon")
    for name in found.dims:
        said = {k: v for k, v in expected[name].attrs.items() if k != "bounds"}
        assert found[name].attrs == said
    of_variable = {k: v for k, v in found.attrs.items() if not k.startswith("wdm_")}
    dropped = {"ancillary_variables"}
    assert of_variable == {k: v for k, v in expected.attrs.items() if k not in dropped}
    of_run = {k: v for k, v in found.attrs.items() if k.startswith("wdm_")}
    assert of_run == {k: facts[k] for k in of_run}
    assert Settings.from_attributes(found.attrs) == Settings.from_attributes(facts)
    assert found.attrs["wdm_bundle_sha256"] == facts["wdm_bundle_sha256"]


def test_a_dataarray_and_a_named_variable_are_the_same(fine):
    dataset = rainy().to_dataset().assign(rainfall=rainy() * 0 + 1)
    dataset["rainfall"].attrs = {"units": "mm h-1"}
    with pytest.raises(InputError, match="holds 2 precipitation variables"):
        fine(dataset)
    xarray.testing.assert_equal(fine(dataset, variable="rain"), fine(rainy()))


def test_rows_upside_down_give_the_answer_upside_down(fine):
    north_first, south_first = fine(rainy()), fine(rainy().isel(lat=slice(None, None, -1)))
    assert (np.diff(south_first.lat) > 0).all() and (np.diff(north_first.lat) < 0).all()
    np.testing.assert_array_equal(south_first.values[..., ::-1, :], north_first.values)
    np.testing.assert_allclose(south_first.lat[::-1], north_first.lat, rtol=1e-12)


def test_the_order_of_dimensions_does_not_matter(fine):
    xarray.testing.assert_equal(fine(rainy().transpose("lon", "time", "lat")), fine(rainy()))


def test_a_flux_gives_the_answer_of_the_rate(fine):
    rate = rainy()
    flux = (rate.astype(np.float64) / 3600).assign_attrs(units="kg m-2 s-1")
    as_flux, as_rate = fine(flux), fine(rate)
    assert as_flux.attrs["units"] == "kg m-2 s-1"
    assert as_flux.attrs["standard_name"] == "precipitation_flux"
    np.testing.assert_array_equal(fine(flux, units="mm h-1").values, as_rate.values)
    np.testing.assert_allclose(3600 * as_flux.values, as_rate.values, rtol=1e-6)


def test_block_means_are_the_input_and_missing_stays_missing(fine):
    rain = rainy()
    found = fine(rain, members=2)
    means = block_mean(found.values, 10)
    known = np.broadcast_to(np.isfinite(rain.values)[:, None], means.shape) & np.isfinite(means)
    expected = np.broadcast_to(rain.values[:, None], means.shape)
    np.testing.assert_allclose(means[known], expected[known], atol=1e-4)
    assert np.isnan(found.values[0, :, 30:40, 40:50]).all()
    assert np.isfinite(found.values[1]).all()
    assert np.isfinite(found.values[0, :, :10, :10]).all()
    assert (found.values[:, 0] != found.values[:, 1]).any()


def test_chunks_of_dask(fine):
    pytest.importorskip("dask")
    xarray.testing.assert_equal(fine(rainy().chunk(time=1, lat=3)), fine(rainy()))


class TestTimes:
    def test_none(self, fine):
        found = fine(rainy().isel(time=1, drop=True))
        assert found.dims == ("time", "realization", "lat", "lon") and found.sizes["time"] == 1
        assert "time" not in found.coords

    def test_one_frame_is_that_of_the_file(self, fine):
        one, both = fine(rainy().isel(time=1)), fine(rainy())
        xarray.testing.assert_equal(one, both.isel(time=[1]))

    @pytest.mark.parametrize("calendar", ["standard", "360_day"])
    def test_cftime(self, fine, calendar):
        times = xarray.date_range("2022-02-28", periods=2, calendar=calendar, use_cftime=True)
        rain = rainy().assign_coords(time=times)
        found = fine(rain)
        assert list(found.time.values) == list(times)
        assert fine(rain.isel(time=1)).time.values[0] == times[1]

    def test_the_encoding_is_kept(self, fine, tmp_path):
        fine(rainy()).to_netcdf(tmp_path / "out.nc")
        with netCDF4.Dataset(tmp_path / "out.nc") as data:
            time = data["time"]
            assert (time.units, time.dtype) == ("hours since 2022-08-09", np.float32)
            assert list(time[:]) == [15, 15.5]

    @pytest.mark.parametrize("stated", [True, False])
    def test_a_forecast_has_its_valid_time(self, fine, stated):
        """Stated as cfgrib does, or as the period since the forecast began alone."""
        lead = np.timedelta64(6, "h")
        began = {"standard_name": "forecast_reference_time"}
        rain = rainy().assign_coords(time=("time", TIMES, began)).expand_dims(step=[lead], axis=1)
        rain.step.attrs["standard_name"] = "forecast_period"
        if stated:
            valid = (TIMES + lead)[:, None]
            rain = rain.assign_coords(valid=(("time", "step"), valid, {"standard_name": "time"}))
        found = fine(rain)
        assert list(found["valid" if stated else "time"].values) == list(TIMES + lead)


class TestAmounts:
    def test_the_period_survives_without_bounds(self, fine):
        dataset = rainy("mm").to_dataset()
        edges = np.stack([TIMES - np.timedelta64(30, "m"), TIMES], axis=1)
        dataset["edges"] = (("time", "bnds"), edges)
        dataset["time"].attrs["bounds"] = "edges"
        found = fine(dataset)
        assert found.attrs["units"] == "mm" and found.attrs["wdm_accumulation_h"] == 0.5
        assert "bounds" not in found.time.attrs
        again = field_from_dataarray(found)
        assert again.source.period_h == 0.5
        as_rate = fine(dataset, units="mm h-1")
        np.testing.assert_allclose(again.load(), as_rate.values[:, 0], rtol=1e-6)

    def test_a_stated_period(self, fine):
        found = fine(rainy("mm"), accumulation_h=0.5)
        assert found.attrs["wdm_accumulation"] == "0.5h"
        doubled = (2 * rainy()).assign_attrs(rainy().attrs)
        np.testing.assert_allclose(2 * found.values, fine(doubled).values, rtol=1e-6)

    def test_an_unknown_period(self, fine):
        with pytest.raises(InputError, match=r"DataArray 'rain'.*--accumulation"):
            fine(rainy("mm"))


@pytest.mark.parametrize("rain", [rainy, projected])
def test_a_file_written_from_it_reads_as_it(fine, tmp_path, rain):
    found = fine(rain())
    found.to_netcdf(tmp_path / "out.nc")
    again = read_field(tmp_path / "out.nc")
    np.testing.assert_array_equal(again.load(), found.values[:, 0])
    np.testing.assert_array_equal(again.grid.y, found[found.dims[2]])
    mapping = again.source.grid_mapping
    assert (mapping.attributes["grid_mapping_name"] if mapping else "") == (
        "lambert_conformal_conic" if "crs" in found.coords else ""
    )
    with netCDF4.Dataset(tmp_path / "out.nc") as data:
        assert "_FillValue" not in data["realization"].ncattrs()
        assert not any("_FillValue" in data[name].ncattrs() for name in found.dims)
        assert data["rain"]._FillValue == -9999


class TestRefuses:
    def test_arrays_without_labels(self, fine):
        with pytest.raises(InputError, match="Got a ndarray; expected an xarray"):
            fine(rainy().values)
        with pytest.raises(InputError, match="without a one-dimensional coordinate along y"):
            fine(rainy().drop_vars(["lat", "lon"]))

    def test_another_spacing(self, fine):
        wide = rainy().assign_coords(lon=("lon", -99 + 0.2 * np.arange(9), rainy().lon.attrs))
        with pytest.raises(InputError, match="10 x 20 km"):
            fine(wide)
        assert fine(wide, assume_factor=True).sizes["lon"] == 90

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"members": 0}, "Got 0 members"),
            ({"members": 10**9}, "Ask for fewer members"),
            ({"sampler": "none"}, "sampler"),
            ({"consistency": "exact"}, "exact"),
            ({"units": "K"}, "'K'"),
            ({"steps": "a"}, "Got steps = 'a'; expected a whole number"),
            ({"members": "a"}, "Got members = 'a'; expected a whole number"),
        ],
    )
    def test_options_out_of_range(self, fine, options, message):
        with pytest.raises(InputError, match=message):
            fine(rainy(), **options)


def test_a_period_that_is_no_number_of_hours(fine):
    with pytest.raises(InputError, match="Got accumulation_h = '1h'; expected a number"):
        fine(rainy("mm"), accumulation_h="1h")


def test_a_field_outside_the_training_latitudes_warns(fine):
    south = rainy().assign_coords(lat=("lat", -10.05 - 0.1 * np.arange(7), rainy().lat.attrs))
    with pytest.warns(UserWarning, match="outside the latitudes"):
        fine(south)
