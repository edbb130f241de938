"""Fields that one tile of the tiny bundle covers, and NumPy's loop over states of one tile."""

import netCDF4
import numpy as np
from netcdf_files import RATE, add, coordinates

from wdm_runtime.field import PrecipField
from wdm_runtime.fused import integrate_on_engine
from wdm_runtime.grid import Grid
from wdm_runtime.presets import Preset
from wdm_runtime.samplers import integrate

CELLS = 24
TILE = (16, 16, 16)


def shower_mm_h(frames=1, wide=False):
    """A shower in a corner of a dry domain, which one tile covers; ``wide``: which none does."""
    rate = np.zeros((frames, CELLS, CELLS), np.float32)
    rate[:, 1, 1] = 5.0 + np.arange(frames)
    if wide:
        rate[:, 20, 20] = 9.0
    return rate


def shower_field(rate_mm_h):
    grid = Grid(40 - 0.1 * np.arange(CELLS), -99 + 0.1 * np.arange(CELLS))
    times = tuple(f"2022-08-09T15:{i:02}:00" for i in range(len(rate_mm_h)))
    return PrecipField(rate_mm_h, grid, times)


def alone(path):
    """The shower as a file."""
    with netCDF4.Dataset(path, "w") as data:
        latitude, longitude = 30 + 0.1 * np.arange(CELLS), -99 + 0.1 * np.arange(CELLS)
        coordinates(data, latitude, longitude, np.zeros(1))
        add(data, "precipitation_rate", shower_mm_h(), **RATE)
    return path


def first_steps(bundle, sampler, count):
    return Preset(sampler, count).plan(bundle.manifest.schedule)


def loop(run, given, steps):
    """What NumPy's loop makes of x, condition and noise with a score graph's ``run``."""
    x, condition, noise = given

    def network(x, t):
        return run({"x": x, "condition": condition, "t": np.array([t], dtype=np.float32)})

    return integrate(network, x, steps, noise.__getitem__, lambda _: None)


def numbers(tiles, steps, seed=0):
    """x, condition and the noise of each step but the last, of the tiny bundle's tiles."""
    x, condition, *noise = np.random.default_rng(seed).standard_normal(
        (steps + 1, tiles, *TILE), dtype=np.float32
    )
    return x, condition, noise


def integrated(engine, given, steps):
    """What a fused step makes of them."""
    x, condition, noise = given
    return integrate_on_engine(engine, x, condition, steps, noise.__getitem__, None)
