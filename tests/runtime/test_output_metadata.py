"""What outputs say of themselves: CF and ACDD as compliance-checker sees them, units, times."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from output_files import (
    BOUNDS,
    HOURS,
    SPEC,
    amount_field,
    flux_field,
    rate_field,
    rates,
    write_output,
)

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField, Source, TimeAxis
from wdm_runtime.grid import Grid
from wdm_runtime.io.grib_output import check_grib

FIELDS = {"rate": rate_field, "amount": amount_field, "flux": flux_field}
STATISTICS = {"statistics": SPEC}
# CF recommends (realization, time, y, x) and checks names in cell_methods against dimensions; it
# allows other orders, and standard names of what was collapsed (7.3.4). No name for exceedance.
TOLERATED = {
    "cf:1.11": (
        "are not in the recommended order T, Z, Y, X",
        "cell_methods name component realiz",
    ),
    "acdd:1.3": ('_exceedance" missing the following attributes: standard_name',),
}


OPTIONS = {"members": {}, "both": STATISTICS, "statistics": {**STATISTICS, "keep_members": False}}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """What the checker says of each file, in a process of its own.

    Its libraries and those of ecCodes do not end well in one process.
    """
    pytest.importorskip("compliance_checker")
    folder = tmp_path_factory.mktemp("checked")
    for kind, make in FIELDS.items():
        for name, options in OPTIONS.items():
            write_output(folder / f"{kind}-{name}.nc", make(), **options)
    with netCDF4.Dataset(write_output(folder / "faulty.nc", rate_field()), "a") as dataset:
        dataset["rain"].units = "kelvin"
        dataset.delncattr("title")
    files = sorted(str(path) for path in folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK, *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return {Path(file).stem: texts for file, texts in found.items()}


CHECK = """
import json, sys
from compliance_checker.suite import CheckSuite

def failed(results):
    for result in results:
        yield from failed(result.children)
        if isinstance(result.value, tuple) and result.value[0] < result.value[1]:
            yield from (f"{result.name.rstrip(':')}: {text}" for text in result.msgs)

suite, found = CheckSuite(), {}
suite.load_all_available_checkers()
for path in sys.argv[1:]:
    dataset = suite.load_dataset(path)
    for checker, limit in (("cf:1.11", 2), ("acdd:1.3", 3)):
        groups, failures = suite.run_all(dataset, [checker])[checker]
        assert groups and not failures, failures
        report = suite.build_structure(checker, groups, path, limit)
        found.setdefault(path, {})[checker] = list(failed(report["all_priorities"]))
    dataset.close()
print(json.dumps(found))
"""


class TestCompliance:
    @pytest.mark.parametrize("name", OPTIONS)
    @pytest.mark.parametrize("kind", FIELDS)
    def test_checker_finds_no_error(
        self, complaints: dict[str, dict[str, list[str]]], kind: str, name: str
    ) -> None:
        """Neither errors nor warnings of CF, nor what ACDD highly recommends, but for TOLERATED."""
        for checker, texts in complaints[f"{kind}-{name}"].items():
            assert [t for t in texts if not any(k in t for k in TOLERATED[checker])] == []

    def test_the_checker_would_find_one(self, complaints: dict[str, dict[str, list[str]]]) -> None:
        assert any("units" in text for text in complaints["faulty"]["cf:1.11"])
        assert any("title" in text for text in complaints["faulty"]["acdd:1.3"])


class TestQuantity:
    def test_amounts_stay_amounts_over_their_own_bounds(self, tmp_path: Path) -> None:
        field = amount_field()
        path = write_output(tmp_path / "out.nc", field)
        with netCDF4.Dataset(path) as dataset:
            rain, time = dataset["precip"], dataset["time"]
            assert (rain.units, rain.cell_methods) == ("mm", "area: mean time: sum")
            assert rain.standard_name == "lwe_thickness_of_precipitation_amount"
            assert (time.units, time.calendar, time.bounds) == (HOURS, "standard", "time_edges")
            np.testing.assert_array_equal(dataset["time_edges"][:], BOUNDS)
            assert dataset.time_coverage_start == "2022-08-09T14:00:00Z"
            assert dataset.time_coverage_end == "2022-08-09T16:00:00Z"
            assert dataset.time_coverage_duration == "PT2H"
            assert dataset.wdm_accumulation_h == 1
            np.testing.assert_array_equal(
                np.ma.filled(rain[0, 1], np.nan), rates(field, 0, 1)
            )  # one hour: mm are mm/h

    @pytest.mark.parametrize(
        ("units", "per_mm_h", "name", "methods"),
        [
            ("mm", 0.5, "lwe_thickness_of_precipitation_amount", "area: mean time: sum"),
            ("kg m-2", 0.5, "precipitation_amount", "area: mean time: sum"),
            ("mm h-1", 1, "lwe_precipitation_rate", "area: mean time: mean"),
            ("kg m-2 s-1", 1 / 3600, "precipitation_flux", "area: mean time: mean"),
        ],
    )
    def test_units_asked_for(
        self, tmp_path: Path, units: str, per_mm_h: float, name: str, methods: str
    ) -> None:
        field = amount_field()
        half_hourly = replace(field, source=replace(field.source, period_h=0.5))
        path = write_output(tmp_path / "out.nc", half_hourly, units=units, statistics=SPEC)
        with netCDF4.Dataset(path) as dataset:
            rain = dataset["precip"]
            assert (rain.units, rain.standard_name, rain.cell_methods) == (units, name, methods)
            found = np.ma.filled(rain[1, 0], np.nan)
            np.testing.assert_allclose(found, rates(field, 1, 0) * per_mm_h, rtol=1e-6)
            assert dataset["threshold"].units == units
            np.testing.assert_allclose(
                dataset["threshold"][:], np.array(SPEC.thresholds_mm_h) * per_mm_h
            )

    @pytest.mark.parametrize("units", ["K", "mm", "furlong"])
    def test_units_that_do_not_fit(self, tmp_path: Path, units: str) -> None:
        with pytest.raises(InputError, match=f"units '{units}'"):
            write_output(tmp_path / "out.nc", rate_field(), units=units)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("name", "units", "expected"),
        [
            ("rainfall_rate", "mm h-1", "rainfall_rate"),
            ("rainfall_rate", "kg m-2 s-1", "rainfall_flux"),
            ("precipitation_flux", "mm/h", "lwe_precipitation_rate"),
            ("", "m s-1", "lwe_precipitation_rate"),
        ],
    )
    def test_standard_name_fits_the_units(
        self, tmp_path: Path, name: str, units: str, expected: str
    ) -> None:
        path = write_output(tmp_path / "out.nc", rate_field(standard_name=name, units=units))
        with netCDF4.Dataset(path) as dataset:
            assert dataset["rain"].standard_name == expected

    def test_a_period_that_only_the_caller_knew_is_stated(self, tmp_path: Path) -> None:
        field = rate_field(units="mm", period_h=3.0)
        with netCDF4.Dataset(write_output(tmp_path / "out.nc", field)) as dataset:
            assert "time: sum (interval: 3 hours" in dataset["rain"].cell_methods
            assert "time_bnds" not in dataset.variables


class TestCoordinates:
    def test_other_calendars_are_written_back(self, tmp_path: Path) -> None:
        time = TimeAxis("t", "days since 2000-01-01", "360_day", np.array([59.5, 60.0]))
        field = replace(
            rate_field(time=time), valid_times=("2000-02-30T12:00:00", "2000-03-01T00:00:00")
        )
        with netCDF4.Dataset(write_output(tmp_path / "out.nc", field)) as dataset:
            assert dataset["t"].calendar == "360_day"
            assert dataset["t"][:].tolist() == [59.5, 60]
            assert dataset.time_coverage_start == "2000-02-30T12:00:00Z"
            assert dataset.time_coverage_resolution == "PT12H"

    def test_extents_are_those_of_the_cells(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(write_output(tmp_path / "out.nc", rate_field())) as dataset:
            extents = [
                getattr(dataset, f"geospatial_{axis}_{end}")
                for axis in ("lat", "lon")
                for end in ("min", "max")
            ]
            np.testing.assert_allclose(extents, [49.8, 50.1, 5.0, 5.4])

    def test_projected_axes_get_the_names_that_cf_wants(self, tmp_path: Path) -> None:
        with netCDF4.Dataset(write_output(tmp_path / "out.nc", flux_field())) as dataset:
            assert dataset["x"].standard_name == "projection_x_coordinate"
            assert dataset["y"].units == "m" and dataset["pr"].grid_mapping == "crs"
            assert dataset["crs"].earth_radius == 6371000
            assert dataset["pr"].cell_methods == "area: mean time: mean"
            assert not any(name.startswith("geospatial") for name in dataset.ncattrs())

    def test_a_rotated_pole_is_not_taken_for_latitude(self, tmp_path: Path) -> None:
        field = rate_field()
        axes = tuple({"units": "degrees", "standard_name": f"grid_{n}"} for n in field.grid.names)
        rotated = replace(field, grid=replace(field.grid, attributes=axes))
        with netCDF4.Dataset(write_output(tmp_path / "out.nc", rotated)) as dataset:
            assert dataset["lat"].standard_name == "grid_lat"
            assert not any(name.startswith("geospatial") for name in dataset.ncattrs())

    def test_a_bare_field_claims_no_projection_and_no_time(self, tmp_path: Path) -> None:
        grid = Grid(np.arange(3.0), np.arange(4.0), ("y", "x"))
        bare = PrecipField(np.ones((1, 3, 4), np.float32), grid, ("none-0",), Source())
        with netCDF4.Dataset(write_output(tmp_path / "out.nc", bare)) as dataset:
            assert "standard_name" not in dataset["x"].ncattrs()
            assert "time" not in dataset.variables
            assert dataset["rainfall_rate"].cell_methods == "area: mean"

    def test_latitudes_and_longitudes_are_degrees_unless_they_say_otherwise(
        self, tmp_path: Path
    ) -> None:
        grid = Grid(50.0 + 0.1 * np.arange(3), 5.0 + 0.1 * np.arange(4))
        field = PrecipField(np.ones((1, 3, 4), np.float32), grid, ("2022-08-09T15:00:00",))
        with netCDF4.Dataset(write_output(tmp_path / "out.nc", field)) as dataset:
            assert dataset["lat"].units == "degrees_north"
            assert dataset["lon"].standard_name == "longitude"
            assert dataset.geospatial_lat_resolution == 0.01
        check_grib(tmp_path / "out.grib2", field, 10, 1, None)
        metres = ({"units": "m"}, {"units": "m"})
        assert replace(grid, attributes=metres).attributes == metres
        assert Grid(grid.y, grid.x, ("y", "x")).attributes == ({}, {})

    def test_times_of_a_calendar_that_no_file_told(self, tmp_path: Path) -> None:
        time = "2022-02-30T15:00:00"
        bare = replace(rate_field(times=1), valid_times=(time,), source=Source())
        with pytest.raises(
            InputError, match=re.escape(f"the valid time '{time}'; expected a date")
        ):
            write_output(tmp_path / "out.nc", bare)


def test_the_same_request_gets_the_same_attributes_but_times_of_writing(tmp_path: Path) -> None:
    found = []
    for name in ("a.nc", "b.nc"):
        with netCDF4.Dataset(write_output(tmp_path / name, rate_field())) as dataset:
            found.append({n: dataset.getncattr(n) for n in dataset.ncattrs()})
    for attributes in found:
        assert attributes.pop("history").endswith("Z wdm-run")
        assert attributes.pop("date_created")
    assert found[0] == found[1]


def test_validity_tells_missing_from_dry(tmp_path: Path) -> None:
    field = rate_field()
    for name, options in (("m.nc", {}), ("s.nc", {**STATISTICS, "keep_members": False})):
        with netCDF4.Dataset(write_output(tmp_path / name, field, **options)) as dataset:
            linked = {v.ancillary_variables for v in dataset.variables.values() if "rain" in v.name
                      and v.name != "rain_validity"}  # fmt: skip
            assert linked == {"rain_validity"}
            validity = dataset["rain_validity"]
            assert validity.flag_meanings == "missing valid"
            assert (validity.dtype, validity.flag_values.tolist()) == (np.int8, [0, 1])
            np.testing.assert_array_equal(validity[1], ~np.isnan(rates(field, 1, 0)))
