"""Frames are read from their file one by one, when they are asked for."""

from __future__ import annotations

import re
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from netcdf_files import RAIN, RATE, coordinates, rain_file

from wdm_runtime.errors import InputError
from wdm_runtime.io import read_field
from wdm_runtime.io.dataset import Variable, check_fits


def test_a_frame_and_all_frames(tmp_path: Path) -> None:
    found = read_field(rain_file(tmp_path / "in.nc"))
    assert not isinstance(found.rate_mm_h, np.ndarray)
    assert found.rate_mm_h.shape == (2, 4, 5)
    np.testing.assert_array_equal(found.frame(1), RAIN[1])
    np.testing.assert_array_equal(found.rate_mm_h[-1], RAIN[1])
    assert found.frame(1).dtype == np.float32
    np.testing.assert_array_equal(found.load(), RAIN)
    with pytest.raises(IndexError):
        found.rate_mm_h[2]


def test_views_read_later_too(tmp_path: Path) -> None:
    found = read_field(rain_file(tmp_path / "in.nc"))
    np.testing.assert_array_equal(found.at([1]).load(), RAIN[1:])
    cropped = found.crop(slice(1, 3), slice(2, 5))
    np.testing.assert_array_equal(cropped.load(), RAIN[:, 1:3, 2:5])


@pytest.mark.parametrize("rows", [1, -1], ids=["as read", "turned"])
def test_a_frame_alone_is_north_first_and_has_its_own_time(tmp_path: Path, rows: int) -> None:
    found = read_field(rain_file(tmp_path / "in.nc"))
    grid = replace(found.grid, y=found.grid.y[::rows])
    alone = replace(found, rate_mm_h=found.load()[:, ::rows], grid=grid).alone(1)
    south_up = slice(None, None, 1 if found.grid.north_first else -1)
    np.testing.assert_array_equal(alone.load(), RAIN[1:, south_up])
    np.testing.assert_array_equal(alone.grid.y, found.grid.y[south_up])
    assert alone.grid.north_first and alone.valid_times == found.valid_times[1:]
    assert found.source.time is not None and alone.source.time is not None
    assert alone.source.time.values == found.source.time.values[1:]


def test_memory_is_that_of_a_frame(tmp_path: Path) -> None:
    path = tmp_path / "in.nc"
    times, side = 60, 200
    with netCDF4.Dataset(path, "w") as dataset:
        even = np.arange(side) / 10
        coordinates(dataset, even - 10, even, hours=range(times))
        rain = dataset.createVariable(
            "rain", "f4", ("time", "lat", "lon"), zlib=True, chunksizes=(1, side, side)
        )
        rain.setncatts(RATE)
        for time in range(times):
            rain[time] = np.full((side, side), time)
    tracemalloc.start()
    found = read_field(path)
    means = [float(found.frame(time).mean()) for time in range(times)]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert means == list(range(times))
    assert peak_bytes < 15 * 8 * side**2 < 8 * times * side**2 / 3


def test_nothing_stays_open(tmp_path: Path) -> None:
    path = rain_file(tmp_path / "in.nc")
    found = read_field(path)
    found.frame(0)
    open_files = {Path(link).resolve() for link in Path("/proc/self/fd").iterdir()}
    assert path.resolve() not in open_files


@pytest.mark.parametrize("change", ["remove", "replace", "truncate", "append"])
def test_a_file_that_is_not_the_same_any_more(tmp_path: Path, change: str) -> None:
    path = rain_file(tmp_path / "in.nc")
    found = read_field(path)
    if change == "remove":
        path.unlink()
    elif change == "replace":
        rain_file(path, values=RAIN + 1, zlib=1)
    elif change == "truncate":
        path.write_bytes(path.read_bytes()[:100])
    else:
        with netCDF4.Dataset(path, "a") as dataset:
            dataset.comment = "more " * 1000
    with pytest.raises(InputError, match=r"in\.nc: (was changed|cannot be read).*run again"):
        found.frame(0)


def test_faults_in_any_frame_are_found_at_once(tmp_path: Path) -> None:
    values = RAIN.copy()
    values[1, 3, 4] = np.inf
    path = rain_file(tmp_path / "in.nc", values=values)
    with pytest.raises(InputError, match="1 infinite number"):
        read_field(path)


def test_frames_in_threads(tmp_path: Path) -> None:
    fields = [read_field(rain_file(tmp_path / f"{n}.nc", values=RAIN + n)) for n in range(4)]
    found: dict[int, Any] = {}

    def read(n: int) -> None:
        found[n] = np.stack([fields[n].load() for _ in range(5)])

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(4):
        np.testing.assert_array_equal(found[n], np.broadcast_to(RAIN + n, (5, *RAIN.shape)))


def test_what_is_too_large_is_said_to_take_more_than_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wdm_runtime.io.dataset.memory_bytes", lambda: 200 * 2**20)
    plane = Variable("rain", ("y", "x"), (3000, 3000), np.dtype(np.float32), {}, lambda index: None)
    with pytest.raises(InputError, match="MiB of memory") as caught:
        check_fits("in.nc", plane, plane.size)
    needed, allowed = (int(n) for n in re.findall(r"(\d+) MiB", str(caught.value)))
    assert needed > allowed == 200
