"""Which rates are read from real NetCDF files, whole and damaged ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from netcdf_files import FEW_FILES, HOURS, LAT, LON, RAIN, RATE, add, coordinates, rain_file

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.io import read_field
from wdm_runtime.io.netcdf import read_netcdf


class TestMissing:
    def test_packed_with_fill(self, tmp_path: Path) -> None:
        packed = {"scale_factor": 0.1, "add_offset": 10.0, "dtype": "i2", "fill_value": -32768}
        values = np.ma.masked_equal(np.round(RAIN, 1), 0)
        found = read_netcdf(rain_file(tmp_path / "in.nc", values=values, **packed)).load()
        assert np.isnan(found[0, 0, 0]) and np.isnan(found).sum() == 1
        np.testing.assert_allclose(found.ravel()[1:], np.round(RAIN, 1).ravel()[1:], atol=1e-6)

    @FEW_FILES
    @given(
        st.floats(1e-3, 0.1),
        st.floats(0, 50),
        st.lists(st.integers(-1, 32767), max_size=6),
    )
    def test_unpacking(self, tmp_path: Path, scale: float, offset: float, codes: list[int]) -> None:
        path = tmp_path / "in.nc"
        with netCDF4.Dataset(path, "w") as dataset:
            coordinates(dataset)
            packed = np.resize([0, *codes], RAIN.shape)
            rain = add(dataset, "rain", packed, dtype="i2", fill_value=-1, **RATE)
            rain.setncatts({"scale_factor": scale, "add_offset": offset})  # packed already
        expected = np.where(packed == -1, np.nan, packed * scale + offset)
        np.testing.assert_allclose(read_netcdf(path).load(), expected, rtol=1e-6, atol=1e-30)

    @pytest.mark.parametrize(
        "code", [-1.0, -3.0, -9999.0, -9999.9, 9999.0, 99999.0, 9.96921e36, np.nan]
    )
    def test_codes(self, tmp_path: Path, code: float) -> None:
        values = RAIN.copy()
        values[0, 1, 2] = code
        found = read_netcdf(rain_file(tmp_path / "in.nc", values=values)).load()
        assert np.argwhere(np.isnan(found)).tolist() == [[0, 1, 2]]

    def test_code_9999_is_in_the_units_of_the_file(self, tmp_path: Path) -> None:
        values = np.full(RAIN.shape, 24.0)
        values[0, 0, 0] = 9999
        found = read_netcdf(rain_file(tmp_path / "in.nc", values=values, units="mm/day"))
        assert np.isnan(found.load()[0, 0, 0]) and found.load()[0, 0, 1] == 1

    def test_negative_noise_is_dry(self, tmp_path: Path) -> None:
        values = RAIN.copy()
        values[0, 0, 0] = -5e-4
        assert read_netcdf(rain_file(tmp_path / "in.nc", values=values)).load()[0, 0, 0] == 0

    def test_missing_value_and_valid_range(self, tmp_path: Path) -> None:
        limits = {"missing_value": np.float32(7), "valid_range": np.array([0, 300], "f4")}
        values = RAIN.copy()
        values[0, 0, :3] = 7, 301, 299
        found = read_netcdf(rain_file(tmp_path / "in.nc", values=values, **limits)).load()
        assert np.isnan(found[0, 0, :3]).tolist() == [True, True, False]

    def test_one_empty_frame_is_kept_but_not_an_empty_file(self, tmp_path: Path) -> None:
        values = RAIN.copy()
        values[0] = np.nan
        assert np.isnan(read_netcdf(rain_file(tmp_path / "a.nc", values=values)).load()[0]).all()
        with pytest.raises(InputError, match="no valid value in its 40 cells"):
            read_netcdf(rain_file(tmp_path / "b.nc", values=np.full(RAIN.shape, -3.0)))


class TestAxes:
    @pytest.mark.parametrize(
        "dimensions", [("time", "lon", "lat"), ("lat", "lon", "time"), ("lon", "time", "lat")]
    )
    def test_any_order(self, tmp_path: Path, dimensions: tuple[str, ...]) -> None:
        values = RAIN.transpose([("time", "lat", "lon").index(d) for d in dimensions])
        found = read_netcdf(rain_file(tmp_path / "in.nc", values=values, dimensions=dimensions))
        np.testing.assert_array_equal(found.load(), RAIN)

    def test_imerg(self, tmp_path: Path) -> None:
        path = tmp_path / "imerg.nc"
        with netCDF4.Dataset(path, "w") as dataset:
            grid = dataset.createGroup("Grid")
            coordinates(grid, hours=[0])
            grid["time"].setncatts(
                {"units": "seconds since 1980-01-06 00:00:00 UTC", "calendar": "julian"}
            )
            grid["time"][:] = [1344092400]
            values = RAIN[:1].transpose(0, 2, 1).copy()
            values[0, 4, 3] = -9999.9
            order = ("time", "lon", "lat")
            fill = np.float32(-9999.9)
            add(grid, "precipitation", values, order, fill_value=fill, units="mm/hr")
            inner = grid.createGroup("Intermediate")
            add(inner, "IRprecipitation", values, order, fill_value=fill, units="mm/hr")
        found = read_field(path)
        assert found.grid.shape == (4, 5) and found.valid_times == ("2022-08-09T15:00:00",)
        np.testing.assert_array_equal(found.load()[0, :3], RAIN[0, :3])
        assert np.isnan(found.load()[0, 3, 4])
        assert found.source.variable == "precipitation"
        assert read_field(path, "Grid/Intermediate/IRprecipitation").source.variable == (
            "IRprecipitation"
        )

    @pytest.mark.parametrize("lat", [LAT, LAT[::-1]])
    @pytest.mark.parametrize("lon", [LON, LON + 230, LON - 180])
    def test_rows_and_longitudes_stay(
        self, tmp_path: Path, lat: np.ndarray, lon: np.ndarray
    ) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            coordinates(dataset, lat, lon)
            add(dataset, "rain", **RATE)
        found = read_netcdf(tmp_path / "in.nc")
        np.testing.assert_array_equal(found.grid.y, lat)
        np.testing.assert_array_equal(found.grid.x, lon)
        np.testing.assert_array_equal(found.load(), RAIN)

    def test_axes_by_attributes_whatever_the_names(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            coordinates(dataset, names=("a", "b", "c"))
            for name, axis in zip("abc", "TYX", strict=True):
                dataset[name].setncatts({"axis": axis, "units": "1" if axis != "T" else HOURS})
            add(dataset, "rain", dimensions=("a", "b", "c"), **RATE)
        found = read_netcdf(tmp_path / "in.nc")
        assert found.grid.names == ("b", "c")
        np.testing.assert_array_equal(found.load(), RAIN)

    def test_coordinates_named_unlike_their_dimensions(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            for name, size in (("rows", 4), ("columns", 5)):
                dataset.createDimension(name, size)
            add(dataset, "latitude", LAT, ("rows",), "f8")
            add(dataset, "longitude", LON, ("columns",), "f8")
            add(dataset, "rain", RAIN[0], ("rows", "columns"), **RATE)
        assert read_netcdf(tmp_path / "in.nc").grid.names == ("latitude", "longitude")

    def test_length_one_dimensions_go_and_longer_ones_are_refused(self, tmp_path: Path) -> None:
        for size in (1, 2):
            with netCDF4.Dataset(tmp_path / f"{size}.nc", "w") as dataset:
                coordinates(dataset)
                dataset.createDimension("level", size)
                values = np.repeat(RAIN[:, None], size, axis=1)
                add(dataset, "rain", values, ("time", "level", "lat", "lon"), **RATE)
        np.testing.assert_array_equal(read_netcdf(tmp_path / "1.nc").load(), RAIN)
        with pytest.raises(InputError, match="2 entries along 'level'; expected one"):
            read_netcdf(tmp_path / "2.nc")

    def test_valid_time_is_preferred_to_reference_time(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            coordinates(dataset)
            dataset["time"].standard_name = "time"
            dataset.createDimension("run", 1)
            run = {"units": HOURS, "standard_name": "forecast_reference_time"}
            add(dataset, "run", [-6], ("run",), "f8", **run)
            add(dataset, "rain", RAIN[None], ("run", "time", "lat", "lon"), **RATE)
        assert read_netcdf(tmp_path / "in.nc").valid_times[1] == "2022-08-09T16:00:00"

    def test_curvilinear_and_uneven_grids_are_refused(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(tmp_path / "curved.nc", "w") as dataset:
            dataset.createDimension("south_north", 4)
            dataset.createDimension("west_east", 5)
            plane = ("south_north", "west_east")
            add(dataset, "XLAT", RAIN[0], plane, units="degrees_north")
            add(dataset, "rain", RAIN[0], plane, coordinates="XLAT", **RATE)
        with pytest.raises(InputError, match="one-dimensional coordinate along y"):
            read_netcdf(tmp_path / "curved.nc")
        with netCDF4.Dataset(tmp_path / "gauss.nc", "w") as dataset:
            coordinates(dataset, lat=np.array([0, 1, 3, 4.0]))
            add(dataset, "rain", **RATE)
        with pytest.raises(InputError, match=r"gauss\.nc: Coordinate 'lat' has spacings"):
            read_netcdf(tmp_path / "gauss.nc")

    def test_no_time_step(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            coordinates(dataset, hours=[])
            add(dataset, "rain", np.empty((0, 4, 5)), **RATE)
        with pytest.raises(InputError, match="no entry along 'time'"):
            read_netcdf(tmp_path / "in.nc")


class TestChoice:
    def several(self, path: Path) -> Path:
        with netCDF4.Dataset(path, "w") as dataset:
            coordinates(dataset)
            add(dataset, "pr", units="kg m-2 s-1")
            add(dataset, "other", RAIN + 1, units="mm/h", standard_name="rainfall_rate")
            add(dataset, "t2m", units="K")
        return path

    def test_several_candidates(self, tmp_path: Path) -> None:
        path = self.several(tmp_path / "in.nc")
        with pytest.raises(InputError, match=r"'pr' .*'other' .*--variable") as caught:
            read_netcdf(path)
        assert "t2m" not in str(caught.value)
        np.testing.assert_array_equal(read_netcdf(path, "other").load(), RAIN + 1)

    def test_unknown_name_lists_the_candidates(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no field 'rian'; expected one of 'pr' .*'other'"):
            read_netcdf(self.several(tmp_path / "in.nc"), "rian")

    def test_named_variable_must_be_a_rate(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="'t2m' has units 'K'"):
            read_netcdf(self.several(tmp_path / "in.nc"), "t2m")

    def test_no_candidate_lists_what_there_is(self, tmp_path: Path) -> None:
        path = rain_file(tmp_path / "in.nc", "wind", units="m s-1", standard_name="wind_speed")
        with pytest.raises(InputError, match=r"no precipitation variable, only 'wind' \[m s-1\]"):
            read_netcdf(path)
        assert read_netcdf(path, "wind").grid.shape == (4, 5)  # asked for by name: taken

    def test_a_rate_is_found_beside_an_accumulation(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            coordinates(dataset)
            add(dataset, "tp", units="m")
            add(dataset, "tprate", units="m s-1")
        assert read_netcdf(tmp_path / "in.nc").source.variable == "tprate"

    def test_ancillary_variables_and_modifiers_are_no_candidates(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            coordinates(dataset)
            add(dataset, "rain", ancillary_variables="precip", **RATE)
            add(dataset, "precip", units="mm/h")
            error = {"units": "mm/h", "standard_name": "rainfall_rate standard_error"}
            add(dataset, "rainfall", **error)
        assert read_netcdf(tmp_path / "in.nc").source.variable == "rain"
        assert read_netcdf(tmp_path / "in.nc", "precip").source.variable == "precip"

    # As cfgrib writes, and as archives invent a total's.
    @pytest.mark.parametrize(
        "standard_name", ["", "unknown", "Unknown", "precipitation", "pcp", "total_precipitation"]
    )
    @pytest.mark.parametrize("name", ["tp", "precipitationCal", "PrecipRate", "RAINRATE", "pr"])
    def test_well_known_names(self, tmp_path: Path, name: str, standard_name: str) -> None:
        path = rain_file(tmp_path / "in.nc", name, standard_name=standard_name)
        assert read_netcdf(path).source.variable == name

    @pytest.mark.parametrize(
        ("name", "standard_name"),
        [
            ("rr", "convective_rainfall_rate"),
            ("precipitation", "stratiform_precipitation_flux"),
            ("pr", "lwe_snowfall_rate"),
            ("RAINNC", ""),  # of WRF: without the convection's RAINC
        ],
    )
    def test_a_part_of_the_rain_is_not_taken_for_it(
        self, tmp_path: Path, name: str, standard_name: str
    ) -> None:
        path = rain_file(tmp_path / "in.nc", name, standard_name=standard_name)
        with pytest.raises(InputError, match=f"only '{name}' .*expected .*--variable.* sum"):
            read_netcdf(path)
        assert read_netcdf(path, name).source.variable == name  # asked for: taken
        with netCDF4.Dataset(path, "a") as dataset:
            add(dataset, "total", RAIN * 2, **RATE)
        np.testing.assert_array_equal(read_netcdf(path).load(), RAIN * 2)


class TestDamaged:
    @pytest.mark.parametrize(
        "content", [b"", b"rain,1,2\n" * 200, b"CDF\x01", b"\x89HDF\r\n\x1a\n"]
    )
    def test_not_netcdf(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "in.nc"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"in\.nc: cannot be read") as caught:
            read_netcdf(path)
        assert caught.value.__cause__ is not None and caught.value.exit_code == 2

    @pytest.mark.parametrize(
        "form", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"]
    )
    @pytest.mark.parametrize("records", [True, False])
    def test_truncated(self, tmp_path: Path, form: Any, records: bool) -> None:
        path = tmp_path / "in.nc"
        with netCDF4.Dataset(path, "w", format=form) as dataset:
            coordinates(dataset)
            dataset.createDimension("record", None if records else 2)
            add(dataset, "flag", [1, 2], ("record",), "i2")
            add(dataset, "rain", RAIN + 1, ("record", "lat", "lon"), **RATE)
            add(dataset, "record", [0, 1], ("record",), "f8", units=HOURS)
        whole = path.read_bytes()
        np.testing.assert_array_equal(read_netcdf(path).load(), RAIN + 1)
        for kept in (len(whole) - 4, len(whole) - 200, len(whole) // 2, 40):
            path.write_bytes(whole[:kept])
            with pytest.raises(InputError, match="cannot be read"):
                read_netcdf(path)

    def test_single_unpadded_record_variable(self, tmp_path: Path) -> None:
        path = tmp_path / "in.nc"
        with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as dataset:
            coordinates(dataset, hours=[0])
            dataset.createDimension("t", None)
            values = np.ones((3, 4, 5), "i1")
            add(dataset, "rain", values, ("t", "lat", "lon"), "i1", **RATE)
        assert read_netcdf(path).rate_mm_h.shape == (3, 4, 5)

    def test_corrupted_data(self, tmp_path: Path) -> None:
        path = tmp_path / "in.nc"
        with netCDF4.Dataset(path, "w") as dataset:
            coordinates(dataset)
            dimensions = ("time", "lat", "lon")
            rain = dataset.createVariable("rain", "f4", dimensions, zlib=True, fletcher32=True)
            rain.setncatts(RATE)
            rain[:] = np.random.default_rng(0).random(RAIN.shape)
            rain.set_auto_mask(False)
        raw = bytearray(path.read_bytes())
        start = raw.rindex(b"\x78\x5e") if b"\x78\x5e" in raw else raw.rindex(b"\x78\x9c")
        raw[start + 20 : start + 60] = bytes(40)
        path.write_bytes(raw)
        with pytest.raises(InputError, match="cannot be read"):
            read_netcdf(path)

    @pytest.mark.skipif(not netCDF4.__has_zstandard_support__, reason="no zstandard filter here")
    def test_unavailable_filter(self, tmp_path: Path) -> None:
        path = tmp_path / "in.nc"
        with netCDF4.Dataset(path, "w") as dataset:
            coordinates(dataset)
            dimensions = ("time", "lat", "lon")
            rain = dataset.createVariable("rain", "f4", dimensions, compression="zstd")
            rain.setncatts(RATE)
            rain[:] = RAIN
        code = f"from wdm_runtime.io import read_field; read_field({str(path)!r})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HDF5_PLUGIN_PATH": str(tmp_path)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert "InputError" in done.stderr.splitlines()[-1]
        assert "zlib" in done.stderr.splitlines()[-1]

    def test_parallel_reads(self, tmp_path: Path) -> None:
        paths = [rain_file(tmp_path / f"{index}.nc") for index in range(4)]
        found: list[PrecipField] = []
        threads = [
            threading.Thread(target=lambda p=path: found.extend(read_netcdf(p) for _ in range(5)))
            for path in paths
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 20
