"""The plot: what is read from an output, what is refused, and that a picture comes out."""

import sys
from dataclasses import replace
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from output_files import SPEC, VALID_TIMES, amount_field, rates, write_output

from wdm_runtime.cli import app
from wdm_runtime.errors import InputError, MissingDependencyError, OutputError
from wdm_runtime.input_hash import hash_of
from wdm_runtime.io.ensemble import read_frame
from wdm_runtime.plot import plot_ensemble, rate_scale

pytest.importorskip("matplotlib")

FACTOR, MEMBERS, TIMES = 10, 4, 2
COARSE_Y, COARSE_X = np.array([35.55, 35.45, 35.35]), np.array([-98.0, -97.9, -97.8, -97.7])
FILL = -9999.0


def fine(centres):
    step = centres[1] - centres[0]
    offsets = (np.arange(FACTOR) - (FACTOR - 1) / 2) / FACTOR * step
    return (centres[:, None] + offsets).ravel()


def write_coordinates(dataset, y, x, hours, units=("degrees_north", "degrees_east")):
    for name, values, unit in (("lat", y, units[0]), ("lon", x, units[1])):
        dataset.createDimension(name, len(values))
        dataset.createVariable(name, "f8", (name,)).units = unit
        dataset[name][:] = values
    dataset.createDimension("time", len(hours))
    time = dataset.createVariable("time", "f8", ("time",))
    time.setncatts({"units": "hours since 2022-06-01", "calendar": "standard"})
    time[:] = hours


def rates_mm_h():
    """(time, member, y, x): member m has m mm/h at time 0 and 10 + m at time 1; a corner misses."""
    shape = (TIMES, MEMBERS, FACTOR * COARSE_Y.size, FACTOR * COARSE_X.size)
    rates = np.zeros(shape) + np.arange(MEMBERS)[None, :, None, None]
    rates[1] += 10
    rates[:, :, :12, :15] = np.nan
    return rates


def make(folder, units="mm h-1", per_mm_h=1.0, flip=False, hours=(3, 4)):
    """An output and its coarse input as `wdm-run infer` leaves them."""
    y = COARSE_Y[::-1] if flip else COARSE_Y
    rates = rates_mm_h()[:, :, ::-1] if flip else rates_mm_h()
    with netCDF4.Dataset(folder / "coarse.nc", "w") as dataset:
        write_coordinates(dataset, y, COARSE_X, hours)
        rain = dataset.createVariable("rain", "f4", ("time", "lat", "lon"), fill_value=FILL)
        rain.units = units
        rain[:] = np.full(rain.shape, 1.5 * per_mm_h)
        other = dataset.createVariable("rainfall_rate", "f4", ("time", "lat", "lon"))
        other.units = units  # a second field: the output's name says which was used
        other[:] = np.full(rain.shape, 7 * per_mm_h)
    with netCDF4.Dataset(folder / "out.nc", "w") as dataset:
        write_coordinates(dataset, fine(y), fine(COARSE_X), hours)
        dataset.createDimension("realization", MEMBERS)
        dimensions = ("time", "realization", "lat", "lon")
        rain = dataset.createVariable("rain", "f4", dimensions, fill_value=FILL)
        rain.units = units
        rain[:] = np.where(np.isnan(rates), FILL, rates * per_mm_h)
        dataset.setncatts({"wdm_input": "coarse.nc", "wdm_bundle": "tiny", "wdm_seed": 5})
        dataset.wdm_input_sha256 = hash_of(folder / "coarse.nc")
    return folder / "out.nc"


def png_size(path):
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


@pytest.mark.parametrize(("units", "per_mm_h"), [("mm h-1", 1.0), ("kg m-2 s-1", 1 / 3600)])
def test_frame_is_in_mm_h_with_missing_cells_kept(tmp_path, units, per_mm_h):
    frame = read_frame(make(tmp_path, units, per_mm_h), time=1, member=2, threshold=11.5)
    missing = np.isnan(rates_mm_h()[0, 0])
    for values, expected in (
        (frame.member_mm_h, 12.0),
        (frame.mean_mm_h, 11.5),
        (frame.probability, 0.5),
    ):
        np.testing.assert_array_equal(np.isnan(values), missing)
        np.testing.assert_allclose(values[~missing], expected, rtol=1e-6)
    assert (frame.valid_time, frame.members) == ("2022-06-01T04:00:00", MEMBERS)
    assert frame.grid.north_first and frame.grid.is_latlon


@pytest.mark.parametrize(
    ("text", "index"), [("1", 1), ("-1", 1), ("2022-06-01T03", 0), ("2022-06-01 04:00/", 1)]
)
def test_a_time_is_named_as_for_infer(tmp_path, text, index):
    frame = read_frame(make(tmp_path), text, member=2, threshold=1.0)
    assert (frame.index, frame.valid_time) == (index, f"2022-06-01T0{3 + index}:00:00")
    assert np.nanmax(frame.member_mm_h) == 2 + 10 * index


def test_a_zarr_store_reads_as_netcdf_does(tmp_path):
    pytest.importorskip("zarr")
    paths = tmp_path / "a.nc", tmp_path / "a.zarr"
    one, other = (read_frame(write_output(p, amount_field()), "-1", 1, 2.0) for p in paths)
    for name in ("member_mm_h", "mean_mm_h", "probability"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert np.isnan(other.member_mm_h).any()
    np.testing.assert_array_equal(one.grid.y, other.grid.y)
    np.testing.assert_array_equal(one.grid.x, other.grid.x)
    assert (one.valid_time, one.variable) == (other.valid_time, other.variable)
    assert one.provenance == other.provenance


@pytest.mark.parametrize(("threshold", "share"), [(0.5, 0.75), (1.0, 0.75), (3.0, 0.25), (9, 0)])
def test_probability_counts_members_at_or_above_the_threshold(tmp_path, threshold, share):
    frame = read_frame(make(tmp_path), 0, 0, threshold)
    assert np.nanmin(frame.probability) == np.nanmax(frame.probability) == np.float32(share)


def test_one_missing_member_makes_mean_and_probability_missing(tmp_path):
    output = make(tmp_path)
    with netCDF4.Dataset(output, "a") as dataset:
        dataset["rain"][0, 3, 20, 30] = np.ma.masked
    frame = read_frame(output, 0, 1, 1.0)
    assert frame.member_mm_h[20, 30] == 1
    assert np.isnan(frame.mean_mm_h[20, 30]) and np.isnan(frame.probability[20, 30])


def test_colours_tell_dry_missing_and_levels_apart():
    colours, norm = rate_scale()
    values = np.ma.masked_invalid([0.0, 0.09, 0.1, 0.49, 0.5, 99.0, 100.0, 500.0, np.nan])
    drawn = [tuple(c) for c in colours(norm(values))]
    assert drawn[0] == drawn[1] == (1, 1, 1, 1)
    assert drawn[2] == drawn[3] and drawn[6] == drawn[7]
    assert len(set(drawn)) == 6


@pytest.mark.parametrize("flip", [False, True])
def test_picture_shows_north_up_and_leaves_nothing_else(tmp_path, flip):
    from matplotlib.image import imread

    output, figure = make(tmp_path, flip=flip), tmp_path / "figure.png"
    before = {p.name for p in tmp_path.iterdir()}
    plot_ensemble(output, figure, None, time=0, member=1, threshold=1.0)
    assert {p.name for p in tmp_path.iterdir()} - before == {"figure.png"}
    width, height = png_size(figure)
    assert 1100 < width < 2000 and 800 < height < 1600
    grey = np.abs(imread(figure)[..., :3] - 0xD4 / 255).max(axis=-1) < 0.01
    # missing is the north-west corner of three of four panels: of each quarter, its upper left
    upper_right = grey[: height // 2, width // 2 :]
    rows, columns = np.nonzero(upper_right)
    assert rows.size > 5000
    assert np.median(rows) < upper_right.shape[0] / 2
    assert np.median(columns) < upper_right.shape[1] / 2


def test_drawing_does_not_touch_matplotlibs_global_state(tmp_path):
    absent = "matplotlib.pyplot" not in sys.modules
    plot_ensemble(make(tmp_path), tmp_path / "f.svg", tmp_path / "coarse.nc", 1, 0, 5.0)
    assert ("matplotlib.pyplot" not in sys.modules) == absent
    assert b"<svg" in (tmp_path / "f.svg").read_bytes()[:2000]


def test_coarse_input_is_found_in_the_current_folder(tmp_path, monkeypatch):
    output = make(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "coarse.nc").rename(elsewhere / "coarse.nc")
    with pytest.raises(InputError, match=r"coarse.nc.*--input"):
        plot_ensemble(output, tmp_path / "f.png", None, 0, 0, 5.0)
    monkeypatch.chdir(elsewhere)
    plot_ensemble(output, tmp_path / "f.png", None, 0, 0, 5.0)
    assert png_size(tmp_path / "f.png")
    # A newer file of that name with the same cells and times is another input.
    with netCDF4.Dataset(elsewhere / "coarse.nc", "a") as dataset:
        dataset["rain"][:] = 3
    with pytest.raises(InputError, match=r"SHA-256 [0-9a-f]{64}; expected [0-9a-f]{64}.*--input"):
        plot_ensemble(output, tmp_path / "f.png", None, 0, 0, 5.0)


def test_the_input_is_found_where_the_run_had_it(tmp_path, monkeypatch):
    """By a path relative to the folder of the run, as `replay` finds it."""
    output = make(tmp_path)
    for name in ("in", "run", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "coarse.nc").rename(tmp_path / "in" / "coarse.nc")
    with netCDF4.Dataset(output, "a") as dataset:
        dataset.wdm_input = "../in/coarse.nc"
    output = output.rename(tmp_path / "out" / "out.nc")
    monkeypatch.chdir(tmp_path / "run")
    plot_ensemble(Path("../out/out.nc"), tmp_path / "f.png", None, 0, 0, 5.0)
    output.rename(tmp_path / "run" / "out.nc")
    monkeypatch.chdir("/")  # the output still lies in the folder of the run
    plot_ensemble(tmp_path / "run" / "out.nc", tmp_path / "f.png", None, 0, 0, 5.0)
    assert png_size(tmp_path / "f.png")


def test_the_part_that_was_selected_is_drawn(tmp_path):
    """The output holds one time and a window of its input."""
    output = make(tmp_path)
    with netCDF4.Dataset(tmp_path / "coarse.nc", "w") as dataset:
        east = COARSE_X[-1] + 0.1 * np.arange(1, 4)
        write_coordinates(dataset, COARSE_Y, np.concatenate((COARSE_X, east)), (2, 3, 4))
        rain = dataset.createVariable("rain", "f4", ("time", "lat", "lon"))
        rain.units = "mm"
        rain[:] = np.full(rain.shape, 1.5)
    with netCDF4.Dataset(output, "a") as dataset:
        dataset.wdm_input_sha256 = hash_of(tmp_path / "coarse.nc")
    with pytest.raises(InputError, match="--accumulation"):
        plot_ensemble(output, tmp_path / "f.png", None, 0, 0, 5.0)
    with netCDF4.Dataset(output, "a") as dataset:
        dataset.setncatts({"wdm_time": "2022-06-01T03:00/", "wdm_bbox": "-98.05,35.3,-97.65,35.6"})
        dataset.wdm_accumulation = "1h"
    plot_ensemble(output, tmp_path / "f.png", None, 0, 0, 5.0)
    assert png_size(tmp_path / "f.png")


def test_a_variable_chosen_by_its_path_is_drawn(tmp_path):
    output = make(tmp_path)
    with netCDF4.Dataset(tmp_path / "coarse.nc", "w") as dataset:
        write_coordinates(dataset, COARSE_Y, COARSE_X, (3, 4))
        for path in ("A/rain", "B/rain"):
            rain = dataset.createVariable(path, "f4", ("time", "lat", "lon"))
            rain.units = "mm h-1"
            rain[:] = np.full(rain.shape, 1.5)
    with netCDF4.Dataset(output, "a") as dataset:
        dataset.wdm_input_sha256 = hash_of(tmp_path / "coarse.nc")
        dataset.wdm_variable = "B/rain"
    plot_ensemble(output, tmp_path / "f.png", None, 0, 0, 5.0)
    assert png_size(tmp_path / "f.png")


def test_one_of_several_frames_without_time_is_drawn(tiny, field, tmp_path, monkeypatch):
    """In the output, which has that one alone, it is the first."""
    monkeypatch.chdir(tmp_path)
    with netCDF4.Dataset("coarse.nc", "w") as dataset:
        for name, values, units in zip(
            ("lat", "lon"), (field.grid.y, field.grid.x), ("degrees_north", "degrees_east"),
            strict=True,
        ):  # fmt: skip
            dataset.createDimension(name, values.size)
            dataset.createVariable(name, "f8", (name,))[:] = values
            dataset[name].units = units
        dataset.createDimension("time", 2)
        rain = dataset.createVariable("rain", "f4", ("time", "lat", "lon"))
        rain.units = "mm h-1"
        rain[:] = field.load()
    options = ["--bundle", str(tiny), "--steps", "2", "--time", "1", "-o", "fine.nc"]
    app(["infer", "coarse.nc", *options, "--no-pixel-probe"], standalone_mode=False)
    plot_ensemble(Path("fine.nc"), Path("f.png"), None, 0, 0, 5.0)
    assert png_size(tmp_path / "f.png")


def test_another_coarse_input_is_refused(tmp_path):
    output = make(tmp_path)
    later = tmp_path / "later"
    later.mkdir()
    make(later, hours=(5, 6))
    with pytest.raises(InputError, match=r"05:00:00.*expected.*03:00:00"):
        plot_ensemble(output, tmp_path / "f.png", later / "coarse.nc", 0, 0, 5.0)
    make(later, flip=True)
    with pytest.raises(InputError, match="--input"):
        plot_ensemble(output, tmp_path / "f.png", later / "coarse.nc", 0, 0, 5.0)


@pytest.mark.parametrize(
    ("time", "member", "threshold", "message"),
    [
        (2, 0, 5.0, r"out.nc has 2 times from .*; expected an index from -2 to 1, got 2"),
        (-3, 0, 5.0, r"expected an index from -2 to 1, got -3"),
        ("2022-06-01", 0, 5.0, r"2 times within '2022-06-01', from .*T03:00:00 to .*expected one"),
        ("2022-06-02", 0, 5.0, r"expected at least one within '2022-06-02'"),
        ("noon", 0, 5.0, r"Got the time 'noon'; expected an index"),
        (0, 4, 5.0, r"member 4; expected 0 to 3"),
        (0, -1, 5.0, r"member -1; expected 0 to 3"),
        (0, 0, 0.0, r"threshold of 0 mm/h; expected a positive"),
        (0, 0, float("nan"), r"threshold of nan mm/h; expected a positive"),
    ],
)
def test_numbers_out_of_range(tmp_path, time, member, threshold, message):
    with pytest.raises(InputError, match=message):
        plot_ensemble(make(tmp_path), tmp_path / "f.png", None, time, member, threshold)
    assert not (tmp_path / "f.png").exists()


def test_amounts_are_drawn_as_rates_and_statistics_alone_are_refused(tmp_path):
    amounts = write_output(tmp_path / "amount.nc", amount_field(), statistics=SPEC)
    frame = read_frame(amounts, 1, 0, 5.0)
    np.testing.assert_array_equal(frame.member_mm_h, rates(amount_field(), 1, 0))
    assert (frame.variable, frame.valid_time) == ("precip", VALID_TIMES[1])
    half = replace(amount_field(), source=replace(amount_field().source, period_h=0.5))
    write_output(amounts, half, overwrite=True)
    expected = rates(amount_field(), 1, 0)
    np.testing.assert_allclose(read_frame(amounts, 1, 0, 5.0).member_mm_h, expected, rtol=1e-6)
    write_output(amounts, half, overwrite=True, statistics=SPEC, keep_members=False)
    with pytest.raises(InputError, match=r"statistics and no members.*keeps the members"):
        read_frame(amounts, 1, 0, 5.0)


def test_other_files_are_refused(tmp_path):
    make(tmp_path)
    (tmp_path / "text.nc").write_text("no NetCDF")
    for name, found in (
        ("coarse.nc", "is no output"),
        ("text.nc", "cannot be read"),
        ("absent.nc", "cannot be read"),
        ("absent.zarr", "cannot be read"),
    ):
        with pytest.raises(InputError, match=f"{name}: {found}.*'wdm-run infer'"):
            plot_ensemble(tmp_path / name, tmp_path / "f.png", None, 0, 0, 5.0)


def test_figures_that_cannot_be_written(tmp_path):
    output = make(tmp_path)
    for name, message in (
        ("no/f.png", r"folder .* does not exist"),
        ("f.nc", r"has suffix '.nc'; expected one of .*\.png"),
        ("f", r"has suffix ''.*--figure"),
    ):
        with pytest.raises(OutputError, match=message):
            plot_ensemble(output, tmp_path / name, None, 0, 0, 5.0)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="not a regular file"):
        plot_ensemble(output, tmp_path / "folder.png", None, 0, 0, 5.0)
    assert not list(tmp_path.glob(".*.tmp"))


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"'\.\[plot\]' in the clone"):
        plot_ensemble(make(tmp_path), tmp_path / "f.png", None, 0, 0, 5.0)
