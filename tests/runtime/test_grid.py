"""Interpolation, block means and transforms: constants, mass, missing cells, round trips."""

import re
from datetime import datetime

import numpy as np
import pytest

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import Grid, block_mean, interpolate, same_spacing
from wdm_runtime.transform import TRANSFORMS, PrecipTransform, SubbandScale

RNG = np.random.default_rng(0)


def test_interpolation_keeps_constants_and_is_never_negative():
    np.testing.assert_allclose(interpolate(np.full((5, 7), 2.5), 10), 2.5, rtol=1e-6)
    spiky = np.zeros((9, 9))
    spiky[4, 4] = 50
    assert interpolate(spiky, 10).min() == 0  # Keys' kernel undershoots; rain cannot


def test_interpolation_reproduces_a_ramp_inside():
    coarse = np.tile(np.arange(12.0), (6, 1))
    fine = interpolate(coarse, 10)
    # Keys' kernel reproduces straight lines for a = -0.5 only, and nearly for -0.75.
    expected = (np.arange(120) + 0.5) / 10 - 0.5
    np.testing.assert_allclose(fine[30, 20:100], expected[20:100], atol=0.06)


def test_interpolation_mirrors_with_its_input():
    coarse = RNG.gamma(0.5, 4, (6, 8))
    flipped = interpolate(coarse[::-1, ::-1], 10)
    np.testing.assert_allclose(flipped[::-1, ::-1], interpolate(coarse, 10), atol=1e-4)


def test_missing_spreads_to_what_reads_it_and_no_further():
    coarse = np.ones((9, 9))
    coarse[4, 4] = np.nan
    missing = np.isnan(interpolate(coarse, 10))
    assert missing[40:50, 40:50].all()
    # the outermost fine cells reading coarse cell 4 lie in cells 2 and 6
    assert not missing[:20].any() and not missing[70:].any()
    assert not np.isnan(interpolate(np.ones((9, 9)), 10)).any()


def test_block_mean_counts_valid_cells_only():
    fine = np.ones((20, 30))
    fine[:10, :10] = np.nan
    fine[0, 10], fine[1, 10] = np.nan, 101.0
    mean = block_mean(fine, 10)
    assert mean.shape == (2, 3)
    assert np.isnan(mean[0, 0])
    assert mean[0, 1] == pytest.approx((98 + 101) / 99)
    assert np.all(mean[1] == 1)


def test_refined_grid_covers_the_same_area():
    grid = Grid(np.array([40.0, 39.9, 39.8]), np.array([-100.0, -99.9]))
    fine = grid.refined(10)
    assert fine.shape == (30, 20)
    assert fine.extent == pytest.approx(grid.extent)
    assert grid.extent == pytest.approx((-100.05, -99.85, 39.75, 40.05))
    assert Grid(grid.y[:1], grid.x).extent[2:] == (40.0, 40.0)
    assert fine.y[0] == pytest.approx(40.045) and fine.x[-1] == pytest.approx(-99.855)
    np.testing.assert_allclose(fine.y.reshape(3, 10).mean(1), grid.y)
    assert grid.north_first and not Grid(grid.y[::-1], grid.x).north_first


def test_area_of_a_degree_cell():
    attributes = ({"units": "degrees_north"}, {"units": "degrees_east"})
    grid = Grid(np.array([0.05, -0.05]), np.array([10.05, 10.15]), attributes=attributes)
    assert grid.area_km2() == pytest.approx((0.2 * 111.19) ** 2, rel=1e-3)


@pytest.mark.parametrize(
    "units",
    [
        "degrees",
        "degree",
        "degrees_north",
        "degree_N",
        "degrees_E",
        "degreesN",
        "Degrees_East",
        "deg",
    ],
)
def test_degrees_in_all_their_spellings(units):
    grid = Grid(np.arange(3.0), np.arange(2.0), attributes=({"units": units}, {"units": units}))
    assert grid.is_latlon and grid.spacing_km == (100.0, 100.0)


@pytest.mark.parametrize("units", ["", "m", "1", "radians", "degC", "degrees C", "celsius"])
def test_what_is_no_angle_in_degrees(units):
    grid = Grid(np.arange(3.0), np.arange(2.0), attributes=({"units": units}, {"units": units}))
    assert not grid.is_latlon and (grid.spacing_km is None) == (units != "m")


def test_spacing_is_positive_in_units_and_km():
    grid = Grid(np.array([40.0, 39.9, 39.8]), np.array([5e3, 6e3, 7e3]), ("y", "x"))
    assert grid.spacing == pytest.approx((0.1, 1000.0)) and grid.spacing_km is None
    metres = Grid(grid.x[::-1], grid.x / 1e3, attributes=({"units": "metre"}, {"units": "km"}))
    assert metres.spacing_km == pytest.approx((1.0, 1.0))
    assert metres.area_km2() == pytest.approx(9.0)
    narrow = Grid(grid.y, grid.x[:1], attributes=({"units": "m"}, {"units": "m"}))
    assert np.isnan(narrow.spacing[1]) and narrow.spacing_km is None and narrow.area_km2() == 0


def test_spacings_agree_within_a_tenth():
    assert same_spacing(10.9, 10) and same_spacing(9.1, 10)
    assert not same_spacing(11.1, 10) and not same_spacing(8.9, 10)


def test_uneven_coordinates_and_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="even spacing"):
        Grid(np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.0]))
    with pytest.raises(InputError, match=r"\(1, 2, 2\)"):
        PrecipField(np.zeros((2, 2), np.float32), Grid(np.arange(2.0), np.arange(2.0)), ("none-0",))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ((), "has no times; expected one at least"),
        (("frame 0",), "has the valid time 'frame 0'; expected ISO 8601 in UTC"),
        (("2022-08-09T15:00:00+02:00",), "without a zone"),
        (("2022-08-09 15:00:00",), "like '2022-08-09T15:00:00'"),
        (("2022-08-09T15:00",), "to the second"),
        (("02022-08-09T15:00:00",), "to the second"),
        (("\uff12\uff10\uff12\uff12-08-09T15:00:00",), "to the second"),
        (("2022-13-09T15:00:00",), "to the second"),
        (("none-00",), "'none-0'"),
        ((datetime(2022, 8, 9, 15),), "the valid time datetime.datetime(2022, 8, 9, 15, 0)"),
        ((np.datetime64("2022-08-09T15:00:00"),), "like '2022-08-09T15:00:00'"),
        (("2022-08-09T15:00:00", "2022-08-09T15:00:00"), "'2022-08-09T15:00:00' 2 times; expected"),
    ],
)
def test_a_time_has_one_spelling_since_noise_is_addressed_by_it(times, message):
    rates = np.zeros((len(times), 2, 2), np.float32)
    with pytest.raises(InputError, match=re.escape(message)):
        PrecipField(rates, Grid(np.arange(2.0), np.arange(2.0)), times)


def test_lists_are_as_good_as_arrays():
    rates = [[[0.0, 1.5], [float("nan"), 2.0]]]
    field = PrecipField(rates, Grid([1, 2], [3.0, 4.0]), ("none-0",))
    np.testing.assert_array_equal(field.frame(0), np.array(rates[0], np.float32))
    assert field.crop(slice(0, 1), slice(0, 2)).frame(0).shape == (1, 2)


@pytest.mark.parametrize(
    ("y", "rates"),
    [
        (["a", "b"], [[[0.0, 0.0]] * 2]),
        ([1, 2], [[[0.0, 0.0], [0.0]]]),
        ([1, 2], [[[10**400, 0.0]] * 2]),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(y, rates):
    with pytest.raises(InputError, match="expected numbers"):
        PrecipField(rates, Grid(y, [3.0, 4.0]), ("none-0",))


def test_what_lies_under_a_mask_is_no_coordinate():
    with pytest.raises(InputError, match="has 1 values that are not finite"):
        Grid(np.ma.masked_array([1.0, 2.0, 3.0], mask=[0, 1, 0]), [3.0, 4.0])


def test_how_many_coordinates_are_not_finite_is_said():
    with pytest.raises(InputError, match=r"'y' has 2 values that are not finite among its 4"):
        Grid(np.array([0.0, np.nan, 2.0, np.inf]), np.arange(2.0), ("y", "x"))
    for values in (np.zeros((2, 2)), np.zeros(0)):
        with pytest.raises(InputError, match=r"'y' has shape \((2, 2|0,)\); expected one dim"):
            Grid(values, np.arange(2.0), ("y", "x"))


DEGREES = ({"units": "degrees_north"}, {"units": "degrees_east"})


def test_a_files_latitudes_end_at_the_poles():
    x, names = np.arange(3.0), ("lat", "lon")
    with pytest.raises(InputError, match=r"^in\.nc: coordinate 'lat' goes from 89.85 to 90.15"):
        Grid.of_file("in.nc", 89.85 + 0.1 * np.arange(4), x, names, DEGREES)
    whole = Grid.of_file("in.nc", np.arange(90.0, -91, -1), x, names, DEGREES)
    assert whole.shape == (181, 3)
    assert whole.refined(10).y[0] == pytest.approx(90.45)  # half a cell around the pole
    metres = ({"units": "m"}, {"units": "m"})
    assert Grid.of_file("in.nc", 1e4 * np.arange(4), x, ("y", "x"), metres).shape == (4, 3)
    with pytest.raises(InputError, match=r"^in\.nc: Coordinate 'lat' has spacings"):
        Grid.of_file("in.nc", np.array([0.0, 1.0, 3.0]), x, names, DEGREES)


@pytest.mark.parametrize("cells", [2, 3, 50])
def test_cells_that_all_lie_at_one_place_are_refused(cells):
    with pytest.raises(InputError, match=rf"'x' has {cells} cells, all at 5; expected"):
        Grid(np.arange(2.0), np.full(cells, 5.0), ("y", "x"))
    assert Grid(np.arange(2.0), np.full(1, 5.0)).shape == (2, 1)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("offset", [0.01, 0.1, 1.0])
def test_transform_round_trip(name, offset):
    transform = PrecipTransform.zero_where_dry(name, offset)
    rates = np.array([0, 0.05, 0.1, 0.3, 1, 20, 150, 400], dtype=np.float32)
    back = transform.inverse(transform.forward(rates))
    np.testing.assert_allclose(back, rates, rtol=1e-4, atol=1e-5)
    assert transform.forward(np.zeros(1, np.float32))[0] == pytest.approx(0, abs=1e-6)
    assert np.isnan(transform.forward(np.array([np.nan], np.float32)))[0]
    # networks draw what no rain has: it is dry too, and finite
    below = transform.inverse(np.array([-30.0, -1.0, -0.01], np.float32))
    assert (below == 0).all()


def test_transforms_are_what_they_are_called():
    assert PrecipTransform.zero_where_dry() == PrecipTransform()
    assert PrecipTransform().forward(np.ones(1, np.float32))[0] == pytest.approx(1.0414, abs=1e-4)
    root = PrecipTransform.zero_where_dry("cube-root", 1.0)
    assert root.forward(np.array([7.0, 26.0], np.float32)) == pytest.approx([1.0, 2.0], abs=1e-6)
    for wrong in (("square", 0.1), ("log10", 0.0), ("log10", np.nan), ("cube-root", 1e10)):
        with pytest.raises(InputError, match="one of log10, cube-root with a positive offset"):
            PrecipTransform.zero_where_dry(*wrong)


def test_standardisation_round_trip():
    scale = SubbandScale((0.5, -1.0), (2.0, 0.1))
    coeffs = RNG.standard_normal((2, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(scale.restore(scale.standardise(coeffs)), coeffs, atol=1e-6)
    with pytest.raises(InputError, match="positive"):
        SubbandScale((0.0,), (0.0,))
