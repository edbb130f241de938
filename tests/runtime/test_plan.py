"""The plan holds what it says, and sizes are read as people write them."""

import gc
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import netCDF4
import numpy as np
import pytest
from netcdf_files import add, coordinates

from wdm_runtime import container
from wdm_runtime.bundle import Bundle
from wdm_runtime.conditioning import most_tiles
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import Grid
from wdm_runtime.io import read_field
from wdm_runtime.machine import available_bytes, available_threads
from wdm_runtime.plan import parse_bytes
from wdm_runtime.presets import Preset
from wdm_runtime.samplers import DETERMINISTIC, SAMPLERS
from wdm_runtime.tiling import Tiling


@pytest.fixture(scope="module")
def wet_field():
    rate = np.random.default_rng(1).gamma(0.5, 4.0, (1, 60, 60)).astype(np.float32)
    return PrecipField(rate, Grid(-0.1 * np.arange(60), 0.1 * np.arange(60)), ("none-0",))


@pytest.mark.parametrize("at_once", [0, 1, 6], ids=["tile", "member", "6 members"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("consistency", ["none", "additive", "multiplicative"])
def test_arrays_take_no_more_memory_than_planned(tiny, wet_field, sampler, consistency, at_once):
    with Downscaler.open(tiny) as downscaler:
        tiles = downscaler.plan(wet_field, preset=Preset(steps=2)).evaluations // 2
    with Downscaler.open(tiny, options=EngineOptions(batch=max(1, tiles * at_once))) as downscaler:
        planned = downscaler.plan(wet_field, members=6, preset=Preset(steps=3)).memory_bytes
        tracemalloc.start()
        for _ in downscaler.downscale(
            wet_field, 6, steps=3, sampler=sampler, consistency=consistency
        ):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # The plan is that of samplers with noise, an array more, with a consistency step, and of the
    # engine that keeps most: ONNX Runtime keeps less than OpenVINO.
    share = 0.35 if sampler in DETERMINISTIC else 0.5
    assert share * planned < peak <= planned


def test_the_plan_counts_what_the_run_does(tiny, wet_field):
    seen = []
    with Downscaler.open(tiny, options=EngineOptions(batch=3)) as downscaler:
        plan = downscaler.plan(wet_field, members=2, preset=Preset(steps=3))
        list(downscaler.downscale(wet_field, 2, steps=3, on_step=seen.append))
    assert sum(step.tiles for step in seen) == plan.evaluations
    assert plan.untiled_share == 0
    dry = replace(wet_field, rate_mm_h=np.zeros((1, 60, 60), np.float32))
    with Downscaler.open(tiny) as downscaler:
        assert downscaler.plan(dry).untiled_share == 1 and downscaler.plan(dry).evaluations == 0


def test_the_plan_counts_what_is_missing(tiny, wet_field):
    rate = np.concatenate([wet_field.rate_mm_h, wet_field.rate_mm_h, wet_field.rate_mm_h])
    rate[1] = np.nan
    rate[2, 20:30, 5:] = np.nan
    field = replace(wet_field, rate_mm_h=rate, valid_times=("none-0", "none-1", "none-2"))
    with Downscaler.open(tiny) as downscaler:
        plan = downscaler.plan(field)
    assert plan.missing == pytest.approx((0, 1, 10 * 55 / 60**2))
    assert plan.missing_share == pytest.approx(np.mean(plan.missing))


@pytest.mark.parametrize("grid", [(16, 16), (17, 16), (32, 48), (83, 65)])
def test_the_tiles_of_rain_everywhere_are_counted(tiny, grid):
    manifest = Bundle.open(tiny).manifest
    size = manifest.tile_px // manifest.wavelet.stride
    assert most_tiles(grid, manifest) == len(Tiling(grid, size, size // 4).tiles)


def test_memory_does_not_grow_with_the_number_of_frames(tiny, tmp_path):
    path = tmp_path / "many.nc"
    with netCDF4.Dataset(path, "w") as data:
        coordinates(data, np.arange(20) * 0.1, np.arange(20) * 0.1, np.arange(120) / 6)
        rain = np.random.default_rng(0).gamma(0.3, 3.0, (120, 20, 20))
        add(data, "rain", rain, units="mm h-1", standard_name="lwe_precipitation_rate")
    field, kept = read_field(path), {}
    with Downscaler.open(tiny) as downscaler:
        for frames in (10, 120):
            tracemalloc.start()
            for _ in downscaler.downscale(field.at(list(range(frames))), steps=2):
                pass
            gc.collect()  # cycles that wait for the collector are no leak
            # Arrays alone: the interpreter's and coverage's own tables grow as they like.
            arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
            ours = tracemalloc.take_snapshot().filter_traces([arrays]).traces
            kept[frames] = sum(trace.size for trace in ours)
            tracemalloc.stop()
    assert kept[10] >= 160_000  # the last frame's result: what is looked at does hold arrays
    assert kept[120] <= kept[10] + 1_600  # one frame's coarse rain


def test_a_domain_too_large_is_refused_before_a_frame_is_read(tiny, wet_field):
    class Unread:
        shape = wet_field.rate_mm_h.shape

        def __getitem__(self, index):
            raise AssertionError("looking at a frame takes memory of its own")

    with (
        Downscaler.open(tiny) as downscaler,
        pytest.raises(InputError, match=r"needs .* MiB .*expected at most 20 MiB"),
    ):
        downscaler.plan(replace(wet_field, rate_mm_h=Unread()), max_bytes=20 * 2**20)


RUN = """
import sys
import numpy as np
from wdm_runtime import Downscaler, Grid, PrecipField
from wdm_runtime.machine import peak_rss_mib
from wdm_runtime.machine import resident_bytes

# So large that the C library gives each array back to the system: above 32 MiB.
rate = np.zeros((1, 220, 440), np.float32)
rate[0, 90:110, 190:210] = 3.0
field = PrecipField(rate, Grid(-0.1 * np.arange(220), 0.1 * np.arange(440)), ("none-0",))
with Downscaler.open(sys.argv[1], engine="ort-cpu") as downscaler:
    downscaler.seconds_per_tile()
    held = resident_bytes()
    planned = downscaler.plan(field).memory_bytes
    for sample in downscaler.downscale(field, 2, steps=3):
        del sample
    peak = int(2**20 * peak_rss_mib())
    print(planned, peak - held, resident_bytes() - held)
"""


def test_the_process_grows_no_more_than_planned_and_gives_memory_back(tiny):
    # What tracemalloc does not see: the memory that the engine keeps for a large field
    done = subprocess.run(
        [sys.executable, "-c", RUN, tiny], capture_output=True, text=True, check=True
    )
    planned, grown, kept = map(int, done.stdout.split())
    assert 0.3 * planned < grown <= planned
    assert kept < 0.5 * grown


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("500 MB", 5 * 10**8), ("1.5gib", 3 * 2**29), ("1000", 1000), ("3k", 3000)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-2GiB", "0", "2 TiB", "1e9", 400 * "9"])
def test_bad_sizes(text):
    with pytest.raises(InputError, match="--max-memory"):
        parse_bytes(text)


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A container of version 2 of control groups, within another one."""
    own = tmp_path / "outer" / "inner"
    own.mkdir(parents=True)
    (tmp_path / "of-process").write_text("1:name=systemd:/elsewhere\n0::/outer/inner\n")
    monkeypatch.setattr(container, "_ROOT", tmp_path)
    monkeypatch.setattr(container, "_OWN", tmp_path / "of-process")

    def limit(folder, name, text):
        (folder / name).write_text(text)

    limit(own, "memory.current", "800\n")
    limit(own, "memory.stat", "anon 500\ninactive_file 200\nactive_file 100\n")
    limit(own, "memory.max", "1000\n")
    limit(own, "cpu.max", "150000 100000\n")
    return own, limit


def test_memory_is_what_a_container_leaves(group):
    own, limit = group
    assert available_bytes() == 1000 - 800 + 200  # what files are cached can be dropped
    for name, text in (("memory.max", "700"), ("memory.current", "600"), ("memory.stat", "anon 1")):
        limit(own.parent, name, text)
    assert available_bytes() == 400  # a limit without that statistic is none we understand
    limit(own.parent, "memory.stat", "inactive_file 0\n")
    assert available_bytes() == 100
    for folder in (own, own.parent):
        limit(folder, "memory.max", "max\n")
    assert available_bytes() > 2**20


def test_threads_are_those_a_container_has_time_for(group):
    own, limit = group
    cores = len(os.sched_getaffinity(0))
    assert available_threads() == min(2, cores)
    limit(own, "cpu.max", "20000 100000\n")
    assert available_threads() == 1
    limit(own, "cpu.max", "max 100000\n")
    assert available_threads() == cores
