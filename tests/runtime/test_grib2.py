"""GRIB2 messages written by ecCodes: products, units, times, grids, and what is refused."""

import gzip
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

eccodes = pytest.importorskip("eccodes")

from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.io import read_field  # noqa: E402
from wdm_runtime.io.grib2 import content_of, read_grib2  # noqa: E402

RAIN = np.arange(20, dtype=float).reshape(4, 5)
MRMS_RATE, MRMS_HOUR = (209, 6, 1), (209, 6, 37)
FLUX, RATE, AMOUNT = (0, 1, 52), (0, 1, 7), (0, 1, 8)
END = "OfEndOfOverallTimeInterval"
BEYOND = {"latitudeOfLastGridPointInDegrees": -130.0}


def message(values=RAIN, product=MRMS_RATE, hour=15, **keys):
    """One message valid at 2022-08-09 ``hour``, on 0.1 degree cells from 50 N, 355 E."""
    rows, columns = np.shape(values)
    discipline, category, number = product
    defaults = {
        "discipline": discipline,
        "dataDate": 20220809,
        "hour": hour,
        "minute": 0,
        "second": 0,
        "productDefinitionTemplateNumber": 0,
        "parameterCategory": category,
        "parameterNumber": number,
        "forecastTime": 0,
        "Ni": columns,
        "Nj": rows,
        "latitudeOfFirstGridPointInDegrees": 50.0,
        "latitudeOfLastGridPointInDegrees": 50.0 - 0.1 * (rows - 1),
        "longitudeOfFirstGridPointInDegrees": 355.0,
        "longitudeOfLastGridPointInDegrees": 355.0 + 0.1 * (columns - 1),
        "iDirectionIncrementInDegrees": 0.1,
        "jDirectionIncrementInDegrees": 0.1,
        "bitsPerValue": 24,
    }
    handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    try:
        for key, value in (defaults | keys).items():
            eccodes.codes_set(handle, key, value)
        eccodes.codes_set_values(handle, np.asarray(values, float).ravel())
        return eccodes.codes_get_message(handle)
    finally:
        eccodes.codes_release(handle)


def summed(hours, hour=15, statistic=1, unit=1, **keys):
    """Keys of a statistic over the hours up to 2022-08-09 ``hour``."""
    return {
        "productDefinitionTemplateNumber": 8,
        "typeOfStatisticalProcessing": statistic,
        "indicatorOfUnitForTimeRange": unit,
        "lengthOfTimeRange": hours,
        **{f"year{END}": 2022, f"month{END}": 8, f"day{END}": 9},
        **{f"hour{END}": hour, f"minute{END}": 0, f"second{END}": 0},
        "hour": hour - 1,
        **keys,
    }


def write(path, *messages):
    path.write_bytes(b"".join(messages))
    return path


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
        ([(AMOUNT, {})], "'total_precipitation' is of no period"),
        ([(FLUX, summed(6, statistic=2))], "of statistic 2"),
        ([(AMOUNT, summed(0))], "summed over 1 ranges of 0"),
        ([(FLUX, {}), (FLUX, {})], "'total_precipitation_rate' has 2 messages of 1 times"),
        ([(FLUX, {}), (MRMS_RATE, {})], "2 products .PrecipRate, total_precipitation_rate"),
        ([(MRMS_RATE, {"hour": 45})], "'PrecipRate' has the time 2022-8-9 45:0:0"),
        ([(MRMS_RATE, {"dataDate": 20220231})], "'PrecipRate' has the time 2022-2-31"),
        ([(FLUX, {"forecastTime": 2**31 - 2})], "'total_precipitation_rate' has the time 2022-8-9"),
        ([(MRMS_RATE, {"jDirectionIncrementInDegrees": 60, **BEYOND})], "'lat' goes from -130 to"),
        ([(AMOUNT, summed(6)), (AMOUNT, summed(3, hour=12))], r"2 periods \[h\] \(3.0, 6.0\)"),
        ([(MRMS_RATE, {"iScansNegatively": 1})], "scanning mode of 'PrecipRate' has iScansNeg"),
    ],
)
def test_what_cannot_be_read_as_one_series_is_said(tmp_path, messages, expected):
    data = [message(RAIN, product, **keys) for product, keys in messages]
    with pytest.raises(InputError, match=expected) as caught:
        read_grib2(write(tmp_path / "bad.grib2", *data))
    assert str(caught.value).startswith(str(tmp_path / "bad.grib2"))


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


def test_a_second_message_that_is_damaged_is_found_at_once(tmp_path):
    whole = message(hour=16)
    for damaged in (whole[:-10], whole[:40], whole[:16]):
        with pytest.raises(InputError, match="damaged"):
            read_grib2(write(tmp_path / "a.grib2", message(), damaged))


def test_several_fields_in_one_message_are_not_cut_to_the_first(tmp_path):
    whole = message()
    sections, position = {}, 16
    while whole[position : position + 4] != b"7777":
        length = int.from_bytes(whole[position : position + 4], "big")
        sections[whole[position + 4]] = whole[position : position + length]
        position += length
    again = b"".join(sections[number] for number in (4, 5, 6, 7))
    body = whole[16:-4] + again + b"7777"
    double = whole[:8] + (16 + len(body)).to_bytes(8, "big") + body
    with pytest.raises(InputError, match=r"holds 2 fields.*grib_copy"):
        read_grib2(write(tmp_path / "a.grib2", double))


def sized(data, rows, columns, points, values):
    """A message whose header says other sizes."""
    data = bytearray(data)
    position = 16
    while data[position : position + 4] != b"7777":
        section = data[position + 4]
        for offset, number in {3: ((6, points), (30, columns), (34, rows)), 5: ((5, values),)}.get(
            section, ()
        ):
            start = position + offset
            data[start : start + 4] = number.to_bytes(4, "big")
        position += int.from_bytes(data[position : position + 4], "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((5, 5, 20, 20), "'PrecipRate' has 5 x 5 cells of 20 points and 20 values"),
        ((4, 5, 25, 20), "4 x 5 cells of 25 points"),
        ((4, 5, 20, 25), "20 points and 25 values"),
        ((40_000, 50_000, 20, 20), "40000 x 50000 cells of 20 points"),
        ((0, 0, 0, 0), "0 x 0 cells"),
        (
            (60_000, 60_000, 3_600_000_000, 3_600_000_000),
            "'PrecipRate' has 60000 x 60000 cells.*GiB",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_found_before_anything_is_decoded(tmp_path, sizes, expected):
    path = write(tmp_path / "a.grib2", sized(message(), *sizes))
    with pytest.raises(InputError, match=expected) as caught:
        read_grib2(path)
    assert str(caught.value).startswith(str(path))


def packed(packing, values=RAIN, bits=24, **keys):
    handle = eccodes.codes_new_from_message(message(values, bitsPerValue=bits))
    try:
        eccodes.codes_set(handle, "packingType", packing)
        for key, value in keys.items():
            eccodes.codes_set(handle, key, value)
        return eccodes.codes_get_message(handle)
    finally:
        eccodes.codes_release(handle)


@pytest.mark.parametrize(
    "keys",
    [
        {"referenceForGroupWidths": 190},
        {"referenceForGroupWidths": 20},
        {"numberOfBitsUsedForTheGroupWidths": 44},
        {"numberOfGroupsOfDataValues": 400_000},
        {"trueLengthOfLastGroup": 500},
    ],
)
def test_widths_that_would_end_the_process_are_refused(tmp_path, keys):
    rain = np.tile(RAIN, (5, 5)) ** 1.5
    for index, packing in enumerate(("grid_complex", "grid_complex_spatial_differencing")):
        good = read_grib2(write(tmp_path / f"{index}.grib2", packed(packing, rain)))
        np.testing.assert_allclose(good.load()[0], rain, atol=1e-3)
    with pytest.raises(InputError, match=r"'PrecipRate' is packed as 'grid_complex' in .* do not"):
        read_grib2(write(tmp_path / "b.grib2", packed("grid_complex", rain, **keys)))


@pytest.mark.parametrize("damage", ["length", "number", "end"])
def test_images_that_would_end_the_process_are_refused(tmp_path, damage):
    rain = np.tile(RAIN, (5, 5))
    whole = packed("grid_png", rain)
    np.testing.assert_allclose(
        read_grib2(write(tmp_path / "a.grib2", whole)).load()[0], rain, atol=1e-3
    )
    data = bytearray(whole)
    at = {
        "length": data.index(b"IDAT") - 3,
        "number": data.index(b"IDAT") + 20,
        "end": data.index(b"IEND"),
    }[damage]
    data[at] ^= 0x40
    with pytest.raises(InputError, match=r"'PrecipRate' is packed as 'grid_png' in .* do not fit"):
        read_grib2(write(tmp_path / "b.grib2", bytes(data)))
    dry = read_grib2(write(tmp_path / "c.grib2", packed("grid_png", 0 * rain)))
    assert (dry.load() == 0).all()  # without an image


@pytest.mark.parametrize("bits", [8, 12, 16, 24, 32])
def test_images_of_every_depth_are_read_and_their_size_is_the_headers(tmp_path, bits):
    whole = packed("grid_png", bits=bits, values=np.tile(RAIN, (5, 5)))
    assert read_grib2(write(tmp_path / "a.grib2", whole)).grid.shape == (20, 25)
    fewer = sized(whole, 20, 25, 500, 499)  # more would be written than there is room for
    with pytest.raises(InputError, match=rf"do not fit; expected 499 numbers of {bits} bits"):
        read_grib2(write(tmp_path / "b.grib2", fewer))
    deeper = bytearray(whole)
    section = deeper.index((21).to_bytes(4, "big") + b"\x05")
    assert deeper[section + 19] == bits
    deeper[section + 19] = 200
    with pytest.raises(InputError, match=r"expected 500 numbers of 200 bits"):
        read_grib2(write(tmp_path / "c.grib2", bytes(deeper)))


def test_what_inflates_without_end_is_refused_while_it_does(tmp_path):
    bomb = write(tmp_path / "a.grib2.gz", gzip.compress(bytes(60_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"a\.grib2\.gz: unpacks to more than .*expected"):
            content_of(bomb, most_bytes=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    whole = write(tmp_path / "b.grib2.gz", gzip.compress(message()))
    assert content_of(whole, most_bytes=len(message())) == message()


def test_a_dry_field_shrinks_as_much_as_a_bomb_and_is_read(tmp_path):
    rate = np.zeros((400, 500))
    rate[3, 4] = 7
    whole = packed("grid_simple", rate)
    small = gzip.compress(whole)
    assert len(whole) > 500 * len(small)
    found = read_grib2(write(tmp_path / "dry.grib2.gz", small)).load()
    np.testing.assert_allclose(np.sort(found[0], axis=None)[[-1, -2, 0]], [7, 0, 0], atol=1e-5)


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
