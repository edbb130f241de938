"""Zarr stores and labelled arrays give what the same NetCDF file gives."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from netcdf_files import HOURS, LAT, LON, RAIN, RATE, add, coordinates

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.io import read_field
from wdm_runtime.io.xarray_reader import field_from_dataarray, read_xarray

xarray = pytest.importorskip("xarray")
VALID = ("2022-08-09T15:00:00", "2022-08-09T16:00:00")


def rainy(**attributes: Any) -> Any:
    """A decoded Dataset with one missing cell."""
    values = RAIN.copy()
    values[0, 1, 2] = np.nan
    times = np.array(VALID, "datetime64[ns]")
    axes = {
        "time": ("time", times, {"standard_name": "time"}, {"units": HOURS, "dtype": "int32"}),
        "lat": ("lat", LAT, {"units": "degrees_north"}),
        "lon": ("lon", LON, {"units": "degrees_east"}),
    }
    rain = (("time", "lat", "lon"), values, {**RATE, **attributes})
    return xarray.Dataset({"rain": rain}, axes)


def check(found: PrecipField) -> None:
    np.testing.assert_array_equal(np.isnan(found.load()), np.isnan(rainy().rain.values))
    np.testing.assert_allclose(found.load(), rainy().rain.values, atol=1e-6)
    np.testing.assert_array_equal(found.grid.y, LAT)
    np.testing.assert_array_equal(found.grid.x, LON)
    assert found.valid_times == VALID
    assert found.source.variable == "rain" and found.source.units == "mm h-1"
    assert found.source.standard_name == "lwe_precipitation_rate"


class TestZarr:
    @pytest.fixture(autouse=True)
    def _zarr(self) -> None:
        pytest.importorskip("zarr")

    def store(self, path: Path, dataset: Any, zarr_format: int = 3, **options: Any) -> Path:
        dataset.to_zarr(path, zarr_format=zarr_format, consolidated=False, **options)
        return path

    @pytest.mark.parametrize("zarr_format", [2, 3])
    @pytest.mark.parametrize(
        "encoding",
        [
            {},
            {"dtype": "int16", "scale_factor": 0.125, "_FillValue": -99},
            {"dtype": "uint8", "scale_factor": 0.125, "add_offset": 0.0, "_FillValue": 255},
            {"dtype": "float32", "_FillValue": np.float32(-9999.9)},
            {"dtype": "float64", "_FillValue": 5.5e9},
        ],
    )
    def test_stored_anyhow(self, tmp_path: Path, zarr_format: int, encoding: Any) -> None:
        path = self.store(
            tmp_path / "rain", rainy(), zarr_format, encoding={"rain": encoding} if encoding else {}
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = read_field(path)
        check(found)
        with xarray.open_zarr(path, consolidated=False, decode_times=False) as opened:
            units = opened.time.attrs["units"]
        time = found.source.time
        assert time is not None and time.units == units and time.values.dtype == np.int32
        np.testing.assert_array_equal(found.frame(1), RAIN[1])

    @pytest.mark.parametrize("zarr_format", [2, 3])
    @pytest.mark.parametrize("packing", [{"scale_factor": 0.5}, {}])
    def test_unsigned_in_signed_storage(
        self, tmp_path: Path, zarr_format: int, packing: dict[str, float]
    ) -> None:
        counts = np.arange(40, dtype=np.uint8).reshape(RAIN.shape)
        counts[0, 0, :4] = 255, 251, 250, 249
        codes = {"_FillValue": np.int8(-1), "valid_range": np.array([0, -6], np.int8)}
        described = {**RATE, **packing, **codes, "_Unsigned": "true"}
        dataset = rainy()
        dataset["rain"] = (dataset.rain.dims, counts.view(np.int8), described)
        path = self.store(tmp_path / "a.zarr", dataset, zarr_format)
        expected = counts * packing.get("scale_factor", 1.0)
        expected[0, 0, :2] = np.nan
        with xarray.open_zarr(path, consolidated=False) as decoded:
            for found in (read_field(path), field_from_dataarray(decoded)):
                np.testing.assert_array_equal(found.load(), expected)

    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_groups(self, tmp_path: Path, zarr_format: int) -> None:
        path = self.store(tmp_path / "a.zarr", rainy(), zarr_format, group="Grid/inner")
        check(read_field(path))
        check(read_field(path, "Grid/inner/rain"))

    def test_a_fill_value_of_zero_makes_dry_ground_missing_and_says_so(
        self, tmp_path: Path
    ) -> None:
        """Zarr 2 has 0 for it where nothing is said."""
        encoding = {"rain": {"_FillValue": 0.0}}
        path = self.store(tmp_path / "a.zarr", rainy(), 2, encoding=encoding)
        with pytest.warns(UserWarning, match=r"'rain' has the fill value 0.*expected"):
            assert np.isnan(read_field(path).frame(0)[0, 0])

    def test_zip(self, tmp_path: Path) -> None:
        path = self.store(tmp_path / "a.zarr", rainy())
        check(read_field(Path(shutil.make_archive(str(tmp_path / "b"), "zip", path))))

    def test_grid_mapping_and_bounds(self, tmp_path: Path) -> None:
        dataset = rainy(units="mm", grid_mapping="crs")
        dataset["crs"] = ((), 0, {"grid_mapping_name": "latitude_longitude"})
        bounds = np.stack([dataset.time.values - np.timedelta64(30, "m"), dataset.time.values], 1)
        dataset["edges"] = (("time", "bnds"), bounds, {}, {"units": HOURS, "dtype": "float64"})
        dataset["time"].attrs["bounds"] = "edges"
        for found in (
            read_field(self.store(tmp_path / "a.zarr", dataset)),
            field_from_dataarray(dataset),
        ):
            source = found.source
            assert source.period_h == 0.5 and found.load()[1, 0, 0] == 2 * RAIN[1, 0, 0]
            assert source.time is not None and source.time.bounds_name == "edges"
            np.testing.assert_array_equal(source.time.bounds, [[-0.5, 0], [0.5, 1]])
            assert source.grid_mapping is not None and source.grid_mapping.name == "crs"

    def test_a_store_that_is_gone_is_not_dry(self, tmp_path: Path) -> None:
        path = self.store(tmp_path / "a.zarr", rainy())
        found = read_field(path)
        shutil.rmtree(path)
        with pytest.raises(InputError, match=r"a\.zarr: .*run again"):
            found.frame(0)

    def test_damaged_chunk_and_metadata(self, tmp_path: Path) -> None:
        path = self.store(tmp_path / "a.zarr", rainy())
        chunk = next(p for p in (path / "rain" / "c").rglob("*") if p.is_file())
        chunk.write_bytes(b"junk")
        with pytest.raises(InputError, match=r"a\.zarr: cannot be read"):
            read_field(path)
        (path / "zarr.json").write_text("{")
        with pytest.raises(InputError, match=r"a\.zarr: cannot be read"):
            read_field(path)

    def test_a_folder_that_is_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="folder without Zarr metadata"):
            read_field(tmp_path)


class TestFiles:
    def test_what_xarray_opens_as_what_we_open(self, tmp_path: Path) -> None:
        path = tmp_path / "in.nc"
        with netCDF4.Dataset(path, "w") as dataset:
            coordinates(dataset)
            rain = add(dataset, "rain", dtype="u1", fill_value=255, **RATE)
            rain.set_auto_maskandscale(False)
            rain[:] = np.arange(40).reshape(RAIN.shape) * 5
            rain[0, 0, 0] = 255
            rain.setncatts({"scale_factor": 0.5, "valid_range": np.array([1, 190], "u1")})
        ours, other = read_field(path), read_xarray(path)
        assert np.isnan(ours.load()).sum() == 2  # the fill value and 195
        np.testing.assert_array_equal(other.load(), ours.load())
        assert other.valid_times == ours.valid_times and other.source.path == ours.source.path
        for decode in ({}, {"decode_cf": False}, {"decode_coords": "all"}):
            with xarray.open_dataset(path, **decode) as opened:
                for labelled in (opened, opened["rain"]):
                    found = field_from_dataarray(labelled)
                    np.testing.assert_array_equal(found.load(), ours.load())
                    assert found.valid_times == ours.valid_times


class TestArrays:
    def test_dataarray_in_memory(self) -> None:
        found = field_from_dataarray(rainy().rain)
        check(found)
        assert found.source.path == ""

    def test_order_of_dimensions(self) -> None:
        check(field_from_dataarray(rainy().rain.transpose("lon", "time", "lat")))

    def test_one_time_and_no_name(self) -> None:
        found = field_from_dataarray(rainy().rain.isel(time=1).rename(None))
        assert found.valid_times == VALID[1:] and found.source.variable == "precipitation"
        np.testing.assert_array_equal(found.load(), RAIN[1:])

    def test_calendars(self) -> None:
        times = xarray.date_range("2022-02-29", periods=2, calendar="360_day", use_cftime=True)
        found = field_from_dataarray(rainy().assign_coords(time=times).rain)
        assert found.valid_times == ("2022-02-29T00:00:00", "2022-02-30T00:00:00")
        assert found.source.time is not None and found.source.time.calendar == "360_day"

    def test_amounts(self) -> None:
        array = rainy(units="mm").rain
        with pytest.raises(InputError, match=r"DataArray 'rain'.*--accumulation"):
            field_from_dataarray(array)
        found = field_from_dataarray(array, accumulation_h=2)
        np.testing.assert_array_equal(found.frame(1), RAIN[1] / 2)

    def test_the_variable_of_a_dataset(self) -> None:
        dataset = rainy().assign(rainfall=rainy().rain + 1)
        dataset["rainfall"].attrs["units"] = "mm h-1"
        with pytest.raises(InputError, match=r"Dataset: holds 2 precipitation.*'rainfall'"):
            field_from_dataarray(dataset)
        np.testing.assert_array_equal(
            field_from_dataarray(dataset, "rainfall").frame(1), RAIN[1] + 1
        )

    def test_named_like_its_coordinate(self) -> None:
        with pytest.raises(InputError, match=r"DataArray 'lat'.*rename\('precipitation'\)"):
            field_from_dataarray(rainy().rain.rename("lat"))

    def test_neither(self) -> None:
        with pytest.raises(InputError, match="Got a ndarray; expected an xarray"):
            field_from_dataarray(RAIN)

    def test_lazy_arrays_give_one_frame_at_a_time(self) -> None:
        asked: list[tuple[Any, ...]] = []

        class Rain(xarray.backends.BackendArray):  # type: ignore[misc, name-defined]
            shape, dtype = RAIN.shape, RAIN.dtype

            def __getitem__(self, key: Any) -> Any:
                asked.append(key.tuple)
                return RAIN[key.tuple]

        lazy = xarray.core.indexing.LazilyIndexedArray(Rain())
        dataset = rainy()
        dataset["rain"] = xarray.Variable(("time", "lat", "lon"), lazy, RATE)
        found = field_from_dataarray(dataset)
        asked.clear()
        np.testing.assert_array_equal(found.frame(1), RAIN[1])
        assert [key[0] for key in asked] == [1]
