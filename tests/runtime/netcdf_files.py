"""NetCDF files and fields that the tests of reader and writer share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
from hypothesis import HealthCheck, settings

from wdm_runtime.field import PrecipField, Source
from wdm_runtime.grid import Grid
from wdm_runtime.io.writer import EnsembleWriter

LAT = np.array([50.05, 50.15, 50.25, 50.35])
LON = np.array([5.05, 5.15, 5.25, 5.35, 5.45])
RAIN = np.arange(40, dtype=np.float64).reshape(2, 4, 5) / 8  # exact in float32
FEW_FILES = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HOURS = "hours since 2022-08-09 15:00:00"
RATE = {"units": "mm h-1", "standard_name": "lwe_precipitation_rate"}


def coordinates(
    group: netCDF4.Dataset,
    lat: np.ndarray = LAT,
    lon: np.ndarray = LON,
    hours: Any = (0, 1),
    names: tuple[str, str, str] = ("time", "lat", "lon"),
) -> None:
    units = (HOURS, "degrees_north", "degrees_east")
    for name, unit, values in zip(names, units, (hours, lat, lon), strict=True):
        group.createDimension(name, len(values))
        coordinate = group.createVariable(name, "f8", (name,))
        coordinate.units = unit
        coordinate[:] = values


def add(
    group: netCDF4.Dataset,
    name: str,
    values: Any = RAIN,
    dimensions: tuple[str, ...] = ("time", "lat", "lon"),
    dtype: str = "f4",
    fill_value: Any = None,
    **attributes: Any,
) -> netCDF4.Variable:
    variable = group.createVariable(name, dtype, dimensions, fill_value=fill_value)
    variable.setncatts(attributes)
    variable[:] = values
    return variable


def rain_file(path: Path, name: str = "rain", **options: Any) -> Path:
    with netCDF4.Dataset(path, "w") as dataset:
        coordinates(dataset)
        add(dataset, name, **{**RATE, **options})
    return path


def field(rows: int = 3, columns: int = 4, times: int = 2, **source: Any) -> PrecipField:
    grid = Grid(
        50.05 - 0.1 * np.arange(rows),
        5.05 + 0.1 * np.arange(columns),
        ("lat", "lon"),
        (
            {"units": "degrees_north", "standard_name": "latitude"},
            {"units": "degrees_east", "standard_name": "longitude"},
        ),
    )
    rates = np.ones((times, rows, columns), np.float32)
    valid = tuple(f"none-{index}" for index in range(times))
    return PrecipField(rates, grid, valid, Source(**{"variable": "rain", **source}))


def write_all(
    path: Path, coarse: PrecipField, factor: int = 2, members: int = 1, **kw: Any
) -> None:
    with EnsembleWriter(path, coarse, factor, members, {}, **kw) as writer:
        for time in range(len(coarse.valid_times)):
            for member in range(members):
                writer.write(time, member, np.full(writer.grid.shape, time + member, np.float32))
