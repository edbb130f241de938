"""ODIM_H5 composites, written with h5py as OPERA's data model has them."""

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")
pyproj = pytest.importorskip("pyproj")

from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.io import read_field  # noqa: E402
from wdm_runtime.io.odim import read_odim  # noqa: E402

LAEA = "+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +units=m +ellps=WGS84"
CORNER = pyproj.Proj(LAEA)(1_900_000, -2_200_000, inverse=True)
WHERE = {
    "projdef": LAEA,
    "xsize": 5,
    "ysize": 4,
    "xscale": 2000.0,
    "yscale": 1000.0,
    "LL_lon": CORNER[0],
    "LL_lat": CORNER[1],
}
RAW = np.arange(20, dtype=np.uint8).reshape(4, 5)  # 0 is undetect, 19 nodata
RATE = {"quantity": "RATE", "gain": 0.5, "offset": 0.0, "nodata": 19.0, "undetect": 0.0}
ACRR = {**RATE, "quantity": "ACRR"}
QUARTER = ("20220809", "144500", "20220809", "150000")


def write(group, name, values):
    node = group.require_group(name)
    for key, value in values.items():
        if value is None:
            node.attrs.pop(key, None)
        else:
            node.attrs[key] = np.bytes_(value) if isinstance(value, str) else value
    return node


def period(values):
    return dict(zip(("startdate", "starttime", "enddate", "endtime"), values, strict=True))


def odim(path, layers=((RATE, QUARTER, RAW),), where=None, kind="COMP", scaling_in="data1"):
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_4")
        root = {"object": kind, "version": "H5rad 2.4", "source": "ORG:247"}
        write(file, "what", {**root, "date": "20220809", "time": "150100"})
        write(file, "where", WHERE | (where or {}))
        write(file, "how", {"software": "BALTRAD"})
        for number, (what, times, values) in enumerate(layers, 1):
            dataset = file.create_group(f"dataset{number}")
            common = {"product": "SURF", **period(times)} if times else {"product": "SURF"}
            write(dataset, "what", common | (what if scaling_in == "dataset" else {}))
            data = dataset.create_group("data1")
            if scaling_in == "data1":
                write(data, "what", what)
            if values is not None:
                array = data.create_dataset("data", data=values, compression="gzip")
                array.attrs["CLASS"] = np.bytes_("IMAGE")
                array.attrs["IMAGE_VERSION"] = np.bytes_("1.2")
            write(dataset, "quality1/what", {"gain": 1.0, "offset": 0.0})
            dataset["quality1"].create_dataset("data", data=np.zeros((4, 5), np.uint8))
    return path


def test_nodata_is_missing_and_undetect_is_dry(tmp_path):
    field = read_odim(odim(tmp_path / "a.h5"))
    rates = field.load()[0]
    assert rates.dtype == np.float32 and np.isnan(rates[3, 4]) and np.isnan(rates).sum() == 1
    assert rates[0, 0] == 0
    np.testing.assert_array_equal(rates.ravel()[1:19], 0.5 * np.arange(1, 19))
    assert (field.source.variable, field.source.units, field.source.period_h) == (
        "RATE",
        "mm h-1",
        None,
    )
    assert field.valid_times == ("2022-08-09T15:01:00",)  # the nominal time


def test_undetect_is_dry_whatever_gain_and_offset_make_of_it(tmp_path):
    scaled = {**RATE, "offset": 3.0}
    rates = read_odim(odim(tmp_path / "a.h5", [(scaled, QUARTER, RAW)])).load()[0]
    assert rates[0, 0] == 0 and rates[0, 1] == 3.5
    values = RAW.astype(np.float32)
    values[1, 1], values[1, 2] = np.nan, -999.0
    floats = {**RATE, "nodata": np.nan, "undetect": -999.0}
    rates = read_odim(odim(tmp_path / "b.h5", [(floats, QUARTER, values)])).load()[0]
    assert np.isnan(rates[1, 1]) and rates[1, 2] == 0 and rates[3, 4] == 9.5


@pytest.mark.parametrize(("nodata", "undetect"), [(9999.9, 0.1), (65535.1, -9999.9), (1e300, 0.1)])
def test_codes_are_known_in_the_arrays_own_precision(tmp_path, nodata, undetect):
    values = 1.0 + np.arange(20, dtype=np.float32).reshape(4, 5)
    with np.errstate(over="ignore"):
        values[0, :2] = np.array([nodata, undetect]).astype(np.float32)
    coded = {**RATE, "gain": 1.0, "nodata": nodata, "undetect": undetect}
    rates = read_odim(odim(tmp_path / "a.h5", [(coded, QUARTER, values)])).load()[0]
    assert np.isnan(rates[0, 0]) and np.isnan(rates).sum() == 1 and rates[0, 1] == 0
    np.testing.assert_array_equal(rates.ravel()[2:], values.ravel()[2:])


def test_cells_lie_where_the_corner_and_the_scales_put_them(tmp_path):
    field = read_odim(odim(tmp_path / "a.h5"))
    grid = field.grid
    np.testing.assert_allclose(grid.x, 1_901_000 + 2000 * np.arange(5), atol=1e-3)
    np.testing.assert_allclose(grid.y, -2_196_500 - 1000 * np.arange(4), atol=1e-3)
    assert grid.north_first and not grid.is_latlon and grid.names == ("y", "x")
    assert grid.spacing_km == pytest.approx((1.0, 2.0))
    mapping = field.source.grid_mapping.attributes
    assert mapping["grid_mapping_name"] == "lambert_azimuthal_equal_area"
    # the mapping alone leads from the coordinates back to the corner on the globe
    crs = pyproj.CRS.from_cf(mapping)
    west, south = pyproj.Proj(crs)(grid.x[0] - 1000, grid.y[-1] - 500, inverse=True)
    assert (west, south) == pytest.approx(CORNER, abs=1e-6)


def test_a_projection_that_cf_lacks_is_named_and_no_grid_mapping(tmp_path):
    gnomonic = "+proj=gnom +lat_0=50 +lon_0=15 +units=m +ellps=WGS84"
    field = read_odim(odim(tmp_path / "a.h5", where={"projdef": gnomonic, "LL_lon": 15.0}))
    assert field.source.grid_mapping is None and not field.grid.is_latlon
    assert all(gnomonic in attributes["comment"] for attributes in field.grid.attributes)


def test_kilometres_and_longitudes_are_understood(tmp_path):
    km = LAEA.replace("1950000", "1950e3").replace("units=m", "units=km")
    lon, lat = pyproj.Proj(km)(1900, -2200, inverse=True)
    where = {"projdef": km, "xscale": 1.0, "yscale": 1.0, "LL_lon": lon, "LL_lat": lat}
    grid = read_odim(odim(tmp_path / "km.h5", where=where)).grid
    assert grid.units == ("km", "km") and grid.spacing_km == pytest.approx((1.0, 1.0))
    assert grid.x[0] == pytest.approx(1900.5) and grid.y[-1] == pytest.approx(-2199.5)
    where = {"projdef": "+proj=longlat +datum=WGS84", "xscale": 0.02, "yscale": 0.01}
    where |= {"LL_lon": 5.0, "LL_lat": 45.0}
    grid = read_odim(odim(tmp_path / "ll.h5", where=where)).grid
    assert grid.is_latlon and grid.names == ("lat", "lon") and grid.north_first
    np.testing.assert_allclose(grid.x, 5.01 + 0.02 * np.arange(5))
    np.testing.assert_allclose(grid.y, 45.035 - 0.01 * np.arange(4))


def test_amounts_become_rates_over_their_period(tmp_path):
    field = read_odim(odim(tmp_path / "a.h5", [(ACRR, QUARTER, RAW)]))
    assert (field.source.units, field.source.period_h) == ("mm", 0.25)
    assert field.load()[0, 0, 3] == 4 * 1.5
    assert field.valid_times == ("2022-08-09T15:00:00",)
    start, end = field.source.time.bounds[0]
    assert end - start == 900 and end == field.source.time.values[0]
    netcdf4 = pytest.importorskip("netCDF4")
    dated = netcdf4.num2date(end, field.source.time.units, field.source.time.calendar)
    assert dated.isoformat() == "2022-08-09T15:00:00"


def test_attributes_are_taken_from_the_nearest_group_above(tmp_path):
    in_data = read_odim(odim(tmp_path / "a.h5"))
    in_dataset = read_odim(odim(tmp_path / "b.h5", scaling_in="dataset"))
    np.testing.assert_array_equal(in_data.load(), in_dataset.load())


def test_datasets_of_several_times_come_in_their_order(tmp_path):
    later = ("20220809", "150000", "20220809", "151500")
    field = read_odim(
        odim(tmp_path / "a.h5", [(RATE, later, RAW[::-1]), (RATE, QUARTER, RAW)]),
    )
    assert field.valid_times == ("2022-08-09T15:00:00", "2022-08-09T15:15:00")
    assert np.isnan(field.frame(0)[3, 4]) and np.isnan(field.frame(1)[0, 4])
    assert field.source.time.bounds is None


def test_other_quantities_stand_beside_and_several_need_a_choice(tmp_path):
    dbzh = {"quantity": "DBZH", "gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0}
    beside = odim(tmp_path / "a.h5", [(dbzh, QUARTER, RAW), (RATE, QUARTER, RAW)])
    assert read_odim(beside).source.variable == "RATE"
    both = odim(tmp_path / "b.h5", [(ACRR, QUARTER, RAW), (RATE, QUARTER, RAW)])
    with pytest.raises(InputError, match=r"'ACRR', 'RATE'; expected one.*--variable"):
        read_odim(both)
    assert read_odim(both, "ACRR").source.period_h == 0.25


def test_a_file_is_known_by_its_content(tmp_path):
    path = odim(tmp_path / "composite.dat")
    np.testing.assert_array_equal(read_field(path).load(), read_odim(path).load())


DBZH = {**RATE, "quantity": "DBZH"}
LONG = ("20220809", "140000", "20220809", "150000")
NEGATIVE = {**RATE, "gain": -0.5}
NORTH = {"projdef": "+proj=longlat +datum=WGS84", "xscale": 0.1, "yscale": 0.1, "LL_lon": 5.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "PVOL"}, "object 'PVOL'; expected a cartesian composite.*composite of polar"),
        ({"kind": "SCAN"}, "object 'SCAN'"),
        ({"layers": [(DBZH, QUARTER, RAW)]}, "quantities 'DBZH'; expected RATE .*Z-R relation"),
        ({"layers": []}, "quantities none; expected RATE"),
        ({"layers": [({**RATE, "quantity": None}, QUARTER, RAW)]}, "quantities none"),
        ({"where": {"LL_lon": None, "xscale": None}}, "'where' has no xscale, LL_lon"),
        ({"where": {"projdef": "+proj=nonsense"}}, r"projdef '\+proj=nonsense', which cannot"),
        ({"where": {"projdef": ""}}, "projdef ''"),
        ({"where": {"xscale": 0.0}}, "xscale = 0; expected a positive"),
        ({"where": {"LL_lat": 99.0}}, "99 N"),
        ({"where": {"xsize": "five"}}, "xsize = 'five'; expected a number"),
        ({"where": {"xsize": 2.5}}, "xsize = 2.5; expected a whole number of at least 1"),
        ({"where": {"ysize": np.nan}}, "ysize = nan; expected a whole number"),
        ({"where": {"ysize": 0}}, "ysize = 0; expected a whole number"),
        ({"where": {"xsize": 1e300}}, r"'dataset1/data1/data' has shape \(4, 5\)"),
        ({"where": {"ysize": 10**12}}, r"\(4, 5\); expected \(1000000000000, 5\)"),
        ({"where": {"xscale": np.inf}}, "xscale = inf; expected a positive"),
        ({"where": {"yscale": -1.0}}, "yscale = -1; expected a positive"),
        ({"where": {"yscale": np.nan}}, "yscale = nan; expected a positive"),
        ({"where": {"xsize": np.array([5, 5])}}, r"xsize = array\(\[5, 5\]\)"),
        ({"where": {**NORTH, "LL_lat": 89.9}}, "'lat' goes from 89.95 to 90.25"),
        ({"layers": [({**RATE, "gain": np.inf}, QUARTER, RAW)]}, "gain = inf; expected a finite"),
        ({"layers": [({**RATE, "gain": 0.0}, QUARTER, RAW)]}, "gain = 0.*no gain of 0"),
        ({"layers": [({**RATE, "offset": np.nan}, QUARTER, RAW)]}, "offset = nan; expected a fin"),
        ({"layers": [(RATE, QUARTER, RAW.astype("S1"))]}, "'dataset1/data1/data' .*numbers"),
        ({"where": {"xsize": 6}}, r"'dataset1/data1/data' has shape \(4, 5\); expected \(4, 6\)"),
        ({"layers": [(RATE, QUARTER, RAW[0])]}, r"shape \(5,\)"),
        ({"layers": [(RATE, QUARTER, None)]}, "no array"),
        ({"layers": [({**RATE, "nodata": None}, QUARTER, RAW)]}, "nodata = None"),
        ({"layers": [({**RATE, "gain": "x"}, QUARTER, RAW)]}, "gain = 'x'"),
        ({"layers": [(RATE, ("2022", "1", "2", "3"), RAW)]}, "startdate '2022'"),
        ({"layers": [(ACRR, None, RAW)]}, "summed over 0 h"),
        ({"layers": [(ACRR, QUARTER[2:] + QUARTER[:2], RAW)]}, "expected one positive"),
        ({"layers": [(ACRR, QUARTER, RAW), (ACRR, LONG, RAW)]}, "0.25 h, 1 h"),
        ({"layers": [(RATE, QUARTER, RAW)] * 2}, "2 datasets of 'RATE' at 1 times"),
        ({"layers": [(NEGATIVE, QUARTER, RAW)]}, "18 infinite or negative"),
        ({"layers": [(RATE, QUARTER, np.full((4, 5), 19, np.uint8))]}, "no valid value in its 20"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, options, message):
    with pytest.raises(InputError, match=message) as caught:
        read_odim(odim(tmp_path / "bad.h5", **options))
    assert str(caught.value).startswith(str(tmp_path / "bad.h5"))


def test_a_damaged_file_is_an_input_error(tmp_path):
    whole = odim(tmp_path / "a.h5").read_bytes()
    for size in (0, 100, len(whole) // 2):
        (tmp_path / "cut.h5").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.h5"):
            read_odim(tmp_path / "cut.h5")


@pytest.mark.parametrize("layer", [ACRR, RATE], ids=["amounts", "rates"])
@pytest.mark.parametrize(
    ("stated", "says"),
    [
        *((stated, f"got an accumulation of {stated:g} h") for stated in (np.nan, np.inf, 0, -1)),
        ("1h", "Got accumulation_h = '1h'; expected a number"),
    ],
)
def test_a_stated_period_that_is_none(tmp_path, layer, stated, says):
    path = tmp_path / "in.h5"
    odim(path, ((layer, QUARTER, RAW),))
    with pytest.raises(InputError, match=says):
        read_field(path, accumulation_h=stated)


def test_a_stated_period_may_be_a_second_off(tmp_path):
    """As that of NetCDF, whose bounds may end a second before the next begin."""
    path = tmp_path / "in.h5"
    odim(path, ((ACRR, QUARTER, RAW),))
    assert read_field(path, accumulation_h=901.2 / 3600).source.period_h == 0.25
    with pytest.raises(InputError, match=r"summed over 0.25 h as its file says; got .* 0\.5 h"):
        read_field(path, accumulation_h=0.5)
