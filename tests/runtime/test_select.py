"""Times, boxes and the fit of grid and model: what is chosen, and what is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdm_runtime.bundle import Bundle
from wdm_runtime.errors import InputError
from wdm_runtime.field import GridMapping, PrecipField, Source, TimeAxis
from wdm_runtime.grid import Grid
from wdm_runtime.select import (
    check_spacing,
    latitude_range,
    outside_training,
    select_box,
    select_times,
    snap_cells,
)
from wdm_runtime.wavelets import WaveletSpec

MANIFEST = Bundle.open().manifest
DEGREES = ({"units": "degrees_north"}, {"units": "degrees_east"})
METRES = ({"units": "m"}, {"units": "m"})
TIMES = (
    "2022-08-08T23:50:00",
    "2022-08-09T01:00:00",
    "2022-08-09T15:00:00",
    "2022-08-09T15:02:00",
    "2022-08-10T00:00:00",
)


def field(y, x, attributes=DEGREES, times=("2022-08-09T15:00:00",), **source):
    """Each cell holds its own number, so that a window shows where it was cut."""
    grid = Grid(np.asarray(y, float), np.asarray(x, float), attributes=attributes)
    numbers = np.arange(grid.y.size * grid.x.size, dtype=np.float32).reshape(grid.shape)
    rates = np.stack([numbers + 1e4 * index for index in range(len(times))])
    return PrecipField(rates, grid, times, Source(path="rain.nc", variable="tp", **source))


def conus(times=TIMES):
    return field(54.95 - 0.1 * np.arange(40), -129.95 + 0.1 * np.arange(60), times=times)


# --- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", [0]),
        ("-1", [4]),
        ("+2", [2]),
        ("2022-08-09T15:00:00", [2]),
        ("2022-08-09T15:00", [2]),
        ("2022-08-09 15:02Z", [3]),
        ("2022-08-09T15", [2, 3]),
        ("2022-08-09", [1, 2, 3]),
        ("2022-08", [0, 1, 2, 3, 4]),
        ("2022-", [0, 1, 2, 3, 4]),
        ("2022-08-09T01:00/2022-08-09T15:00", [1, 2]),
        ("2022-08-09/2022-08-09", [1, 2, 3]),
        ("2022-08-09T15:01/", [3, 4]),
        ("/2022-08-08", [0]),
        ("2022-08-09T02 / 2022-08-10", [2, 3, 4]),
    ],
)
def test_times_by_index_beginning_and_range(text, expected):
    chosen = select_times(conus(), text)
    assert chosen.valid_times == tuple(TIMES[i] for i in expected)
    np.testing.assert_array_equal(chosen.load(), conus().load()[expected])


def test_the_time_coordinate_and_its_bounds_follow():
    axis = TimeAxis("time", "hours since 2022-08-08", "standard", np.arange(5.0), np.ones((5, 2)))
    chosen = select_times(
        replace(conus(), source=replace(conus().source, time=axis)), "2022-08-09T15"
    )
    np.testing.assert_array_equal(chosen.source.time.values, [2, 3])
    assert chosen.source.time.bounds.shape == (2, 2)


@pytest.mark.parametrize("text", ["5", "-6", "2022-08-11", "2022-08-09T16/2022-08-09T17", "/2021"])
def test_a_time_that_is_not_there_names_the_first_and_last(text):
    with pytest.raises(InputError, match=r"2022-08-08T23:50:00 to 2022-08-10T00:00:00") as caught:
        select_times(conus(), text)
    message = str(caught.value)
    assert message.startswith("rain.nc: variable 'tp'") and "--time" in message


@pytest.mark.parametrize("text", ["", "/", "noon", "2022-08-09T1", "2022-8-9", "0/3", "a/b/c"])
def test_a_text_that_is_no_time_is_refused(text):
    with pytest.raises(InputError, match=r"2022-08-09T15:00 or the beginning.*--time"):
        select_times(conus(), text)


def test_a_file_without_times_is_chosen_from_by_index_only():
    frames = conus(("none-0", "none-1"))
    assert select_times(frames, "1").valid_times == ("none-1",)
    with pytest.raises(InputError, match="no times: give an index"):
        select_times(frames, "2022-08-09/")


# --- boxes ---------------------------------------------------------------------------------------


def test_a_box_snaps_outward_to_even_cells():
    whole = conus()
    # columns 11 to 15 and rows 7 to 12 hold it: even borders are 10, 16 and 6, 14
    box = select_box(whole, "-128.85,53.75,-128.45,54.25")
    assert box.origin == (6, 10) and box.grid.shape == (8, 6)
    np.testing.assert_array_equal(box.load(), whole.load()[:, 6:14, 10:16])
    # borders of even cells stay where they are
    exact = select_box(whole, "-129.0,53.6,-128.4,54.4")
    assert exact.origin == (6, 10) and exact.grid.shape == (8, 6)


def test_rows_are_counted_from_the_north_in_files_of_either_order():
    down = field(50.05 - 0.1 * np.arange(13), np.arange(8) * 0.1)
    up = field(down.grid.y[::-1], down.grid.x)
    for text in ("0.1,49.5,0.3,49.7", "0,48.85,0.1,48.9", "0.2,50,0.3,50"):
        a, b = select_box(down, text), select_box(up, text)
        assert a.origin == b.origin and a.origin[0] % 2 == a.origin[1] % 2 == 0
        np.testing.assert_array_equal(a.grid.y, b.grid.y[::-1])


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(-1.0, 7.0)] * 2).map(sorted),
    st.tuples(*[st.floats(-1.0, 7.0)] * 2).map(sorted),
    st.tuples(st.integers(2, 25), st.integers(2, 25)),
    st.booleans(),
    st.sampled_from([(10, 4), (5, 4), (3, 8), (4, 2)]),
)
def test_windows_hold_their_box_and_start_at_a_coefficient(
    across, along, shape, ascending, factor_stride
):
    factor, stride = factor_stride
    wavelet = WaveletSpec(levels=stride.bit_length() - 1)
    snap = snap_cells(replace(MANIFEST, factor=factor, wavelet=wavelet))
    assert snap * factor % stride == 0 and (snap == 2 or (snap - 2) * factor % stride)
    y = 5.05 - 0.1 * np.arange(shape[0])
    whole = field(y[::-1] if ascending else y, 1.05 + 0.1 * np.arange(shape[1]))
    (west, east), (south, north) = across, along
    inside = [
        (np.abs(v - np.clip(v, low, high)) < 0.05 - 1e-5).nonzero()[0]
        for v, low, high in ((whole.grid.y, south, north), (whole.grid.x, west, east))
    ]
    try:
        box = select_box(whole, f"{west},{south},{east},{north}", snap)
    except InputError:
        assert any(cells.size == 0 for cells in inside)
        return
    assert box.origin[0] % snap == 0 and box.origin[1] % snap == 0
    assert min(box.grid.shape) >= 2
    for part, full, cells in zip(
        (box.grid.y, box.grid.x), (whole.grid.y, whole.grid.x), inside, strict=True
    ):
        assert np.isin(full[cells], part).all()
    # ends are whole blocks too, except at the far edge of the field
    for begin, size, full in zip(box.origin, box.grid.shape, shape, strict=True):
        assert (begin + size) % snap == 0 or begin + size == full
    # no more than a snap beyond the box
    assert box.grid.shape[1] <= inside[1].size + 2 * snap


def test_a_box_within_the_last_odd_cell_still_has_two():
    whole = field(50 - 0.1 * np.arange(13), 0.1 * np.arange(9))
    box = select_box(whole, "0.8,48.8,0.8,48.8")
    assert box.origin == (10, 6) and box.grid.shape == (3, 3)


def test_a_box_of_a_box_still_begins_at_even_cells_of_the_whole():
    whole = conus()
    odd = whole.crop(slice(3, 33), slice(5, 45))
    box = select_box(odd, "-128.4,53.4,-128.0,53.8")
    assert box.origin == select_box(whole, "-128.4,53.4,-128.0,53.8").origin


@pytest.mark.parametrize("first", [-130.0, 230.0])
@pytest.mark.parametrize("box", ["-128,52,-127,53", "232,52,233,53"])
def test_longitudes_in_either_convention(first, box):
    whole = field(54.95 - 0.1 * np.arange(40), first + 0.05 + 0.1 * np.arange(60))
    chosen = select_box(whole, box)
    assert chosen.origin == (20, 20) and chosen.grid.shape == (10, 10)
    np.testing.assert_array_equal(chosen.grid.x, whole.grid.x[20:30])  # as the file has them


@pytest.mark.parametrize(("first", "box"), [(170.0, "179,-1,-179,1"), (-10.0, "359,-1,1,1")])
def test_boxes_across_dateline_and_greenwich(first, box):
    whole = field(4.95 - 0.1 * np.arange(100), first + 0.05 + 0.1 * np.arange(200))
    chosen = select_box(whole, box)
    assert chosen.origin == (40, 90) and chosen.grid.shape == (20, 20)


def test_a_box_across_the_border_of_a_global_grid_is_refused_not_halved():
    whole = field(np.arange(-5.0, 5.0), np.arange(0.5, 360))
    with pytest.raises(InputError, match=r"one on one|one side.*--bbox"):
        select_box(whole, "-10,-2,10,2")
    assert select_box(whole, "-10,-2,0,2").origin[1] == 350
    assert select_box(whole, "-180,-2,180,2").grid.shape[1] == 360


def test_projected_boxes_are_in_the_grids_own_units():
    whole = field(1e6 - 1e4 * np.arange(20), 5e5 + 1e4 * np.arange(30), METRES)
    box = select_box(whole, "556000,906000,594000,934000")
    assert box.origin == (6, 6) and box.grid.shape == (4, 4)
    with pytest.raises(InputError, match=r"W not above E.*\(m\)"):
        select_box(whole, "594000,906000,556000,934000")


@pytest.mark.parametrize("text", ["10,40,20,50", "-128,10,-127,20", "-129,60,-128,61"])
def test_a_box_outside_names_the_grids_extent(text):
    with pytest.raises(InputError, match=r"= -130,51,-124,55 \(degrees\).*--bbox") as caught:
        select_box(conus(), text)
    assert str(caught.value).startswith("rain.nc: variable 'tp'")


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "-128,54,-127,53", "nan,1,2,3", "-inf,51,inf,54"]
)
def test_a_text_that_is_no_box_is_refused(text):
    with pytest.raises(InputError, match=r"W,S,E,N.*--bbox"):
        select_box(conus(), text)


# --- fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "units", "fits"),
    [
        (0.1, "degrees", True),
        (0.109, "degrees", True),
        (0.25, "degrees", False),
        (0.08, "degrees", False),
        (1e4, "m", True),
        (9500.0, "metres", True),
        (10.0, "km", True),
        (10.0, "m", False),
        (1e4, "km", False),
        (0.1, "radians", False),
        (10.0, "", False),
    ],
)
def test_spacing(step, units, fits):
    values = step * np.arange(6)
    coarse = field(values[::-1], values, ({"units": units},) * 2)
    check_spacing(coarse, 1.0, 10, assume=True)
    if fits:
        return check_spacing(coarse, 1.0, 10, assume=False)
    with pytest.raises(InputError, match=r"expected 10 km.*--assume-factor") as caught:
        check_spacing(coarse, 1.0, 10, assume=False)
    assert "rain.nc: variable 'tp'" in str(caught.value)


def test_both_axes_must_fit_and_the_models_own_spacing_counts():
    oblong = field(0.1 * np.arange(5), 0.2 * np.arange(5))
    with pytest.raises(InputError, match=r"10 x 20 km"):
        check_spacing(oblong, 1.0, 10, assume=False)
    check_spacing(field(0.2 * np.arange(5), 0.2 * np.arange(5)), 2.0, 10, assume=False)


@pytest.mark.parametrize(
    ("step", "factor", "remedy"),
    [
        (0.005, 1, "Average it (wdm-export coarsen FINE -o fine.nc --factor 2), or choose"),
        (0.025, 10, "Average it (wdm-export coarsen COARSE -o coarse.nc --factor 4), or choose"),
        (0.007, 1, "Regrid the field, or choose"),
        (0.02, 1, "Regrid the field, or choose"),
    ],
)
def test_a_whole_fraction_of_the_spacing_can_be_averaged(step, factor, remedy):
    values = step * np.arange(6)
    with pytest.raises(InputError, match=re.escape(remedy)):
        check_spacing(field(values[::-1], values), 1.0, factor, assume=None)


@pytest.mark.parametrize("assume", [False, True])
@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_an_axis_of_one_cell_is_refused_whatever_is_assumed(shape, assume):
    narrow = field(50 + 0.1 * np.arange(shape[0]), 0.1 * np.arange(shape[1]))
    said = rf"'tp' has {shape[0]} x {shape[1]} cells.*at least two .*Hand in a larger area"
    with pytest.raises(InputError, match=said) as caught:
        check_spacing(narrow, 1.0, 10, assume=assume)
    assert str(caught.value).startswith("rain.nc: variable 'tp'")
    assert "--assume-factor" not in str(caught.value)  # it could not help


def test_a_note_outside_the_latitudes_of_the_training():
    trained = (20.0, 55.0)
    assert outside_training(conus(), trained) is None
    partly = outside_training(field(60 - 0.1 * np.arange(100), np.arange(4)), trained)
    assert "partly outside" in partly and "50.10 to 60.00" in partly
    south = outside_training(field(-30 - 0.1 * np.arange(10), np.arange(4)), trained)
    assert "lies outside" in south


def test_latitudes_of_projected_grids_come_from_their_grid_mapping():
    pyproj = pytest.importorskip("pyproj")
    laea = pyproj.CRS("+proj=laea +lat_0=55 +lon_0=10 +x_0=1950000 +y_0=-2100000 +ellps=WGS84")
    x, y = 1.85e6 + 1e4 * np.arange(20), -2.05e6 - 1e4 * np.arange(11)
    metres = field(y, x, METRES, grid_mapping=GridMapping("crs", laea.to_cf()))
    south, north = latitude_range(metres)
    assert north == pytest.approx(55.45, abs=0.02) and south == pytest.approx(54.55, abs=0.02)
    assert "partly outside" in outside_training(metres, (20.0, 55.0))
    km = ({"units": "km"}, {"units": "km"})
    kilometres = field(y / 1e3, x / 1e3, km, grid_mapping=metres.source.grid_mapping)
    assert latitude_range(kilometres) == pytest.approx((south, north))
    assert latitude_range(field(y, x, METRES)) is None
    assert outside_training(field(y, x, METRES), (20.0, 55.0)) is None
    broken = GridMapping("crs", {"grid_mapping_name": "nonsense"})
    assert latitude_range(field(y, x, METRES, grid_mapping=broken)) is None


def test_rotated_latitudes_are_not_latitudes():
    pytest.importorskip("pyproj")
    rotated = ({"units": "degrees", "standard_name": "grid_latitude"}, {"units": "degrees"})
    pole = {
        "grid_mapping_name": "rotated_latitude_longitude",
        "grid_north_pole_latitude": 39.25,
        "grid_north_pole_longitude": -162.0,
    }
    values = -0.5 + 0.1 * np.arange(11)
    rotated_field = field(values, values, rotated, grid_mapping=GridMapping("crs", pole))
    # its own equator crosses at 90 - 39.25 degrees north
    south, north = latitude_range(rotated_field)
    assert south == pytest.approx(50.25, abs=0.02) and north == pytest.approx(51.25, abs=0.02)
    assert latitude_range(field(values, values, rotated)) is None
