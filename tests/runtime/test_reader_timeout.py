"""What counts as a reading process that hangs, and what does not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from netcdf_files import RAIN, RATE, coordinates, rain_file
from reading_processes import gone, own_reader, stop

from wdm_runtime.errors import InputError
from wdm_runtime.io import child
from wdm_runtime.io.reader import ReaderProcess

DATA = Path(__file__).resolve().parent.parent / "data"


reader = own_reader


def wait_at_most(reader, seconds):
    """From now on: its start, on a busy machine, takes as long as it takes."""
    reader._child._timeout_s = seconds


@pytest.mark.parametrize("option", ["", "--read-timeout"])
def test_a_hang_is_an_error_after_the_time_limit(option, tmp_path):
    with ReaderProcess(timeout_option=option) as reader:
        found = reader.read_field(rain_file(tmp_path / "in.nc"))
        wait_at_most(reader, 1.0)
        first = reader.pid
        stop(first)
        began = time.monotonic()
        with pytest.raises(InputError, match=r"in\.nc: .* no progress for 1 s") as caught:
            found.frame(0)
        # Only the command that has the option names it.
        assert ("--read-timeout" in str(caught.value)) == bool(option)
        assert 0.9 < time.monotonic() - began < 10
        assert gone(first)
        np.testing.assert_array_equal(found.load(), RAIN)


def test_waiting_for_a_core_is_no_hang(tmp_path, monkeypatch):
    """As at nice 19 beside a training: what is ready to run makes no progress for minutes."""
    with ReaderProcess() as reader:
        found = reader.read_field(rain_file(tmp_path / "in.nc"))
        wait_at_most(reader, 2.0)
        pid, began = reader.pid, time.monotonic()
        stop(pid)  # instead of all the others that run
        monkeypatch.setattr(child, "_PROC", tmp_path)
        other = tmp_path / str(pid) / "task" / "7"  # a library may work in a thread of its own
        for folder in (tmp_path / str(pid) / "task" / str(pid), other):
            folder.mkdir(parents=True)
            (folder / "schedstat").write_text("0 0 0\n")

        def starve():
            while (elapsed_s := time.monotonic() - began) < 4:
                new = other / "new"
                new.write_text(f"5000 {int(1e9 * elapsed_s)} 9\n")
                new.rename(other / "schedstat")
                time.sleep(0.05)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        starving = threading.Thread(target=starve)
        starving.start()
        np.testing.assert_array_equal(found.frame(0), RAIN[0])
        starving.join()
        assert reader.pid == pid and time.monotonic() - began > 3.5
        stop(pid)  # blocked, on the same busy machine
        with pytest.raises(InputError, match="no progress for 2 s"):
            found.frame(0)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not say it")
def test_the_kernel_says_how_long_a_process_waits_for_a_core():
    """Two that compute on one core: each has it half of the time."""
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\nwhile True: pass"
    pair = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in "ab"]
    try:
        for one in pair:
            one.stdout.readline()
        began, (before_s,) = time.monotonic(), child._waited_s(pair[0].pid).values()
        while time.monotonic() - began < 20:
            time.sleep(0.1)
            (now_s,) = child._waited_s(pair[0].pid).values()
            if now_s - before_s > 0.2:
                break
        assert 0.2 < now_s - before_s <= time.monotonic() - began + 1
    finally:
        for one in pair:
            one.kill()
            one.communicate()
    assert child._waited_s(pair[0].pid) == {}


def test_a_structure_that_has_no_end_is_an_error_within_seconds(reader, tmp_path):
    """A file that benches/fuzz_inputs.py damaged: HDF5 2.2 walks its structure in circles."""
    shutil.copy(DATA / "hdf5_loop.nc", tmp_path / "in.nc")
    with pytest.raises(InputError, match=r"in\.nc: .*without coming to an end"):
        reader.read_field(tmp_path / "in.nc")
    rain = reader.read_field(rain_file(tmp_path / "in.nc")).load()
    np.testing.assert_array_equal(rain, RAIN)


def test_a_long_read_that_goes_on_is_no_hang(tmp_path):
    path, side, times = tmp_path / "in.nc", 1000, 100
    with netCDF4.Dataset(path, "w") as dataset:
        even = np.arange(side) / 100
        coordinates(dataset, even, even, hours=range(times))
        rain = dataset.createVariable(
            "rain", "f4", ("time", "lat", "lon"), zlib=True, complevel=1, chunksizes=(1, side, side)
        )
        rain.setncatts(RATE)
        for time_index in range(times):
            rain[time_index] = time_index

    def read(timeout_s):
        with ReaderProcess() as reader:
            small = reader.read_field(rain_file(tmp_path / "small.nc"))
            assert small.rate_mm_h.shape == (2, 4, 5)
            wait_at_most(reader, timeout_s)
            began = time.monotonic()
            assert reader.read_field(path).rate_mm_h.shape == (times, side, side)
            return time.monotonic() - began

    whole_s = read(60)
    if whole_s < 1:
        pytest.skip("this machine reads it before a limit could strike")
    read(whole_s / 2)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_limit_that_is_none(timeout_s):
    with pytest.raises(InputError, match="read timeout"):
        ReaderProcess(timeout_s=timeout_s)
