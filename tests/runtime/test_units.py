"""Units of rates, alone and on their way through files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from netcdf_files import FEW_FILES, RAIN, field, rain_file

from wdm_runtime.errors import InputError
from wdm_runtime.io.netcdf import read_netcdf
from wdm_runtime.io.units import rate_factor
from wdm_runtime.io.writer import EnsembleWriter

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


class TestUnits:
    @pytest.mark.parametrize(("units", "factor"), UNITS_IN_MM_H.items())
    def test_rates_are_converted(self, tmp_path: Path, units: str, factor: float) -> None:
        path = rain_file(tmp_path / "in.nc", values=RAIN / factor, dtype="f8", units=units)
        found = read_netcdf(path)
        np.testing.assert_allclose(found.load(), RAIN, rtol=1e-6)
        assert found.load().dtype == np.float32
        assert found.source.units == units

    @pytest.mark.parametrize("units", NOT_RATES)
    def test_anything_else_is_no_rate(self, units: str) -> None:
        assert rate_factor(units) is None

    def test_an_amount_over_an_unknown_period_is_refused(self, tmp_path: Path) -> None:
        path = rain_file(tmp_path / "rain.nc", "tp", units="m", standard_name="")
        with pytest.raises(InputError) as caught:
            read_netcdf(path)
        assert str(caught.value) == (
            f"{path}: variable 'tp' has units 'm', an amount over an unknown period; expected a "
            "rate convertible to 'mm h-1', or time bounds that state the period. State it with "
            "--accumulation, like --accumulation 1h, or choose another with --variable."
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
        assert found.source.units == units
        np.testing.assert_allclose(found.load(), rate, rtol=1e-6, atol=1e-30)
