"""A byte of an input changed, or its end lost, at any place: a field, or an error that says so."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from bad_files import grib, netcdf, odim
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wdm_runtime.errors import WdmError
from wdm_runtime.io import read_field

FUZZED = {
    "NetCDF-3": lambda folder: netcdf(folder, form="NETCDF3_CLASSIC"),
    "NetCDF-4": netcdf,
    "GRIB2": grib,
    "ODIM_H5": odim,
}


@pytest.mark.parametrize("form", FUZZED)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(0, 255))
@example(place=91.5 / 668, change=252)  # of NetCDF-3: its library looks for attributes for ever
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
def test_a_damaged_byte_or_a_lost_end_gives_a_field_or_a_typed_error(form, place, change):
    with TemporaryDirectory() as folder:
        path = FUZZED[form](Path(folder))
        content = bytearray(path.read_bytes())
        at = int(place * len(content))
        content[at] ^= change
        path.write_bytes(content if change else content[:at])
        try:
            found = read_field(path)
            assert found.load().shape == found.rate_mm_h.shape
        except WdmError as error:
            assert str(path) in str(error)
