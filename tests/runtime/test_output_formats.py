"""Zarr and GRIB2 outputs, read back with the libraries that others would use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from output_files import (
    BOUNDS,
    FACTOR,
    HOURS,
    MEMBERS,
    SPEC,
    VALID_TIMES,
    amount_field,
    every_library,
    flux_field,
    rate_field,
    rates,
    write_one,
    write_output,
)

from wdm_runtime.errors import OutputError
from wdm_runtime.field import PrecipField, TimeAxis
from wdm_runtime.io import read_field
from wdm_runtime.io.compare import compare_outputs
from wdm_runtime.io.writer import EnsembleWriter
from wdm_runtime.select import select_box

libraries = every_library


def messages(path: Path, *keys: str) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Keys and values (y, x) of all messages, NaN where the bitmap says missing."""
    import eccodes

    found = []
    with path.open("rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
            eccodes.codes_set(handle, "missingValue", -1.0)
            values = eccodes.codes_get_values(handle)
            shape = eccodes.codes_get(handle, "Nj"), eccodes.codes_get(handle, "Ni")
            said = {key: eccodes.codes_get(handle, key) for key in keys}
            found.append((said, np.where(values == -1, np.nan, values).reshape(shape)))
            eccodes.codes_release(handle)
    return found


class TestZarr:
    def test_xarray_opens_it_decoded_and_consolidated(self, tmp_path: Path) -> None:
        import xarray

        field = amount_field()
        path = write_output(tmp_path / "out.zarr", field, statistics=SPEC)
        with xarray.open_zarr(path, consolidated=True) as dataset:
            rain = dataset["precip"]
            assert rain.dims == ("time", "realization", "lat", "lon")
            assert rain.dtype == np.float32 and rain.attrs["units"] == "mm"
            assert dataset["time"].values.astype("datetime64[s]").astype(str).tolist() == list(
                VALID_TIMES
            )
            for time in range(2):
                for member in range(MEMBERS):
                    np.testing.assert_array_equal(rain[time, member], rates(field, time, member))
            assert dataset.attrs["wdm_seed"] == 7 and "CF-1.11" in dataset.attrs["Conventions"]
            assert dataset["precip_validity"].dtype == np.int8
            assert rain.encoding["preferred_chunks"]["lat"] == FACTOR * 3
        assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]

    @pytest.mark.parametrize("make", [rate_field, amount_field, flux_field])
    def test_holds_what_netcdf_holds(self, tmp_path: Path, make: Any) -> None:
        paths = [
            write_output(tmp_path / f"out{suffix}", make(), statistics=SPEC)
            for suffix in (".nc", ".zarr")
        ]
        found = compare_outputs(*paths)
        assert found.identical, found.differences
        assert len(found.variables) >= 13

    def test_chunks_are_cut_for_large_frames(self, tmp_path: Path) -> None:
        import zarr

        path = write_output(tmp_path / "out.zarr", rate_field(60, 3, times=1), statistics=SPEC)
        group = zarr.open_group(str(path), mode="r")
        assert group["rain"].chunks == (1, 1, 300, 30)
        assert group["rain_quantile"].chunks == (1, 1, 120, 30)
        np.testing.assert_array_equal(group["rain"][0, 1, 7:], rates(rate_field(60, 3), 0, 1)[7:])

    def test_numbers_that_json_lacks_are_left_out(self, tmp_path: Path) -> None:
        field = rate_field(times=1)
        latitude, longitude = field.grid.attributes
        odd = latitude | {"spread": np.array([1.0, np.nan]), "datum": np.float32(np.inf)}
        field = replace(field, grid=replace(field.grid, attributes=(odd, longitude)))
        with EnsembleWriter(
            tmp_path / "out.zarr", field, FACTOR, 1, {"a": np.nan, "b": 1.5}
        ) as writer:
            writer.write(0, 0, rates(field, 0, 0))

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        found = json.loads((tmp_path / "out.zarr/.zmetadata").read_text(), parse_constant=refuse)
        assert found["metadata"][".zattrs"]["b"] == 1.5
        assert {"a", "spread", "datum"}.isdisjoint(
            found["metadata"][".zattrs"] | found["metadata"]["lat/.zattrs"]
        )

    def test_only_a_zarr_store_is_ever_replaced(self, tmp_path: Path) -> None:
        precious = tmp_path / "out.zarr"
        precious.mkdir()
        (precious / "thesis.txt").write_text("years of work")
        with pytest.raises(OutputError, match="not a Zarr store"):
            write_output(precious, rate_field(), overwrite=True)
        assert (precious / "thesis.txt").read_text() == "years of work"

    @pytest.mark.parametrize("linked", [False, True])
    def test_a_store_that_holds_the_input_is_never_replaced(
        self, tmp_path: Path, linked: bool
    ) -> None:
        store = write_output(tmp_path / "out.zarr", rate_field())
        given = store / "in.nc"
        given.write_text("years of work")
        if linked:
            (tmp_path / "link.nc").symlink_to(given)
        read = rate_field(path=str(tmp_path / "link.nc" if linked else given))
        with pytest.raises(OutputError, match=r"holds '.*', which this run reads or writes too"):
            write_output(store, read, overwrite=True)
        assert given.read_text() == "years of work"

    def test_replaces_an_older_store_whole(self, tmp_path: Path) -> None:
        import zarr

        path = write_output(tmp_path / "out.zarr", rate_field(variable="old"))
        with pytest.raises(OutputError, match="exists already"):
            write_output(path, rate_field())
        write_output(path, rate_field(), overwrite=True)
        assert "old" not in zarr.open_group(str(path), mode="r")
        assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]


class TestGrib:
    def test_rates_are_ensemble_messages(self, tmp_path: Path) -> None:
        field = rate_field()
        found = messages(
            write_output(tmp_path / "out.grib2", field),
            *("shortName", "units", "validityDate", "validityTime", "perturbationNumber"),
            *("numberOfForecastsInEnsemble", "gridType", "productDefinitionTemplateNumber"),
        )
        assert len(found) == 2 * MEMBERS
        for index, (said, values) in enumerate(found):
            time, member = divmod(index, MEMBERS)
            assert tuple(said.values()) == (
                "tprate", "kg m**-2 s**-1", 20220809, 1500 + 100 * time, member, MEMBERS,
                "regular_ll", 1,
            )  # fmt: skip
            expected = rates(field, time, member)
            np.testing.assert_allclose(values * 3600, expected, rtol=0, atol=1e-4)
            np.testing.assert_array_equal(values == 0, expected == 0)  # dry stays dry

    def test_resolution_holds_for_heavy_rain(self, tmp_path: Path) -> None:
        field = rate_field(times=1)
        rate = np.linspace(0, 800, FACTOR * FACTOR * 12).reshape(30, 40)
        with EnsembleWriter(tmp_path / "out.grib2", field, FACTOR, 1, {}) as writer:
            writer.write(0, 0, rate)
        ((_, values),) = messages(tmp_path / "out.grib2")
        assert abs(values * 3600 - rate).max() < 1e-4

    @pytest.mark.parametrize("late", [False, True])
    def test_amounts_carry_their_period(self, tmp_path: Path, late: bool) -> None:
        """Also where the time coordinate says when the period begins."""
        field = amount_field()
        if late:
            time = TimeAxis("time", HOURS, "standard", np.array([15.0, 16.0]), BOUNDS + 1, "b")
            field = replace(field, source=replace(field.source, time=time))
        found = messages(
            write_output(tmp_path / "out.grib2", field),
            *("shortName", "units", "stepRange", "dataTime", "validityTime", "lengthOfTimeRange"),
        )
        start = 1500 if late else 1400
        assert tuple(found[0][0].values()) == ("tp", "kg m**-2", "0-1", start, start + 100, 3600)
        np.testing.assert_allclose(found[3][1], rates(field, 1, 1), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("amounts", [False, True])
    def test_mean_rates_carry_their_period(self, tmp_path: Path, amounts: bool) -> None:
        """Also those that --units makes of amounts."""
        time = TimeAxis("time", HOURS, "standard", np.array([14.0, 15.0]), BOUNDS, "b")
        field = amount_field() if amounts else rate_field(time=time, cell_methods="time: mean")
        path = tmp_path / "out.grib2"
        with EnsembleWriter(path, field, FACTOR, 1, {}, units="mm h-1") as writer:
            for index in range(2):
                writer.write(index, 0, rates(field, index, 0))
        found = messages(
            path,
            *("productDefinitionTemplateNumber", "typeOfStatisticalProcessing", "units"),
            *("dataTime", "validityTime", "lengthOfTimeRange"),
        )
        assert tuple(found[0][0].values()) == (11, 0, "kg m**-2 s**-1", 1400, 1500, 3600)
        np.testing.assert_allclose(3600 * found[1][1], rates(field, 1, 0), rtol=0, atol=1e-4)
        again = read_field(path)
        assert (again.source.period_h, again.source.cell_methods) == (None, "time: mean")
        assert again.valid_times == VALID_TIMES

    def test_rates_of_an_instant_have_no_period(self, tmp_path: Path) -> None:
        time = TimeAxis("time", HOURS, "standard", np.array([15.0, 16.0]), BOUNDS, "b")
        for method in ("time: point", ""):
            field = rate_field(time=time, cell_methods=method)
            path = write_output(tmp_path / "out.grib2", field, overwrite=True)
            (first, *_) = messages(path, "productDefinitionTemplateNumber", "validityTime")
            assert tuple(first[0].values()) == (1, 1500)

    @pytest.mark.parametrize(
        ("calendar", "units", "hour"),
        [
            ("julian", "seconds since 1980-01-06 00:00:00 UTC", 1344092400 / 3600),  # IMERG's
            ("Gregorian", HOURS, 15),
        ],
    )
    def test_dates_are_taken_as_they_are_written(
        self, tmp_path: Path, calendar: str, units: str, hour: float
    ) -> None:
        scale = 3600 if units.startswith("seconds") else 1
        time = TimeAxis("time", units, calendar, scale * np.array([hour, hour + 1]))
        path = write_output(tmp_path / "out.grib2", rate_field(time=time))
        found = messages(path, "validityDate", "validityTime")
        assert [tuple(said.values()) for said, _ in found[::MEMBERS]] == [
            (20220809, 1500),
            (20220809, 1600),
        ]

    @pytest.mark.parametrize("north_first", [True, False])
    def test_a_row_at_a_pole_is_refused_and_may_be_cut_off(
        self, tmp_path: Path, north_first: bool
    ) -> None:
        y = 90 - 0.1 * np.arange(7)
        field = rate_field(7, 4)
        field = replace(field, grid=replace(field.grid, y=y if north_first else y[::-1]))
        with pytest.raises(OutputError, match=r"up to 90\.045.*--bbox, up to 89\.8 .*\(\.nc\)"):
            write_output(tmp_path / "out.grib2", field)
        assert not list(tmp_path.iterdir())
        cut = select_box(field, "5,89.3,6,89.8")
        assert read_field(write_one(tmp_path / "out.grib2", cut)).grid.y.max() < 90

    @pytest.mark.parametrize("flip", [False, True])
    def test_cells_are_where_they_were(self, tmp_path: Path, flip: bool) -> None:
        import eccodes

        field = rate_field(times=1)
        if flip:
            field = replace(
                field, grid=replace(field.grid, y=field.grid.y[::-1], x=field.grid.x - 98)
            )
        path = write_output(tmp_path / "out.grib2", field)
        with path.open("rb") as file:
            handle = eccodes.codes_grib_new_from_file(file)
            latitudes, longitudes = (
                eccodes.codes_get_array(handle, key).reshape(30, 40)
                for key in ("latitudes", "longitudes")
            )
            eccodes.codes_release(handle)
        fine = field.grid.refined(FACTOR)
        np.testing.assert_allclose(latitudes, fine.y[:, None] + 0 * latitudes, atol=1e-6)
        np.testing.assert_allclose(longitudes, fine.x % 360 + 0 * longitudes, atol=1e-6)

    @pytest.mark.parametrize(
        ("field", "options", "message"),
        [
            (rate_field(), {"statistics": SPEC}, "got statistics"),
            (flux_field(), {}, "a projected grid"),
            (replace(rate_field(time=None), valid_times=("none-0", "none-1")), {}, "without valid"),
            (
                rate_field(time=TimeAxis("t", HOURS, "noleap", np.array([15.0, 16.0]))),
                {},
                "calendar 'noleap'",
            ),
            (  # 29 February 2100, which no other calendar has
                rate_field(time=TimeAxis("t", "days since 2099-01-01", "julian", np.r_[424, 425])),
                {},
                "calendar 'julian'",
            ),
        ],
    )
    def test_what_it_cannot_hold(
        self, tmp_path: Path, field: PrecipField, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(OutputError, match=rf"{message}.*NetCDF \(.nc\) or Zarr"):
            write_output(tmp_path / "out.grib2", field, **options)
        with pytest.raises(OutputError, match="255 members"):
            EnsembleWriter(tmp_path / "out.grib2", rate_field(), FACTOR, 255, {})
        assert not list(tmp_path.iterdir())
