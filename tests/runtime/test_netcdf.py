"""NetCDF in and out: real files, judged by what comes back."""

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wdm_runtime.errors import InputError, OutputError
from wdm_runtime.grid import Grid, PrecipField
from wdm_runtime.io import read_field
from wdm_runtime.io.netcdf import rate_factor, read_netcdf
from wdm_runtime.io.writer import EnsembleWriter

LAT = np.array([50.05, 50.15, 50.25, 50.35])
LON = np.array([5.05, 5.15, 5.25, 5.35, 5.45])
RAIN = np.arange(40, dtype=np.float64).reshape(2, 4, 5) / 8  # exact in float32
FEW_FILES = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HOURS = "hours since 2022-08-09 15:00:00"
RATE = {"units": "mm h-1", "standard_name": "lwe_precipitation_rate"}

UNITS_IN_MM_H = {
    "mm h-1": 1.0,
    "mm/h": 1.0,
    "MM/HR": 1.0,
    "mm  hr-1": 1.0,
    "mm/hour": 1.0,
    "mm h^-1": 1.0,
    "mm h**-1": 1.0,
    "kg m-2 s-1": 3600.0,
    "kg m**-2 s**-1": 3600.0,
    "kg/m2/s": 3600.0,
    "kg s-1 m-2": 3600.0,
    "mm s-1": 3600.0,
    "mm/s": 3600.0,
    "m s-1": 3.6e6,
    "m/s": 3.6e6,
    "mm day-1": 1 / 24,
    "mm/day": 1 / 24,
    "mm d-1": 1 / 24,
}
NOT_RATES = (
    *("m", "mm", "K", "1", "kg m-2", "mm/h/h", "mm-1 h", "mm m-1", "s-1", "h-1", "kg m-3 s-1"),
    *("dBZ", "mmh-1", "mm/", "-1", "hours since 2000-01-01", "mm hr-1 (liquid)"),
)


def coordinates(
    group: netCDF4.Dataset,
    lat: np.ndarray = LAT,
    lon: np.ndarray = LON,
    hours: Any = (0, 1),
    names: tuple[str, str, str] = ("time", "lat", "lon"),
) -> None:
    units = (HOURS, "degrees_north", "degrees_east")
    for name, unit, values in zip(names, units, (hours, lat, lon), strict=True):
        group.createDimension(name, len(values))
        coordinate = group.createVariable(name, "f8", (name,))
        coordinate.units = unit
        coordinate[:] = values


def add(
    group: netCDF4.Dataset,
    name: str,
    values: Any = RAIN,
    dimensions: tuple[str, ...] = ("time", "lat", "lon"),
    dtype: str = "f4",
    fill_value: Any = None,
    **attributes: Any,
) -> netCDF4.Variable:
    variable = group.createVariable(name, dtype, dimensions, fill_value=fill_value)
    variable.setncatts(attributes)
    variable[:] = values
    return variable


def rain_file(path: Path, name: str = "rain", **options: Any) -> Path:
    with netCDF4.Dataset(path, "w") as dataset:
        coordinates(dataset)
        add(dataset, name, **{**RATE, **options})
    return path


def field(rows: int = 3, columns: int = 4, times: int = 2, **source: Any) -> PrecipField:
    grid = Grid(
        50.05 - 0.1 * np.arange(rows),
        5.05 + 0.1 * np.arange(columns),
        ("lat", "lon"),
        (
            {"units": "degrees_north", "standard_name": "latitude"},
            {"units": "degrees_east", "standard_name": "longitude"},
        ),
    )
    rates = np.ones((times, rows, columns), np.float32)
    valid = tuple(f"none-{index}" for index in range(times))
    return PrecipField(rates, grid, valid, {"variable": "rain", "units": "mm h-1", **source})


def write_all(
    path: Path, coarse: PrecipField, factor: int = 2, members: int = 1, **kw: Any
) -> None:
    with EnsembleWriter(path, coarse, factor, members, {}, **kw) as writer:
        for time in range(len(coarse.valid_times)):
            for member in range(members):
                writer.write(time, member, np.full(writer.grid.shape, time + member, np.float32))


class TestUnits:
    @pytest.mark.parametrize(("units", "factor"), UNITS_IN_MM_H.items())
    def test_rates_are_converted(self, tmp_path: Path, units: str, factor: float) -> None:
        path = rain_file(tmp_path / "in.nc", values=RAIN / factor, dtype="f8", units=units)
        found = read_netcdf(path)
        np.testing.assert_allclose(found.rate_mm_h, RAIN, rtol=1e-6)
        assert found.rate_mm_h.dtype == np.float32
        assert found.source["units"] == units

    @pytest.mark.parametrize("units", NOT_RATES)
    def test_anything_else_is_no_rate(self, units: str) -> None:
        assert rate_factor(units) is None

    def test_accumulation_is_refused_in_the_pattern_of_the_house(self, tmp_path: Path) -> None:
        path = rain_file(tmp_path / "rain.nc", "tp", units="m", standard_name="")
        with pytest.raises(InputError) as caught:
            read_netcdf(path)
        assert str(caught.value) == (
            f"{path}: variable 'tp' has units 'm', expected a rate convertible to 'mm h-1'. "
            "Choose another with --variable."
        )

    def test_no_units(self, tmp_path: Path) -> None:
        path = rain_file(tmp_path / "in.nc", units="")
        with pytest.raises(InputError, match="'rain' has no units, expected a rate"):
            read_netcdf(path)

    @FEW_FILES
    @given(st.sampled_from(sorted(UNITS_IN_MM_H)), st.floats(0, 500, width=32))
    def test_units_survive_a_round_trip(self, tmp_path: Path, units: str, rate: float) -> None:
        path = tmp_path / "out.nc"
        coarse = field(2, 2, 1, units=units)
        with EnsembleWriter(path, coarse, 2, 1, {}, overwrite=True) as writer:
            writer.write(0, 0, np.full((4, 4), rate, np.float32))
        found = read_netcdf(path)
        assert found.source["units"] == units
        np.testing.assert_allclose(found.rate_mm_h, rate, rtol=1e-6, atol=1e-30)


class TestMissing:
    def test_packed_with_fill(self, tmp_path: Path) -> None:
        packed = {"scale_factor": 0.1, "add_offset": 10.0, "dtype": "i2", "fill_value": -32768}
        values = np.ma.masked_equal(np.round(RAIN, 1), 0)
        found = read_netcdf(rain_file(tmp_path / "in.nc", values=values, **packed)).rate_mm_h
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
        np.testing.assert_allclose(read_netcdf(path).rate_mm_h, expected, rtol=1e-6, atol=1e-30)

    @pytest.mark.parametrize(
        "code", [-1.0, -3.0, -9999.0, -9999.9, 9999.0, 99999.0, 9.96921e36, np.nan, np.inf, -np.inf]
    )
    def test_codes(self, tmp_path: Path, code: float) -> None:
        values = RAIN.copy()
        values[0, 1, 2] = code
        found = read_netcdf(rain_file(tmp_path / "in.nc", values=values)).rate_mm_h
        assert np.argwhere(np.isnan(found)).tolist() == [[0, 1, 2]]

    def test_code_9999_is_in_the_units_of_the_file(self, tmp_path: Path) -> None:
        values = np.full(RAIN.shape, 24.0)
        values[0, 0, 0] = 9999
        found = read_netcdf(rain_file(tmp_path / "in.nc", values=values, units="mm/day"))
        assert np.isnan(found.rate_mm_h[0, 0, 0]) and found.rate_mm_h[0, 0, 1] == 1

    def test_negative_noise_is_dry(self, tmp_path: Path) -> None:
        values = RAIN.copy()
        values[0, 0, 0] = -5e-4
        assert read_netcdf(rain_file(tmp_path / "in.nc", values=values)).rate_mm_h[0, 0, 0] == 0

    def test_missing_value_and_valid_range(self, tmp_path: Path) -> None:
        limits = {"missing_value": np.float32(7), "valid_range": np.array([0, 300], "f4")}
        values = RAIN.copy()
        values[0, 0, :3] = 7, 301, 299
        found = read_netcdf(rain_file(tmp_path / "in.nc", values=values, **limits)).rate_mm_h
        assert np.isnan(found[0, 0, :3]).tolist() == [True, True, False]

    def test_one_empty_frame_is_kept_but_not_an_empty_file(self, tmp_path: Path) -> None:
        values = RAIN.copy()
        values[0] = np.nan
        assert np.isnan(read_netcdf(rain_file(tmp_path / "a.nc", values=values)).rate_mm_h[0]).all()
        with pytest.raises(InputError, match="no valid value in its 40 cells"):
            read_netcdf(rain_file(tmp_path / "b.nc", values=np.full(RAIN.shape, -3.0)))


class TestAxes:
    @pytest.mark.parametrize(
        "dimensions", [("time", "lon", "lat"), ("lat", "lon", "time"), ("lon", "time", "lat")]
    )
    def test_any_order(self, tmp_path: Path, dimensions: tuple[str, ...]) -> None:
        values = RAIN.transpose([("time", "lat", "lon").index(d) for d in dimensions])
        found = read_netcdf(rain_file(tmp_path / "in.nc", values=values, dimensions=dimensions))
        np.testing.assert_array_equal(found.rate_mm_h, RAIN)

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
        np.testing.assert_array_equal(found.rate_mm_h[0, :3], RAIN[0, :3])
        assert np.isnan(found.rate_mm_h[0, 3, 4])
        assert found.source["variable"] == "precipitation"
        assert read_field(path, "Grid/Intermediate/IRprecipitation").source["variable"] == (
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
        np.testing.assert_array_equal(found.rate_mm_h, RAIN)

    def test_axes_by_attributes_whatever_the_names(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            coordinates(dataset, names=("a", "b", "c"))
            for name, axis in zip("abc", "TYX", strict=True):
                dataset[name].setncatts({"axis": axis, "units": "1" if axis != "T" else HOURS})
            add(dataset, "rain", dimensions=("a", "b", "c"), **RATE)
        found = read_netcdf(tmp_path / "in.nc")
        assert found.grid.names == ("b", "c")
        np.testing.assert_array_equal(found.rate_mm_h, RAIN)

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
        np.testing.assert_array_equal(read_netcdf(tmp_path / "1.nc").rate_mm_h, RAIN)
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
        np.testing.assert_array_equal(read_netcdf(path, "other").rate_mm_h, RAIN + 1)

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
        assert read_netcdf(tmp_path / "in.nc").source["variable"] == "tprate"

    def test_ancillary_variables_and_modifiers_are_no_candidates(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            coordinates(dataset)
            add(dataset, "rain", ancillary_variables="precip", **RATE)
            add(dataset, "precip", units="mm/h")
            error = {"units": "mm/h", "standard_name": "rainfall_rate standard_error"}
            add(dataset, "rainfall", **error)
        assert read_netcdf(tmp_path / "in.nc").source["variable"] == "rain"

    @pytest.mark.parametrize("name", ["tp", "precipitationCal", "PrecipRate", "RAINRATE", "pr"])
    def test_well_known_names(self, tmp_path: Path, name: str) -> None:
        path = rain_file(tmp_path / "in.nc", name, standard_name="")
        assert read_netcdf(path).source["variable"] == name


class TestTimes:
    def read(self, path: Path, values: Any, dtype: str = "f8", **attributes: str) -> PrecipField:
        with netCDF4.Dataset(path, "w") as dataset:
            dataset.createDimension("valid", len(values))
            add(dataset, "valid", values, ("valid",), dtype, standard_name="time", **attributes)
            for name, coordinate in (("lat", LAT), ("lon", LON)):
                dataset.createDimension(name, len(coordinate))
                add(dataset, name, coordinate, (name,), "f8")
            add(dataset, "rain", RAIN[: len(values)], ("valid", "lat", "lon"), **RATE)
        return read_netcdf(path)

    @pytest.mark.parametrize(
        ("values", "dtype", "units", "calendar", "expected"),
        [
            ([0, 90], "i4", "minutes since 2022-08-09 14:00", "standard", "2022-08-09T15:30:00"),
            ([0, 44780.1], "f8", "days since 1900-01-01", "gregorian", "2022-08-09T02:24:00"),
            ([0, 1 / 3], "f8", "days since 2022-08-09", "", "2022-08-09T08:00:00"),
            ([0, 59], "i8", "days since 2024-01-01", "noleap", "2024-03-01T00:00:00"),
            ([0, 59], "i8", "days since 2024-01-01", "360_day", "2024-02-30T00:00:00"),
            ([0, 1], "f4", "hours since 2022-08-09 15:00 +02:00", "", "2022-08-09T14:00:00"),
        ],
    )
    def test_decoded_and_written_again(
        self,
        tmp_path: Path,
        values: list[float],
        dtype: str,
        units: str,
        calendar: str,
        expected: str,
    ) -> None:
        named = {"calendar": calendar} if calendar else {}
        found = self.read(tmp_path / "in.nc", values, dtype, units=units, **named)
        assert found.valid_times[1] == expected
        write_all(tmp_path / "out.nc", found)
        again = read_netcdf(tmp_path / "out.nc")
        assert again.valid_times == found.valid_times
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            time = dataset["valid"]
            assert time.dtype == np.dtype(dtype) and time.units == units
            assert time.calendar == (calendar or "standard")
            np.testing.assert_array_equal(time[:], np.array(values, dtype))

    @pytest.mark.parametrize(
        ("values", "attributes"),
        [
            ([0, 1], {"units": "days since yesterday"}),
            ([0, 1], {"units": "days"}),
            ([0, 1], {}),
            ([0, 1], {"units": HOURS, "calendar": "mayan"}),
            ([0, 1e300], {"units": HOURS}),
            ([0, np.nan], {"units": HOURS}),
        ],
    )
    def test_undecodable_times(
        self, tmp_path: Path, values: list[float], attributes: dict[str, str]
    ) -> None:
        with pytest.raises(InputError, match="coordinate 'valid' has units"):
            self.read(tmp_path / "in.nc", values, **attributes)

    @pytest.mark.parametrize("scalar", [True, False])
    def test_two_dimensions(self, tmp_path: Path, scalar: bool) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            for name, coordinate in (("lat", LAT), ("lon", LON)):
                dataset.createDimension(name, len(coordinate))
                add(dataset, name, coordinate, (name,), "f8")
            if scalar:
                add(dataset, "time", 2.0, (), "f8", units=HOURS)
            add(dataset, "rain", RAIN[0], ("lat", "lon"), **RATE)
        found = read_netcdf(tmp_path / "in.nc")
        assert found.rate_mm_h.shape == (1, 4, 5)
        assert found.valid_times == (("2022-08-09T17:00:00",) if scalar else ("none-0",))
        write_all(tmp_path / "out.nc", found)
        assert read_netcdf(tmp_path / "out.nc").valid_times == found.valid_times

    def test_time_dimension_without_coordinate(self, tmp_path: Path) -> None:
        write_all(tmp_path / "out.nc", field())
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            assert dataset.dimensions["time"].size == 2 and "time" not in dataset.variables
        assert read_netcdf(tmp_path / "out.nc").valid_times == ("none-0", "none-1")

    def test_times_of_a_source_without_time_coordinate_are_not_lost(self, tmp_path: Path) -> None:
        coarse = field()
        valid = ("2022-08-09T15:00:05", "2022-08-09T15:02:05")
        write_all(tmp_path / "out.nc", PrecipField(coarse.rate_mm_h, coarse.grid, valid))
        assert read_netcdf(tmp_path / "out.nc").valid_times == valid


class TestDamaged:
    @pytest.mark.parametrize(
        "content", [b"", b"rain,1,2\n" * 200, b"CDF\x01", b"\x89HDF\r\n\x1a\n"]
    )
    def test_not_netcdf(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "in.nc"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"in\.nc: cannot be read") as caught:
            read_field(path)
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
        np.testing.assert_array_equal(read_netcdf(path).rate_mm_h, RAIN + 1)
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


class TestOutput:
    def test_is_cf_and_covers_the_same_area(self, tmp_path: Path) -> None:
        coarse = field(standard_name="rainfall_rate", long_name="radar rain")
        attributes = {"seed": 7, "degraded": False, "sampler": "heun", "churn": 0.5, "big": 2**64}
        with EnsembleWriter(tmp_path / "out.nc", coarse, 10, 3, attributes) as writer:
            for time in range(2):
                for member in range(3):
                    writer.write(time, member, np.full((30, 40), time + member / 4))
            writer.set_attributes({"degraded": True})
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            rain = dataset["rain"]
            assert dataset.Conventions == "CF-1.11, ACDD-1.3" and dataset.data_model == "NETCDF4"
            assert rain.dimensions == ("time", "realization", "lat", "lon")
            assert (rain.dtype, rain._FillValue) == (np.float32, -9999)
            assert rain.chunking() == [1, 1, 30, 40] and rain.filters()["zlib"]
            assert rain.standard_name == "rainfall_rate" and rain.long_name == "radar rain"
            assert rain.units == "mm h-1" and rain.cell_methods == "area: mean"
            np.testing.assert_array_equal(rain[1, :, 0, 0], [1, 1.25, 1.5])
            assert dataset["realization"].standard_name == "realization"
            assert dataset["realization"][:].tolist() == [0, 1, 2]
            assert dataset["lat"].standard_name == "latitude" and dataset["lat"].axis == "Y"
            for name, centres in (("lat", coarse.grid.y), ("lon", coarse.grid.x)):
                bounds, half = dataset[dataset[name].bounds][:], (centres[1] - centres[0]) / 2
                np.testing.assert_allclose(bounds[0, 0], centres[0] - half)
                np.testing.assert_allclose(bounds[-1, 1], centres[-1] + half)
                np.testing.assert_array_equal(bounds[1:, 0], bounds[:-1, 1])
                np.testing.assert_allclose(bounds.mean(axis=1), dataset[name][:])
            assert (dataset.seed, dataset.degraded, dataset.sampler) == (7, "true", "heun")
            assert dataset.churn == 0.5 and dataset.big == str(2**64)
            assert "wdm-run" in dataset.history and dataset.title and dataset.source

    def test_values_and_missing_cells_come_back(self, tmp_path: Path) -> None:
        rates = np.random.default_rng(1).gamma(0.3, 5, (6, 8)).astype(np.float32)
        rates[2:4, 5] = np.nan
        path = tmp_path / "out.nc"
        with EnsembleWriter(path, field(times=1), 2, 1, {}) as writer:
            writer.write(0, 0, rates)
        with netCDF4.Dataset(path) as dataset:
            dataset.set_auto_mask(False)
            assert (dataset["rain"][0, 0, 2:4, 5] == -9999).all()
        found = read_netcdf(path)
        np.testing.assert_array_equal(found.rate_mm_h[0], rates)  # unrounded, NaN included
        assert found.grid.north_first and found.grid.shape == (6, 8)

    def test_names_and_grid_mapping_are_carried_over(self, tmp_path: Path) -> None:
        path = tmp_path / "in.nc"
        with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as dataset:
            coordinates(dataset, names=("t", "northing", "easting"))
            dataset["northing"].setncatts({"units": "km", "axis": "Y", "actual_range": [0.0, 9.0]})
            dataset["easting"].setncatts({"units": "km", "axis": "X", "bounds": "elsewhere"})
            add(dataset, "crs", 0, (), "i4", grid_mapping_name="polar_stereographic", n=60.0)
            rain = {"units": "kg m-2 s-1", "grid_mapping": "crs"}
            add(dataset, "pr", RAIN / 3600, ("t", "northing", "easting"), **rain)
        write_all(tmp_path / "out.nc", read_netcdf(path))
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            rain = dataset["pr"]
            assert rain.dimensions == ("t", "realization", "northing", "easting")
            assert rain.standard_name == "precipitation_flux" and rain.units == "kg m-2 s-1"
            assert dataset[rain.grid_mapping].ncattrs() == ["grid_mapping_name", "n"]
            assert dataset["northing"].units == "km"
            assert "actual_range" not in dataset["northing"].ncattrs()
            assert dataset["easting"].bounds == "easting_bnds"
            assert dataset["t"].units == HOURS

    def test_without_source(self, tmp_path: Path) -> None:
        coarse = field()
        bare = PrecipField(coarse.rate_mm_h, coarse.grid, coarse.valid_times)
        write_all(tmp_path / "out.nc", bare)
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            assert dataset["rainfall_rate"].standard_name == "lwe_precipitation_rate"
            assert dataset["rainfall_rate"].units == "mm h-1"

    def test_large_frames_are_chunked(self, tmp_path: Path) -> None:
        write_all(tmp_path / "out.nc", field(60, 3, times=1), factor=10)
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            assert dataset["rain"].chunking() == [1, 1, 300, 30]

    def test_mode_follows_the_umask(self, tmp_path: Path) -> None:
        old = os.umask(0o027)
        try:
            write_all(tmp_path / "out.nc", field())
        finally:
            os.umask(old)
        assert (tmp_path / "out.nc").stat().st_mode & 0o777 == 0o640


class TestWholeOrNothing:
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    @pytest.mark.parametrize("before", [b"old", None])
    def test_exception_changes_nothing(
        self, tmp_path: Path, error: type[BaseException], before: bytes | None
    ) -> None:
        path = tmp_path / "out.nc"
        if before is not None:
            path.write_bytes(before)
        with (
            pytest.raises(error),
            EnsembleWriter(path, field(), 2, 1, {}, overwrite=before is not None) as writer,
        ):
            writer.write(0, 0, np.zeros((6, 8)))
            assert len(list(tmp_path.glob(".out.nc.*.tmp"))) == 1
            raise error
        assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])

    def test_never_written_frame(self, tmp_path: Path) -> None:
        with (
            pytest.raises(OutputError, match="1 of 4 frames were never written, first time 1 mem"),
            EnsembleWriter(tmp_path / "out.nc", field(), 2, 2, {}) as writer,
        ):
            for time, member in ((0, 0), (0, 1), (1, 1)):
                writer.write(time, member, np.zeros((6, 8)))
        assert not list(tmp_path.iterdir())

    def test_refuses_an_existing_file_before_any_work(self, tmp_path: Path) -> None:
        path = tmp_path / "out.nc"
        path.write_bytes(b"old")
        with pytest.raises(OutputError, match=r"exists already.*--overwrite.*-o"):
            EnsembleWriter(path, field(), 2, 1, {})
        assert path.read_bytes() == b"old"
        write_all(path, field(), overwrite=True)
        assert read_netcdf(path).grid.shape == (6, 8)
        assert list(tmp_path.iterdir()) == [path]

    def test_refuses_a_file_that_appeared_meanwhile(self, tmp_path: Path) -> None:
        path = tmp_path / "out.nc"
        with (
            pytest.raises(OutputError, match="appeared while"),
            EnsembleWriter(path, field(times=1), 2, 1, {}) as writer,
        ):
            writer.write(0, 0, np.zeros((6, 8)))
            path.write_bytes(b"another's")
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"another's"]

    def test_file_systems_without_hard_links(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> None:
            raise PermissionError("no hard links here")

        monkeypatch.setattr(os, "link", refuse)
        path = tmp_path / "out.nc"
        write_all(path, field())
        assert list(tmp_path.iterdir()) == [path]
        with pytest.raises(OutputError, match="exists already"):
            write_all(path, field())

    def test_refuses_the_input(self, tmp_path: Path) -> None:
        path = rain_file(tmp_path / "in.nc")
        (tmp_path / "link.nc").symlink_to(path)
        for name in ("in.nc", "link.nc"):
            with pytest.raises(OutputError, match="is the input itself"):
                EnsembleWriter(tmp_path / name, read_netcdf(path), 2, 1, {}, overwrite=True)

    def test_refuses_missing_folders_and_odd_files(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"folder .* does not exist"):
            EnsembleWriter(tmp_path / "none" / "out.nc", field(), 2, 1, {})
        for path in (tmp_path, Path(os.devnull)):
            with pytest.raises(OutputError, match="not a regular file"):
                EnsembleWriter(path, field(), 2, 1, {}, overwrite=True)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
    def test_refuses_a_read_only_folder(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o555)
        with pytest.raises(OutputError, match="not writable"):
            EnsembleWriter(tmp_path / "out.nc", field(), 2, 1, {})
        tmp_path.chmod(0o755)

    def test_refuses_wrong_frames(self, tmp_path: Path) -> None:
        writer = EnsembleWriter(tmp_path / "out.nc", field(), 2, 1, {})
        with pytest.raises(OutputError, match="not open"):
            writer.write(0, 0, np.zeros((6, 8)))
        with pytest.raises(OutputError, match=r"\(3, 4\); expected \(y, x\) = \(6, 8\)"), writer:
            writer.write(0, 0, np.zeros((3, 4)))
        for position in ((2, 0), (0, 1), (-1, 0)):
            writer = EnsembleWriter(tmp_path / "out.nc", field(), 2, 1, {})
            with pytest.raises(OutputError, match="expected less than 2 and 1"), writer:
                writer.write(*position, np.zeros((6, 8)))
        with pytest.raises(InputError, match="0 members"):
            EnsembleWriter(tmp_path / "out.nc", field(), 2, 0, {})
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
    def test_full_disk(self, tmp_path: Path) -> None:
        """A limit on the size of files fails writes half-way, as a full disk does."""
        code = f"""
import pathlib, resource, sys
import numpy as np
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_netcdf import EnsembleWriter, OutputError, field
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
path = pathlib.Path({str(tmp_path / "out.nc")!r})
path.write_bytes(b"old")
try:
    with EnsembleWriter(path, field(20, 20, 4), 10, 1, {{}}, overwrite=True) as writer:
        for time in range(4):
            writer.write(time, 0, np.random.default_rng(time).random((200, 200)))
except OutputError as error:
    print("refused", error.__cause__ is not None)
"""
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert done.stdout == "refused True\n", done.stderr
        assert done.returncode == 0, done.stderr
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
