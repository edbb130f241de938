"""Fields and outputs that the tests of the output formats share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wdm_runtime.field import GridMapping, PrecipField, Source, TimeAxis
from wdm_runtime.grid import Grid
from wdm_runtime.io.writer import EnsembleWriter
from wdm_runtime.statistics import StatisticsBlock, StatisticsSpec

FACTOR, MEMBERS = 10, 2
PROVENANCE = {"wdm_input": "in.nc", "wdm_seed": 7}
SPEC = StatisticsSpec(quantiles=(0.25, 0.75), thresholds_mm_h=(0.5, 5.0, 50.0))
HOURS = "hours since 2022-08-09"
VALID_TIMES = ("2022-08-09T15:00:00", "2022-08-09T16:00:00")
BOUNDS = np.array([[14.0, 15.0], [15.0, 16.0]])


@pytest.fixture(autouse=True)
def every_library() -> None:
    """Skips a test where a format cannot be written or read back."""
    pytest.importorskip("zarr")
    pytest.importorskip("xarray")
    pytest.importorskip("eccodes")


def rate_field(rows: int = 3, columns: int = 4, times: int = 2, **source: Any) -> PrecipField:
    """Rates on latitude (descending) and longitude."""
    grid = Grid(
        50.05 - 0.1 * np.arange(rows),
        5.05 + 0.1 * np.arange(columns),
        ("lat", "lon"),
        (
            {"units": "degrees_north", "standard_name": "latitude"},
            {"units": "degrees_east", "standard_name": "longitude"},
        ),
    )
    facts = {
        "variable": "rain",
        "time": TimeAxis("time", HOURS, "standard", np.array([15.0, 16.0])),
    }
    whole = PrecipField(
        np.ones((2, rows, columns), np.float32), grid, VALID_TIMES, Source(**{**facts, **source})
    )
    return whole.at(list(range(times)))


def amount_field() -> PrecipField:
    """Hourly amounts that a time's bounds describe."""
    time = TimeAxis("time", HOURS, "standard", np.array([15.0, 16.0]), BOUNDS, "time_edges")
    return rate_field(
        variable="precip", units="mm", period_h=1.0, cell_methods="time: sum", time=time
    )


def flux_field() -> PrecipField:
    """Fluxes in a projection, with coordinates that say little."""
    grid = Grid(
        1e4 * np.arange(3.0), 1e4 * np.arange(4.0), ("y", "x"), ({"units": "m"}, {"units": "m"})
    )
    mapping = GridMapping(
        "crs",
        {
            "grid_mapping_name": "lambert_azimuthal_equal_area",
            "longitude_of_projection_origin": 10.0,
            "latitude_of_projection_origin": 52.0,
            "false_easting": 0.0,
            "false_northing": 0.0,
            "earth_radius": 6371000.0,
        },
    )
    field = rate_field(
        variable="pr",
        units="kg m-2 s-1",
        standard_name="precipitation_flux",
        cell_methods="time: mean",
        grid_mapping=mapping,
    )
    return replace(field, grid=grid)


def rates(field: PrecipField, time: int, member: int) -> np.ndarray:
    """One fine frame [mm h-1]: dry cells, rain, and a corner that misses at every time."""
    shape = tuple(FACTOR * size for size in field.grid.shape)
    rate = np.random.default_rng([time, member]).gamma(0.5, 4.0, shape)
    rate[rate < 0.5] = 0
    rate[:7, :9] = np.nan
    return rate.astype(np.float32)


def blocks(field: PrecipField, time: int, spec: StatisticsSpec) -> list[StatisticsBlock]:
    """NumPy's statistics in blocks of rows, the last rows first."""
    members = np.stack([rates(field, time, m) for m in range(MEMBERS)]).astype(np.float64)
    found = []
    for first in reversed(range(0, members.shape[1], 7)):
        part = members[:, first : first + 7]
        missing = np.isnan(part[0])
        levels = np.array(spec.thresholds_mm_h)[:, None, None, None]
        exceedance = np.where(missing, np.nan, (part >= levels).mean(axis=1))
        found.append(
            StatisticsBlock(
                first,
                *(
                    array.astype(np.float32)
                    for array in (
                        part.mean(axis=0),
                        part.std(axis=0, ddof=1),
                        np.quantile(part, spec.quantiles, axis=0),
                        exceedance,
                    )
                ),
            )
        )
    return found


def write_output(path: Path, field: PrecipField, **options: Any) -> Path:
    """All members, and statistics if there is a spec."""
    spec, keep = options.get("statistics"), options.get("keep_members", True)
    with EnsembleWriter(path, field, FACTOR, MEMBERS, PROVENANCE, **options) as writer:
        for time in range(len(field.valid_times)):
            for member in range(MEMBERS if keep else 0):
                writer.write(time, member, rates(field, time, member))
            for block in blocks(field, time, spec) if spec else ():
                writer.write_statistics(time, block)
    return path


def write_one(path: Path, field: PrecipField) -> Path:
    """A single member."""
    with EnsembleWriter(path, field, FACTOR, 1, {}) as writer:
        for time in range(len(field.valid_times)):
            writer.write(time, 0, rates(field, time, 0))
    return path


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p): p.read_bytes() for p in files}
