"""What must not matter to a field that is read: order, packing, units, codes, where rows start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import numpy.typing as npt
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from netcdf_files import FEW_FILES, LAT, LON, RAIN, RATE, coordinates

from wdm_runtime.io import read_field

SHAPE = RAIN.shape
MASKS = arrays(bool, SHAPE)
ORDERS = st.permutations(("time", "lat", "lon"))


def stored(
    path: Path,
    values: npt.NDArray[Any],
    order: list[str] | tuple[str, ...] = ("time", "lat", "lon"),
    lat: npt.NDArray[Any] = LAT,
    lon: npt.NDArray[Any] = LON,
    **attributes: Any,
) -> Path:
    """Numbers as they are to be in the file, packed or not."""
    values = values.transpose([("time", "lat", "lon").index(d) for d in order])
    with netCDF4.Dataset(path, "w") as dataset:
        coordinates(dataset, lat, lon)
        fill = attributes.pop("_FillValue", None)
        dimensions, dtype = tuple(order), values.dtype.str[1:]
        rain = dataset.createVariable("rain", dtype, dimensions, fill_value=fill)
        rain.setncatts({**RATE, **attributes})
        rain.set_auto_maskandscale(False)
        rain[:] = values
    return path


@FEW_FILES
@given(ORDERS, arrays(np.float32, SHAPE, elements=st.floats(0, 500, width=32)), MASKS)
def test_order_of_dimensions(tmp_path: Path, order: Any, rain: Any, mask: Any) -> None:
    rain = np.where(mask & (np.arange(rain.size).reshape(SHAPE) > 0), np.float32(np.nan), rain)
    np.testing.assert_array_equal(read_field(stored(tmp_path / "in.nc", rain, order)).load(), rain)


@FEW_FILES
@given(
    st.sampled_from(["i1", "u1", "i2", "u2", "i4"]),
    st.data(),
    st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    st.sampled_from([np.float32, np.float64]),
)
def test_packing(tmp_path: Path, dtype: str, data: Any, scale: float, kind: Any) -> None:
    highest = min(np.iinfo(dtype).max - 1, 30_000)
    packed = data.draw(arrays(dtype, SHAPE, elements=st.integers(0, highest)))
    mask = data.draw(MASKS)
    mask[0, 0, 0] = False
    code = np.iinfo(dtype).max
    path = stored(
        *(tmp_path / "in.nc", np.where(mask, code, packed).astype(dtype)),
        **{"_FillValue": code, "scale_factor": kind(scale), "add_offset": kind(0.25)},
    )
    expected = np.where(mask, np.nan, packed * float(kind(scale)) + 0.25)
    codes = np.isin(expected, [9999.0, 9999.9]) | (expected >= 9999)
    assume(not (codes | mask).all())  # nothing but missing values is refused: see test_bad_files
    np.testing.assert_allclose(
        read_field(path).load(), np.where(codes, np.nan, expected), rtol=1e-6
    )


@FEW_FILES
@given(arrays(np.uint8, SHAPE, elements=st.integers(0, 254)), MASKS)
def test_unsigned_bytes_of_classic_files(tmp_path: Path, rain: Any, mask: Any) -> None:
    mask[0, 0, 0] = False
    signed = np.where(mask, 255, rain).astype(np.uint8).view(np.int8)
    path = stored(tmp_path / "in.nc", signed, _FillValue=np.int8(-1), _Unsigned="true")
    expected = np.where(mask, np.nan, rain)
    np.testing.assert_array_equal(read_field(path).load(), expected)


@FEW_FILES
@given(arrays(np.float64, SHAPE, elements=st.floats(0, 300)))
def test_a_flux_is_the_same_rain(tmp_path: Path, rain: Any) -> None:
    rate = read_field(stored(tmp_path / "rate.nc", rain)).load()
    flux = read_field(stored(tmp_path / "flux.nc", rain / 3600, units="kg m-2 s-1")).load()
    depth = stored(tmp_path / "depth.nc", rain * 6, units="kg m-2")
    np.testing.assert_allclose(flux, rate, rtol=2e-7, atol=1e-38)
    np.testing.assert_allclose(read_field(depth, None, 6.0).load(), rate, rtol=2e-7, atol=1e-38)


@FEW_FILES
@given(
    st.integers(0, 4), st.sampled_from([180.0, 360.0]), st.booleans(), st.sampled_from([0.1, 0.25])
)
def test_longitudes_go_on_past_the_dateline(
    tmp_path: Path, before: int, turn: float, eastward: bool, step: float
) -> None:
    even = turn + (np.arange(5) - before + 0.5) * step
    jumping = np.where(even > turn, even - 360, even)
    forwards = slice(None) if eastward else slice(None, None, -1)
    found = read_field(stored(tmp_path / "in.nc", RAIN, lon=jumping[forwards]))
    x = found.grid.x
    np.testing.assert_allclose(np.diff(x), step if eastward else -step, atol=1e-9)
    assert x[0] == jumping[forwards][0]  # the file's own convention, where it starts
    np.testing.assert_allclose((x - jumping[forwards]) % 360 % 359.999, 0, atol=2e-3)
    np.testing.assert_array_equal(found.load(), RAIN)


@FEW_FILES
@given(arrays(np.float32, SHAPE, elements=st.floats(0, 500, width=32)), MASKS)
def test_rows_from_the_north_or_the_south(tmp_path: Path, rain: Any, mask: Any) -> None:
    mask[0, 0, 0] = False
    rain = np.where(mask, np.float32(np.nan), rain)
    south = read_field(stored(tmp_path / "south.nc", rain))
    north = read_field(stored(tmp_path / "north.nc", rain[:, ::-1], lat=LAT[::-1]))
    assert north.grid.north_first and not south.grid.north_first
    np.testing.assert_array_equal(north.grid.y[::-1], south.grid.y)
    np.testing.assert_array_equal(north.load()[:, ::-1], south.load())


@FEW_FILES
@given(
    MASKS,
    st.sampled_from([-1.0, -3.0, -99.0, -999.0, -9999.0, -9999.9, 9999.0, 9999.9, 99999.0, 1e20]),
    st.booleans(),
    st.sampled_from(["mm h-1", "mm day-1", "kg m-2 s-1", "m s-1"]),
)
def test_missing_is_never_dry(
    tmp_path: Path, mask: Any, code: float, declared: bool, units: str
) -> None:
    mask[0, 0, 0] = False
    values = np.where(mask, code, np.where(RAIN > 2, 0, 1e-6)).astype(np.float32)
    attributes = {"missing_value": np.float32(code)} if declared else {}
    found = read_field(stored(tmp_path / "in.nc", values, units=units, **attributes))
    np.testing.assert_array_equal(np.isnan(found.load()), mask)


@FEW_FILES
@given(st.sampled_from([7, 7.0, np.int16(7), "7"]), st.booleans())
def test_missing_value_of_another_type_beside_fill_value(
    tmp_path: Path, code: Any, fill: bool
) -> None:
    packed = np.arange(40, dtype=np.int16).reshape(SHAPE)
    both = {"missing_value": code, "scale_factor": 0.5} | ({"_FillValue": 9} if fill else {})
    found = read_field(stored(tmp_path / "in.nc", packed, **both)).load()
    missing = [7, 9] if fill else [7]
    np.testing.assert_array_equal(np.isnan(found), np.isin(packed, missing))
