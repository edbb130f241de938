"""GRIB2 messages written by ecCodes: products, units, times, grids, and what is refused."""

import gzip
import subprocess
import sys

import numpy as np
import pytest

eccodes = pytest.importorskip("eccodes")

from grib2_messages import AMOUNT, FLUX, MRMS_HOUR, MRMS_RATE, RAIN, RATE, message, summed, write  # noqa: E402

from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.io import read_field  # noqa: E402
from wdm_runtime.io.grib2 import read_grib2  # noqa: E402

BEYOND = {"latitudeOfLastGridPointInDegrees": -130.0}


def test_mrms_rates_keep_codes_missing(tmp_path):
    values = RAIN.copy()
    values[0, :3] = -1, -3, 9999
    field = read_grib2(write(tmp_path / "a.grib2", message(values)))
    rates = field.load()[0]
    assert np.isnan(rates[0, :3]).all() and np.isfinite(rates).sum() == 17
    np.testing.assert_allclose(rates.ravel()[3:], RAIN.ravel()[3:], atol=1e-3)
    assert (field.source.variable, field.source.units, field.source.period_h) == (
        "PrecipRate",
        "mm h-1",
        None,
    )
    assert field.valid_times == ("2022-08-09T15:00:00",) and field.source.time.bounds is None


def test_mrms_hourly_amounts_stay_amounts(tmp_path):
    field = read_grib2(write(tmp_path / "a.grib2", message(product=MRMS_HOUR)))
    np.testing.assert_allclose(field.load()[0], RAIN, atol=1e-3)  # mm over 1 h
    assert (field.source.units, field.source.period_h) == ("mm", 1.0)
    assert np.diff(field.source.time.bounds).item() == 3600
    assert field.source.time.bounds[0, 1] == field.source.time.values[0]
    assert field.source.time.units == "seconds since 1970-01-01 00:00:00"


@pytest.mark.parametrize("product", [FLUX, RATE])
def test_wmo_rates_are_fluxes(tmp_path, product):
    field = read_grib2(write(tmp_path / "a.grib2", message(RAIN / 3600, product)))
    np.testing.assert_allclose(field.load()[0], RAIN, rtol=1e-4, atol=1e-4)
    assert (field.source.units, field.source.period_h) == ("kg m-2 s-1", None)


@pytest.mark.parametrize("product", [FLUX, AMOUNT])
@pytest.mark.parametrize(("length", "unit", "hours"), [(6, 1, 6), (30, 0, 0.5), (1, 11, 6)])
def test_wmo_sums_are_divided_by_the_messages_own_period(tmp_path, product, length, unit, hours):
    data = message(RAIN, product, **summed(length, unit=unit))
    field = read_grib2(write(tmp_path / "a.grib2", data))
    np.testing.assert_allclose(field.load()[0], RAIN / hours, rtol=1e-4)
    assert (field.source.units, field.source.period_h) == ("kg m-2", hours)
    assert np.diff(field.source.time.bounds).item() == hours * 3600
    assert field.valid_times == ("2022-08-09T15:00:00",)  # the end of the period


def test_mean_rates_are_rates(tmp_path):
    data = message(RAIN / 3600, FLUX, **summed(3, statistic=0))
    field = read_grib2(write(tmp_path / "a.grib2", data))
    np.testing.assert_allclose(field.load()[0], RAIN, rtol=1e-4, atol=1e-4)
    assert field.source.period_h is None and field.source.cell_methods == "time: mean"
    assert field.source.variable == "mean_total_precipitation_rate"
    np.testing.assert_array_equal(  # the range the mean is of
        field.source.time.bounds, field.source.time.values[:, None] - [[3 * 3600, 0]]
    )


@pytest.mark.parametrize(
    ("statistic", "scale", "units", "period_h"),
    [(1, 1e-3, "m", 6), (0, 1e-3 / 3600, "m s-1", None)],
)
def test_ecmwfs_own_parameter_is_in_metres(tmp_path, statistic, scale, units, period_h):
    tp = message(RAIN * scale, (0, 1, 193), centre=98, **summed(6, statistic=statistic))
    field = read_grib2(write(tmp_path / "a.grib2", tp))
    np.testing.assert_allclose(field.load()[0], RAIN / (period_h or 1), rtol=1e-4, atol=1e-3)
    assert (field.source.units, field.source.period_h) == (units, period_h)


def gfs(path):
    """A rate, its mean and an amount of one time, as GFS has them."""
    rate, mean = message(RAIN / 3600, RATE), message(RAIN / 1800, RATE, **summed(6, statistic=0))
    return write(path, rate, mean, message(3 * RAIN, AMOUNT, centre=7, **summed(1)))


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("precipitation_rate", 1),
        ("mean_precipitation_rate", 2),
        ("total_precipitation", 3),
        ("tp", 3),
    ],
)
def test_one_of_several_products_is_chosen_by_its_name(tmp_path, name, factor):
    field = read_field(gfs(tmp_path / "a.grib2"), name)
    np.testing.assert_allclose(field.load()[0], factor * RAIN, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [None, "prate", "snow"])
def test_the_products_to_choose_from_are_listed(tmp_path, name):
    listed = (
        r"holds 'mean_precipitation_rate' \(prate\), 'precipitation_rate' \(prate\), "
        rf"'total_precipitation' \(tp\); expected {'.snow. as' if name == 'snow' else 'one'}"
        r".*--variable"
    )
    with pytest.raises(InputError, match=listed):
        read_field(gfs(tmp_path / "a.grib2"), name)


def test_a_product_that_was_not_chosen_may_be_anything(tmp_path):
    unread = message(RAIN, AMOUNT, **summed(0)), message(RAIN / 3600, RATE, iScansNegatively=1)
    path = write(tmp_path / "a.grib2", *unread, message(RAIN / 3600, FLUX))
    np.testing.assert_allclose(read_grib2(path, "tprate").load()[0], RAIN, rtol=1e-4, atol=1e-4)


def test_a_bitmap_is_missing(tmp_path):
    values = RAIN / 3600
    values[2, 2] = 1e6
    data = message(values, FLUX, bitmapPresent=1, missingValue=1e6)
    rates = read_grib2(write(tmp_path / "a.grib2", data)).load()[0]
    assert np.isnan(rates[2, 2]) and np.isnan(rates).sum() == 1


def test_several_messages_become_times_in_order_and_others_are_passed_over(tmp_path):
    temperature = message(RAIN + 273, (0, 0, 0))
    path = write(
        tmp_path / "a.grib2",
        message(RAIN + 1, hour=16),
        b"\r\r\nSAUS70 KWBC 091500\r\r\n",  # a bulletin's header
        temperature,
        message(RAIN, hour=15, minute=2, second=30),
    )
    field = read_grib2(path)
    assert field.valid_times == ("2022-08-09T15:02:30", "2022-08-09T16:00:00")
    np.testing.assert_allclose(field.frame(0), RAIN, atol=1e-3)
    np.testing.assert_allclose(field.frame(1), RAIN + 1, atol=1e-3)
    assert field.rate_mm_h.shape == (2, 4, 5)


def test_a_forecast_is_valid_after_its_reference_time(tmp_path):
    path = write(tmp_path / "a.grib2", message(RAIN / 3600, FLUX, forecastTime=12))
    assert read_grib2(path).valid_times == ("2022-08-10T03:00:00",)


def test_longitudes_stay_as_they_are_and_go_on_across_greenwich(tmp_path):
    grid = read_grib2(write(tmp_path / "a.grib2", message())).grid
    np.testing.assert_allclose(grid.x, 355 + 0.1 * np.arange(5))
    np.testing.assert_allclose(grid.y, 50 - 0.1 * np.arange(4))
    over = {"longitudeOfFirstGridPointInDegrees": 359.8, "longitudeOfLastGridPointInDegrees": 0.2}
    grid = read_grib2(write(tmp_path / "b.grib2", message(**over))).grid
    np.testing.assert_allclose(grid.x, 359.8 + 0.1 * np.arange(5))


def test_rows_from_the_south_and_steps_that_are_rounded(tmp_path):
    south = {"latitudeOfFirstGridPointInDegrees": 40.0, "latitudeOfLastGridPointInDegrees": 40.3}
    field = read_grib2(write(tmp_path / "a.grib2", message(jScansPositively=1, **south)))
    np.testing.assert_allclose(field.grid.y, 40 + 0.1 * np.arange(4))
    assert not field.grid.north_first
    np.testing.assert_allclose(field.load()[0], RAIN, atol=1e-3)
    third = {"iDirectionIncrementInDegrees": 0.33, "longitudeOfLastGridPointInDegrees": 356.3333}
    grid = read_grib2(write(tmp_path / "b.grib2", message(**third))).grid
    assert grid.x[-1] == pytest.approx(356.3333, abs=1e-5)


def test_gzip_is_told_by_content(tmp_path):
    path = write(tmp_path / "a.bin", gzip.compress(message() + message(hour=16)))
    assert len(read_field(path).valid_times) == 2


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_a_bulletins_header_may_come_first(tmp_path, packed):
    header = b"****0000001234****\nYEIX98 KWBC 091500\r\r\n"
    path = write(tmp_path / "a.bin", packed(header + message()))
    np.testing.assert_allclose(read_field(path).load()[0], RAIN, atol=1e-3)


def test_a_page_that_speaks_of_grib_is_none(tmp_path):
    path = tmp_path / "rain.grib2"
    path.write_bytes(b"<html>NOMADS GRIB filter: no such data</html>")
    with pytest.raises(InputError, match="it starts with b'<html>NO'"):
        read_field(path)


def member(number, **keys):
    ensemble = {"productDefinitionTemplateNumber": 1, "numberOfForecastsInEnsemble": 4}
    return message(RAIN / 3600, FLUX, **ensemble, perturbationNumber=number, **keys)


def test_one_member_of_an_ensemble_is_read_and_several_are_not_mixed(tmp_path):
    one = read_grib2(write(tmp_path / "a.grib2", member(3), member(3, hour=16)))
    assert len(one.valid_times) == 2
    said = r"'total_precipitation_rate' has 2 messages of 2 members \(0, 3\).*perturbationNumber=0"
    with pytest.raises(InputError, match=said):
        read_grib2(write(tmp_path / "b.grib2", member(0), member(3)))


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([((0, 0, 0), {})], "parameter 0/0/0; expected an MRMS"),
        ([(AMOUNT, {})], "parameter 0/1/8 of no period; expected an MRMS"),
        ([(FLUX, summed(6, statistic=2))], "parameter 0/1/52 of statistic 2; expected"),
        (
            [((0, 0, 0), {}), (AMOUNT, summed(0))],
            r"message 2, 'total_precipitation' of step range 0, is summed over no time.*"
            r"grib_copy -w 'stepRange!=0' FILE",
        ),
        (
            [(FLUX, {"typeOfFirstFixedSurface": 103, "level": n}) for n in (2, 10)],
            r"'total_precipitation_rate' has 2 messages of 1 times.*-w level=2 FILE",
        ),
        (
            [(FLUX, {}), (FLUX, {"typeOfFirstFixedSurface": 103, "level": 2})],
            r"2 messages of 1 times.*-w typeOfLevel=surface FILE",
        ),
        (
            [(FLUX, {"forecastTime": 6}), (FLUX, {"hour": 18, "forecastTime": 3})],
            r"2 messages of 1 times.*-w dataDate=20220809,dataTime=1500 FILE",
        ),
        (
            [(FLUX, {}), (MRMS_RATE, {})],
            r"'PrecipRate', 'total_precipitation_rate' \(tprate\); expected one .*--variable",
        ),
        ([(MRMS_RATE, {"hour": 45})], "'PrecipRate' has the time 2022-8-9 45:0:0"),
        ([(MRMS_RATE, {"dataDate": 20220231})], "'PrecipRate' has the time 2022-2-31"),
        ([(FLUX, {"forecastTime": 2**31 - 2})], "'total_precipitation_rate' has the time 2022-8-9"),
        ([(MRMS_RATE, {"jDirectionIncrementInDegrees": 60, **BEYOND})], "'lat' goes from -130 to"),
        (
            [(AMOUNT, summed(6)), (AMOUNT, summed(3, hour=14))],
            r"2 periods \[h\] \(3.0, 6.0\).*-w lengthOfTimeRange=3 FILE",
        ),
        (
            [(AMOUNT, summed(6)), (AMOUNT, summed(3, hour=12))],
            r"summed from 2022-08-09T09:00:00: take the differences",
        ),
        (
            [(FLUX, summed(6, statistic=0)), (FLUX, summed(3, hour=12, statistic=0))],
            r"'mean_total_precipitation_rate' .* periods .*lengthOfTimeRange=3",
        ),
        ([(AMOUNT, summed(6)), (FLUX, summed(6, hour=9))], "parameters .*parameterNumber=8"),
        ([(FLUX, {"indicatorOfUnitOfTimeRange": 3, "forecastTime": 3})], "3 ahead in time unit 3"),
        ([((0, 1, 193), summed(6, centre=7))], "parameter 0/1/193; expected"),
        ([(MRMS_RATE, {"iScansNegatively": 1})], "scanning mode of 'PrecipRate' has iScansNeg"),
    ],
)
def test_what_cannot_be_read_as_one_series_is_said(tmp_path, messages, expected):
    data = [message(RAIN, product, **keys) for product, keys in messages]
    with pytest.raises(InputError, match=expected) as caught:
        read_grib2(write(tmp_path / "bad.grib2", *data))
    assert str(caught.value).startswith(str(tmp_path / "bad.grib2"))


def test_a_message_that_comes_twice_counts_once(tmp_path):
    """As GFS has it at 6 h, where the last six hours are also all since the beginning."""
    six, other = message(RAIN, AMOUNT, **summed(6)), message(RAIN + 1, AMOUNT, **summed(6))
    field = read_grib2(write(tmp_path / "a.grib2", six, six))
    np.testing.assert_allclose(field.load(), RAIN[None] / 6, rtol=1e-4)
    says = r"Messages 1 and 2 differ in their values alone.*grib_copy -w 'count!=2' FILE"
    with pytest.raises(InputError, match=says):
        read_grib2(write(tmp_path / "b.grib2", six, other))


def test_of_sums_over_several_periods_the_one_asked_for_is_read(tmp_path):
    """As GFS has it at 24 h: the last six hours, and all since the beginning."""
    six = message(RAIN, AMOUNT, **summed(6))
    day = message(4 * RAIN + 8, AMOUNT, **summed(24))
    path = write(tmp_path / "a.grib2", six, day)
    np.testing.assert_allclose(read_field(path, None, 6).load()[0], RAIN / 6, rtol=1e-4)
    whole = read_field(path, None, 24)
    np.testing.assert_allclose(whole.load()[0], (4 * RAIN + 8) / 24, rtol=1e-4)
    assert whole.source.period_h == 24
    for hours, says in (
        (12, r"2 periods \[h\].*--accumulation 6h\."),
        (-1, "expected a positive period"),
    ):
        with pytest.raises(InputError, match=says):
            read_field(path, None, hours)


@pytest.mark.parametrize("asked", [1, 3, None])
@pytest.mark.parametrize(
    "spans",
    [
        ((6, 7), (6, 8), (6, 9)),  # growing from one start
        (*((0, end) for end in range(1, 7)), *((6, end) for end in range(7, 13))),  # buckets
    ],
)
def test_no_time_is_dropped_for_want_of_the_period_asked_for(tmp_path, spans, asked):
    messages = [
        message(RAIN, AMOUNT, **(summed(end - start, hour=end) | {"hour": start}))
        for start, end in spans
    ]
    with pytest.raises(InputError, match=r"periods \[h\].*differences of successive times"):
        read_field(write(tmp_path / "a.grib2", *messages), None, asked)


def test_two_grids_are_not_one_series(tmp_path):
    with pytest.raises(InputError, match=r"'PrecipRate' has 2 messages of 2 grids"):
        read_grib2(write(tmp_path / "a.grib2", message(), message(RAIN[:3], hour=16)))


@pytest.mark.parametrize("value", [-1.0, 9999.0])
def test_a_file_without_a_valid_cell_is_refused(tmp_path, value):
    with pytest.raises(InputError, match="no valid value"):
        read_grib2(write(tmp_path / "a.grib2", message(np.full((4, 5), value))))


def test_negative_rain_outside_mrms_is_refused(tmp_path):
    with pytest.raises(InputError, match="negative numbers in its 20 cells"):
        read_grib2(write(tmp_path / "a.grib2", message(RAIN - 5, AMOUNT, **summed(1))))


def test_other_grids_and_editions_are_refused(tmp_path):
    handle = eccodes.codes_grib_new_from_samples("polar_stereographic_sfc_grib2")
    for key, value in (("discipline", 209), ("parameterCategory", 6), ("parameterNumber", 1)):
        eccodes.codes_set(handle, key, value)
    polar = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    with pytest.raises(InputError, match="'PrecipRate' lies on grid type 'polar_stereographic'"):
        read_grib2(write(tmp_path / "polar.grib2", polar))
    handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib1")
    first = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    with pytest.raises(InputError, match="edition 1; expected edition 2"):
        read_grib2(write(tmp_path / "one.grib", first))


def test_projections_work_after_a_grib_file_was_read(tmp_path):
    pytest.importorskip("pyproj")
    path = tmp_path / "rain.grib2"
    path.write_bytes(message())
    code = (
        "import sys; from wdm_runtime.io import read_field; read_field(sys.argv[1]).load(); "
        "import pyproj; print(pyproj.CRS.from_epsg(3413).name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "Polar" in done.stdout, done.stderr
