"""Times of NetCDF files: decoded, and written again as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from netcdf_files import HOURS, LAT, LON, RAIN, RATE, add, field, write_all

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.io.netcdf import read_netcdf

RUNS = {"units": HOURS, "standard_name": "forecast_reference_time"}
VALID = {"units": "minutes since 2022-08-09 21:00", "standard_name": "time"}
LEAD = {"units": "hours", "standard_name": "forecast_period"}


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
            ([0, 1], {"units": f"{HOURS} EST"}),
            ([0, 1], {"units": "hours since 2022-08-09 1500"}),
            ([0, 1], {"units": "hours since 2022-08-09 15:00:00 2:00"}),
            ([0, 1], {"units": "hours since 2022-08-09 15:00 +02:00:30"}),
            ([0, 1e300], {"units": HOURS}),
            ([0, np.nan], {"units": HOURS}),
        ],
    )
    def test_undecodable_times(
        self, tmp_path: Path, values: list[float], attributes: dict[str, str]
    ) -> None:
        with pytest.raises(InputError, match="coordinate 'valid' has units"):
            self.read(tmp_path / "in.nc", values, **attributes)

    @pytest.mark.parametrize(
        ("reference", "expected"),
        [
            *((f"2022-08-09{at}", "15:00:00") for at in (" 15", "T15", "T15Z", "T15:00Z", " 15Z")),
            *(
                (f"2022-8-9 {at}", "15:00:00")
                for at in ("15:0:0", "15:00:00.0", " 15:00", "15:00.")
            ),
            *((f"2022-08-09 15:00:00{utc}", "15:00:00") for utc in ("Z", " UTC", "utc", "  GMT")),
            *((f"2022-08-09 15:00 +{zone}", "13:00:00") for zone in ("02:00", "0200", "02", "2")),
            *((f"2022-08-09 {at}", "13:00:00") for at in ("15:00 +2:00", "15 +02:00", "15:00+200")),
            # The example of CF 4.4, whose half second makes the rounded time a later one.
            ("2022-08-09 15:15:42.5 -6:00", "21:15:43"),
            *((f"2022-08-09{zone}", "00:00:00") for zone in ("", "Z", " 0:0:0", " -00:00")),
        ],
    )
    def test_reference_dates(self, tmp_path: Path, reference: str, expected: str) -> None:
        found = self.read(tmp_path / "in.nc", [0, 24], units=f"hours since {reference}")
        assert found.valid_times[0] == f"2022-08-09T{expected}"
        write_all(tmp_path / "out.nc", found)
        assert read_netcdf(tmp_path / "out.nc").valid_times == found.valid_times
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:  # as other readers have it
            time = dataset["valid"]
            start = netCDF4.num2date(0, time.units, time.calendar)
            assert dataset.time_coverage_start == f"{start.isoformat()[:11]}{expected}Z"
            assert start.strftime("%H:%M") == expected[:5]

    def test_names_of_calendars_in_any_case(self, tmp_path: Path) -> None:
        found = self.read(tmp_path / "in.nc", [0, 1], units=HOURS, calendar="Gregorian")
        write_all(tmp_path / "out.nc", found)
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            assert dataset["valid"].units_metadata == "leap_seconds: unknown"

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


class TestScalarReferenceTimes:
    """One field of a run that began at 15 o'clock, with no axis of times."""

    @pytest.mark.parametrize(("lead", "expected"), [((2,), "2022-08-09T17:00:00"), ((), "none-0")])
    def test_it_is_valid_a_period_later(self, tmp_path: Path, lead: Any, expected: str) -> None:
        with netCDF4.Dataset(tmp_path / "in.nc", "w") as dataset:
            for name, coordinate in (("lat", LAT), ("lon", LON)):
                dataset.createDimension(name, len(coordinate))
                add(dataset, name, coordinate, (name,), "f8", units=f"degrees_{name}")
            add(dataset, "time", 0, (), "i4", **RUNS)
            for hours in lead:
                add(dataset, "step", hours, (), "i4", **LEAD)
            add(dataset, "rain", RAIN[0], ("lat", "lon"), **RATE)
        assert read_netcdf(tmp_path / "in.nc").valid_times == (expected,)


class TestReferenceTimes:
    """Runs of a forecast that began at 15 and 16 o'clock."""

    def read(self, path: Path, runs: list[int], **others: tuple[Any, Any, Any]) -> PrecipField:
        """Of a file with a time and a step, and other variables of values and dimensions."""
        with netCDF4.Dataset(path, "w") as dataset:
            for name, coordinate in (("lat", LAT), ("lon", LON)):
                dataset.createDimension(name, len(coordinate))
                add(dataset, name, coordinate, (name,), "f8", units=f"degrees_{name}")
            dataset.createDimension("time", len(runs))
            dataset.createDimension("step", 1)
            add(dataset, "time", runs, ("time",), "i4", **RUNS)
            for name, (values, dimensions, attributes) in others.items():
                add(dataset, name, values, dimensions, "i4", **attributes)
            rain = RAIN[: len(runs), None]
            add(dataset, "rain", rain, ("time", "step", "lat", "lon"), **RATE)
        return read_netcdf(path)

    @pytest.mark.parametrize(
        ("runs", "others", "expected"),
        [
            ([0, 1], {"valid": ([[0], [60]], ("time", "step"), VALID)}, ("21:00", "22:00")),
            ([0], {"valid": ([[0]], ("time", "step"), VALID)}, ("21:00",)),
            ([0], {"valid": (0, (), VALID)}, ("21:00",)),
            ([0, 1], {"step": ([2], ("step",), LEAD)}, ("17:00", "18:00")),
            ([0, 1], {"lead": (2, (), LEAD)}, ("17:00", "18:00")),
            ([0, 1], {"lead": ([2, 3], ("time",), LEAD)}, ("17:00", "19:00")),
            ([0], {"lead": (90, (), LEAD | {"units": "min"})}, ("16:30",)),
        ],
    )
    def test_a_forecast_has_its_valid_time(
        self, tmp_path: Path, runs: list[int], others: dict[str, Any], expected: tuple[str, ...]
    ) -> None:
        found = self.read(tmp_path / "in.nc", runs, **others)
        assert found.valid_times == tuple(f"2022-08-09T{clock}:00" for clock in expected)
        write_all(tmp_path / "out.nc", found)
        assert read_netcdf(tmp_path / "out.nc").valid_times == found.valid_times

    @pytest.mark.parametrize(
        "others",
        [
            {},
            {"lead": (2, (), LEAD), "other": (3, (), LEAD)},
            {"valid": (0, (), VALID)},
            {"lead": (2, (), LEAD | {"units": "fortnights"})},
        ],
    )
    def test_a_forecast_without_a_valid_time_is_refused(
        self, tmp_path: Path, others: dict[str, Any]
    ) -> None:
        with pytest.raises(InputError, match=r"'time' .*expected"):
            self.read(tmp_path / "in.nc", [0, 1], **others)
