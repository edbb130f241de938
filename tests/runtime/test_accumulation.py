"""Amounts: mean rates over the period that their file, or the caller, states."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from netcdf_files import HOURS, RAIN, add, coordinates, write_all

from wdm_runtime.errors import InputError
from wdm_runtime.io import read_field
from wdm_runtime.io.units import amount_factor, parse_period, to_mm_h

AMOUNTS_IN_MM = {
    **{"mm": 1.0, "cm": 10.0, "m": 1e3, "inch": 25.4, "in": 25.4, "millimetres": 1.0},
    **{"kg m-2": 1.0, "kg/m^2": 1.0, "kg m**-2": 1.0, "kg/m2": 1.0, "m-2 kg": 1.0},
}


def amounts(path: Path, bounds: Any = None, hours: Any = (0, 1), **attributes: Any) -> Path:
    attributes = {"units": "mm", **attributes}
    with netCDF4.Dataset(path, "w") as dataset:
        coordinates(dataset, hours=hours)
        if bounds is not None:
            dataset["time"].bounds = "time_bounds"
            dataset.createDimension("nv", 2)
            add(dataset, "time_bounds", bounds, ("time", "nv"), "f8")
        add(dataset, "tp", RAIN[: len(hours)], **attributes)
    return path


class TestUnits:
    @pytest.mark.parametrize(("units", "factor"), AMOUNTS_IN_MM.items())
    def test_amounts(self, tmp_path: Path, units: str, factor: float) -> None:
        assert amount_factor(units) == factor
        assert to_mm_h(units, 2.0) == factor / 2
        found = read_field(amounts(tmp_path / "in.nc", units=units), accumulation_h=2)
        np.testing.assert_allclose(found.load(), RAIN * factor / 2, rtol=1e-6)
        assert found.source.units == units and found.source.period_h == 2

    @pytest.mark.parametrize(
        ("units", "period_h"),
        [
            *(("K", None), ("K", 1.0), ("", None), ("mm h-1", 1.0), ("mm2", 1.0), ("kg m-3", 1.0)),
            *(("mm", period_h) for period_h in (None, 0.0, -1.0, np.inf, np.nan)),
        ],
    )
    def test_no_factor(self, units: str, period_h: float | None) -> None:
        with pytest.raises(InputError, match=f"units '{units}' and .*--accumulation"):
            to_mm_h(units, period_h)

    def test_a_rate_needs_no_period(self) -> None:
        assert to_mm_h("kg m-2 s-1", None) == 3600

    @pytest.mark.parametrize(
        ("text", "hours"),
        [
            ("1h", 1),
            ("30min", 0.5),
            ("1d", 24),
            ("hour", 1),
            ("90 s", 1 / 40),
            (" 0.5 Hours ", 0.5),
        ],
    )
    def test_periods(self, text: str, hours: float) -> None:
        assert parse_period(text) == pytest.approx(hours, rel=1e-12)

    @pytest.mark.parametrize(
        "text", ["", "1", "0h", "-1h", "1 month", "1mm", "h1", "nan h", "1h30", "9" * 400 + "h"]
    )
    def test_no_period(self, text: str) -> None:
        with pytest.raises(InputError, match=f"period '{text}'.*--accumulation"):
            parse_period(text)


class TestPeriod:
    def test_of_bounds(self, tmp_path: Path) -> None:
        bounds = np.array([[-3.0, 0], [-2, 1]])
        found = read_field(amounts(tmp_path / "in.nc", bounds))
        np.testing.assert_allclose(found.load(), RAIN / 3, rtol=1e-6)
        time = found.source.time
        assert found.source.period_h == 3 and time is not None and time.bounds is not None
        assert time.bounds_name == "time_bounds" and time.units == HOURS
        np.testing.assert_array_equal(time.bounds, bounds)
        np.testing.assert_array_equal(found.at([1]).source.time.bounds, bounds[1:])

    def test_of_bounds_with_other_units_and_rounding(self, tmp_path: Path) -> None:
        path = amounts(tmp_path / "in.nc", np.array([[0, 1], [1, 2]]) / 24)
        with netCDF4.Dataset(path, "a") as dataset:
            dataset["time_bounds"].units = "days since 2022-08-09 14:00:00"
        found = read_field(path)
        assert found.source.period_h == pytest.approx(1, abs=1e-9)
        assert found.source.time is not None
        np.testing.assert_allclose(found.source.time.bounds, [[-1, 0], [0, 1]], atol=1e-9)

    @pytest.mark.parametrize(
        "cell_methods",
        [
            "time: sum (interval: 6 hours comment: accumulation period)",
            "area: mean time: sum (interval: 6.0 hours comment: accumulation period)",
        ],
    )
    def test_of_cell_methods(self, tmp_path: Path, cell_methods: str) -> None:
        found = read_field(amounts(tmp_path / "in.nc", cell_methods=cell_methods))
        np.testing.assert_allclose(found.load(), RAIN / 6, rtol=1e-6)
        assert found.source.cell_methods == cell_methods

    @pytest.mark.parametrize("period_h", [1 / 12, 1.0, 24.0])
    def test_of_our_own_output(self, tmp_path: Path, period_h: float) -> None:
        """Also where the input told of what its sums are made."""
        path = amounts(tmp_path / "in.nc", cell_methods="time: sum (interval: 5 min)")
        coarse = read_field(path, accumulation_h=period_h)
        write_all(tmp_path / "out.nc", coarse)
        with netCDF4.Dataset(tmp_path / "out.nc") as dataset:
            cell_methods = dataset["tp"].cell_methods
        amounts(tmp_path / "again.nc", cell_methods=cell_methods)
        assert read_field(tmp_path / "again.nc").source.period_h == pytest.approx(period_h, 1e-5)

    @pytest.mark.parametrize(
        "cell_methods",
        [
            *("time: sum", "time: mean (interval: 1 hour)", "area: sum (interval: 1 m)"),
            # What was summed is hourly or monthly, whatever the sum's period.
            *("time: sum (interval: 1 hour)", "time: sum (interval: 1 month comment: x)"),
            "time: sum (interval: 0 hours comment: accumulation period)",
        ],
    )
    def test_unknown(self, tmp_path: Path, cell_methods: str) -> None:
        path = amounts(tmp_path / "in.nc", cell_methods=cell_methods)
        with pytest.raises(InputError, match=r"'tp' has units 'mm', .* --accumulation 1h"):
            read_field(path)
        assert read_field(path, accumulation_h=1).source.period_h == 1

    def test_bounds_without_width_state_none(self, tmp_path: Path) -> None:
        path = amounts(tmp_path / "in.nc", [[0, 0], [1, 1]])
        with pytest.raises(InputError, match="unknown period"):
            read_field(path)
        assert read_field(path, accumulation_h=1).source.period_h == 1

    @pytest.mark.parametrize("stated", [None, 1.0, 2.0])
    def test_sums_since_the_start_of_a_forecast(self, tmp_path: Path, stated: float | None) -> None:
        path = amounts(tmp_path / "in.nc", [[-1, 0], [-1, 1]])
        with pytest.raises(InputError, match=r"2022-08-09T14:00:00.*differences"):
            read_field(path, accumulation_h=stated)

    def test_one_time_is_no_sum_since_a_start(self, tmp_path: Path) -> None:
        path = amounts(tmp_path / "in.nc", [[-6, 0]], hours=[0])
        assert read_field(path).source.period_h == 6

    def test_periods_that_vary(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"'tp' has amounts over 1 to 2 h; expected the same"):
            read_field(amounts(tmp_path / "in.nc", [[-1, 0], [0, 2]], hours=[0, 2]))

    def test_contradiction(self, tmp_path: Path) -> None:
        path = amounts(tmp_path / "in.nc", [[-1, 0], [0, 1]])
        assert read_field(path, accumulation_h=1).source.period_h == 1
        with pytest.raises(InputError, match=r"summed over 1 h .*got an accumulation of 3 h"):
            read_field(path, accumulation_h=3)

    def test_bounds_that_end_a_second_before_the_next_begin(self, tmp_path: Path) -> None:
        path = amounts(tmp_path / "in.nc", np.array([[0, 3599], [3600, 7199]]) / 3600)
        found = read_field(path, accumulation_h=1)
        assert found.source.period_h == 1
        np.testing.assert_array_equal(found.load(), RAIN)

    @pytest.mark.parametrize("stated", [0.0, -1.0, np.nan, np.inf])
    def test_stated_nonsense(self, tmp_path: Path, stated: float) -> None:
        with pytest.raises(InputError, match=re.escape(f"accumulation of {stated:g} h")):
            read_field(amounts(tmp_path / "in.nc"), accumulation_h=stated)


class TestChoice:
    def both(self, path: Path) -> Path:
        with netCDF4.Dataset(amounts(path), "a") as dataset:
            add(dataset, "tprate", RAIN + 1, units="mm h-1")
        return path

    def test_a_stated_period_means_the_amount(self, tmp_path: Path) -> None:
        path = self.both(tmp_path / "in.nc")
        assert read_field(path).source.variable == "tprate"
        assert read_field(path, accumulation_h=1).source.variable == "tp"

    def test_a_stated_period_for_a_rate(self, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"'tprate' has units 'mm h-1', a rate.*--accumulation"
        ):
            read_field(self.both(tmp_path / "in.nc"), "tprate", accumulation_h=1)

    def test_codes_are_of_the_amounts(self, tmp_path: Path) -> None:
        path = amounts(tmp_path / "in.nc")
        with netCDF4.Dataset(path, "a") as dataset:
            dataset["tp"][0, 0, :4] = -1, -3, 9999, 99999
        assert np.argwhere(np.isnan(read_field(path, accumulation_h=24).load())).tolist() == [
            [0, 0, column] for column in range(4)
        ]
