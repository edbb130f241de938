"""A file is read in a process of its own: what ends or stops that process harms nothing else."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from bad_files import grib, netcdf, odim
from netcdf_files import RAIN, coordinates, rain_file
from reading_processes import gone, own_reader, stop

import wdm_runtime
from wdm_runtime.errors import InputError
from wdm_runtime.io import read_field
from wdm_runtime.io.child import search_path

DATA = Path(__file__).resolve().parent.parent / "data"


reader = own_reader


def same(found, expected):
    np.testing.assert_array_equal(found.load(), expected.load())
    np.testing.assert_array_equal(found.grid.y, expected.grid.y)
    np.testing.assert_array_equal(found.grid.x, expected.grid.x)
    assert found.grid.names == expected.grid.names
    assert str(found.grid.attributes) == str(expected.grid.attributes)
    assert found.valid_times == expected.valid_times
    assert str(found.source) == str(expected.source)


def mapped(folder):
    """Projected, packed, with bounds and a grid mapping full of arrays."""
    path = folder / "in.nc"
    with netCDF4.Dataset(path, "w") as dataset:
        coordinates(dataset, 1e4 * np.arange(4), 1e4 * np.arange(5), names=("time", "y", "x"))
        for name in "yx":
            dataset[name].units = "m"
            dataset[name].standard_name = f"projection_{name}_coordinate"
        dataset["time"].bounds = "time_bnds"
        dataset.createDimension("nv", 2)
        bounds = dataset.createVariable("time_bnds", "f8", ("time", "nv"))
        bounds[:] = [[-1, 0], [0, 1]]
        crs = dataset.createVariable("crs", "i4", ())
        crs.setncatts(
            {
                "grid_mapping_name": "lambert_conformal_conic",
                "standard_parallel": np.array([25.0, 60.0]),
                "longitude_of_central_meridian": np.float32(10.5),
                "note": "größer",
            }
        )
        rain = dataset.createVariable("rain", "i2", ("time", "y", "x"), fill_value=-1)
        rain.setncatts({"units": "mm", "scale_factor": 0.125, "grid_mapping": "crs"})
        rain.setncatts({"standard_name": "lwe_thickness_of_precipitation_amount"})
        rain[:] = RAIN
    return path


@pytest.mark.parametrize("make", [netcdf, grib, odim, mapped])
def test_what_comes_over_is_what_is_read_here(make, reader, tmp_path):
    path = make(tmp_path)
    same(reader.read_field(path), read_field(path, isolate=False))


@pytest.mark.parametrize("make", [netcdf, grib, odim])
def test_good_files_wear_nothing_out(make, reader, tmp_path):
    path = make(tmp_path)
    pids = []
    for _ in range(3):
        reader.read_field(path).load()
        pids.append(reader.pid)
    assert len(set(pids)) == 1


def test_one_process_reads_many_files(reader, tmp_path):
    fields = [reader.read_field(rain_file(tmp_path / f"{n}.nc", values=RAIN + n)) for n in range(5)]
    pid = reader.pid
    for n in (3, 0, 4, 1, 2):
        np.testing.assert_array_equal(fields[n].load(), RAIN + n)
    assert reader.pid == pid is not None and pid != os.getpid()


@pytest.mark.parametrize("make", [netcdf, odim])
def test_what_a_damaged_file_left_behind_does_not_spoil_the_next(make, reader, tmp_path):
    """HDF5 keeps some damaged files open, and takes a good one of the same inode for them."""
    path = make(tmp_path)
    good = path.read_bytes()
    expected = read_field(path, isolate=False).load()
    refused = 0
    for at in range(8, min(len(good), 2000), 13):
        damaged = bytearray(good)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)  # in place
        try:
            reader.read_field(path)
        except InputError:
            refused += 1
        path.write_bytes(good)
        np.testing.assert_array_equal(reader.read_field(path).load(), expected)
        held = [os.path.realpath(link) for link in Path(f"/proc/{reader.pid}/fd").iterdir()]
        assert str(path.resolve()) not in held
    assert refused


def test_without_the_process_a_good_file_has_to_be_moved_into_its_place(tmp_path):
    path, new = odim(tmp_path), tmp_path / "new"
    good = path.read_bytes()
    expected = read_field(path, isolate=False).load()
    refused = 0
    for at in range(8, min(len(good), 2000), 13):
        damaged = bytearray(good)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        with suppress(InputError):
            read_field(path, isolate=False)
        path.write_bytes(good)  # in place
        try:
            read_field(path, isolate=False)
        except InputError:
            refused += 1
        new.write_bytes(good)
        os.replace(new, path)
        np.testing.assert_array_equal(read_field(path, isolate=False).load(), expected)
    assert refused, "HDF5 keeps nothing open any more: the docstring of read_field is out of date"


def test_errors_have_the_same_text_and_leave_the_process_alive(reader, tmp_path):
    path = rain_file(tmp_path / "in.nc", units="K")
    with pytest.raises(InputError) as here:
        read_field(path, isolate=False)
    with pytest.raises(InputError) as there:
        reader.read_field(path)
    assert str(here.value) == str(there.value)
    pid = reader.pid
    reader.read_field(rain_file(tmp_path / "good.nc"))
    assert reader.pid == pid


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_an_error_and_the_next_read_works(number, reader, tmp_path):
    path = rain_file(tmp_path / "in.nc")
    found = reader.read_field(path)
    first = reader.pid
    stop(first)  # in the middle of a read

    def strike():
        os.kill(first, number)
        with suppress(ProcessLookupError):  # SIGKILL does not wait for it to go on
            os.kill(first, signal.SIGCONT)

    killer = threading.Timer(0.5, strike)
    killer.start()
    with pytest.raises(InputError, match=rf"in\.nc: reading it ended .* \({number.name}\)"):
        found.frame(0)
    killer.join()
    assert gone(first)
    np.testing.assert_array_equal(found.load(), RAIN)  # read again by a new one
    assert reader.pid != first


def test_a_file_that_changed_is_refused_after_a_crash_too(reader, tmp_path):
    path = rain_file(tmp_path / "in.nc")
    found = reader.read_field(path)
    os.kill(reader.pid, signal.SIGKILL)
    path.unlink()
    rain_file(path, units="K")
    with pytest.raises(InputError):
        found.frame(0)


def test_fields_nobody_holds_are_forgotten_there(reader, tmp_path):
    found = reader.read_field(rain_file(tmp_path / "in.nc"))
    reader._forgotten.clear()
    del found
    gc.collect()
    assert len(reader._forgotten) == 1
    kept = reader.read_field(rain_file(tmp_path / "other.nc"))
    assert not reader._forgotten and kept.rate_mm_h.shape


def test_ctrl_c_while_reading_is_no_answer_to_the_next_question(reader, tmp_path):
    paths = [rain_file(tmp_path / f"{n}.nc", values=RAIN + n) for n in range(2)]
    first = reader.read_field(paths[0])
    stop(reader.pid)
    pid = reader.pid
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            first.frame(0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert gone(pid)
    np.testing.assert_array_equal(reader.read_field(paths[1]).load(), RAIN + 1)
    np.testing.assert_array_equal(first.load(), RAIN)


def test_the_current_folder_is_not_where_code_comes_from(tmp_path):
    """Untrusted files lie there."""
    (tmp_path / "netCDF4.py").write_text("raise SystemExit('imported')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported')")
    path = rain_file(tmp_path / "in.nc")
    code = (
        "import sys; sys.path.remove('')\n"
        f"from wdm_runtime import read_field; print(read_field({path.name!r}).load().sum())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == RAIN.sum()


def test_the_reading_process_searches_in_this_one_s_order(monkeypatch):
    """An installed package has all others beside it: their folder must not come first for that."""
    package = str(Path(wdm_runtime.__file__).resolve().parent.parent)
    monkeypatch.setattr(sys, "path", ["", "/first", package, "/last"])
    assert search_path() == ["/first", package, "/last"]
    monkeypatch.setattr(sys, "path", ["", "/first"])  # found by way of the current folder
    assert search_path() == [package, "/first"]


def test_relative_paths_are_those_of_the_moment(reader, tmp_path, monkeypatch):
    rain_file(tmp_path / "in.nc")
    reader.start()
    monkeypatch.chdir(tmp_path)
    found = reader.read_field("in.nc")
    assert found.source.path == "in.nc"
    monkeypatch.chdir("/")
    os.kill(reader.pid, signal.SIGKILL)
    with pytest.raises(InputError):
        found.frame(0)  # said once
    np.testing.assert_array_equal(found.load(), RAIN)


def test_a_folder_that_is_gone_matters_to_relative_paths_alone(reader, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    rain_file(tmp_path / "in.nc")
    rain_file(tmp_path / "gone" / "in.nc")
    monkeypatch.chdir(tmp_path / "gone")
    absolute, relative = reader.read_field(tmp_path / "in.nc"), reader.read_field("in.nc")
    monkeypatch.chdir("/")
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(InputError, match=r"in\.nc: cannot be read"):
        relative.frame(0)
    np.testing.assert_array_equal(absolute.load(), RAIN)


def test_a_field_stays_readable_when_another_is_read_from_elsewhere(reader, tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        rain_file(tmp_path / name / f"{name}.nc")
    monkeypatch.chdir(tmp_path / "a")
    first = reader.read_field("a.nc")
    monkeypatch.chdir(tmp_path / "b")
    second = reader.read_field("b.nc")
    for found in (first, second, first):
        np.testing.assert_array_equal(found.load(), RAIN)


def test_warnings_come_over(reader, tmp_path):
    path = tmp_path / "in.nc"
    rain_file(path)
    with netCDF4.Dataset(path, "a") as dataset:
        dataset["rain"].setncatts({"scale_factor": 1e308})
    with warnings.catch_warnings(record=True) as here:
        warnings.simplefilter("always")
        with pytest.raises(InputError):
            read_field(path, isolate=False)
    with warnings.catch_warnings(record=True) as there:
        warnings.simplefilter("always")
        with pytest.raises(InputError):
            reader.read_field(path)
    texts = [{str(w.message) for w in caught} for caught in (here, there)]
    assert texts[0] == texts[1] != set()
