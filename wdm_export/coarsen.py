"""Block averages of a fine field, also as a file: test inputs whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import block_mean
from wdm_runtime.io import read_field
from wdm_runtime.io.atomic import check_destination, whole_file
from wdm_runtime.io.cf import cell_methods, output_quantity, output_time, period_note

_ENCODING = {"zlib": True, "complevel": 9, "shuffle": True, "dtype": "float32"}


def coarsen(fine: PrecipField, factor: int) -> PrecipField:
    """Average a fine field over blocks of factor x factor cells.

    Parameters
    ----------
    fine
        (time, y, x) [mm h-1]. Rows and columns at the end that fill no block are left out.
    factor
        Fine cells per coarse cell along one axis.

    Returns
    -------
    (time, y // factor, x // factor) [mm h-1] at the blocks' centres: the mean of a block's valid
    cells, NaN where it has none.

    Raises
    ------
    InputError
        The field is less than one block wide.
    """
    if min(fine.grid.shape) < factor:
        raise InputError(
            f"The fine field has {fine.grid.shape} cells; expected at least {factor} along each "
            "axis. Hand in a larger field."
        )
    y, x = (
        values[: values.size // factor * factor].reshape(-1, factor).mean(axis=1)
        for values in (fine.grid.y, fine.grid.x)
    )
    return replace(
        fine,
        rate_mm_h=block_mean(fine.load(), factor).astype(np.float32),
        grid=replace(fine.grid, y=y, x=x),
        origin=(fine.origin[0] // factor, fine.origin[1] // factor),
    )


def coarsen_file(
    fine: Path,
    coarse: Path,
    truth: Path | None = None,
    crop: str | None = None,
    factor: int = 10,
    overwrite: bool = False,
    variable: str | None = None,
    accumulation_h: float | None = None,
) -> None:
    """Write the block means of a fine field, and the fine field they cover.

    Parameters
    ----------
    fine
        Precipitation on the fine grid, in any format that `read_field` reads.
    coarse, truth
        CF NetCDF files to write; ``truth`` is optional.
    crop
        ``row,column,height,width`` in coarse cells from the first row and column, or everything.
    factor
        Fine cells per coarse cell along one axis.
    variable, accumulation_h
        As for `read_field`.

    Raises
    ------
    InputError
        The factor does not fit the field, or the crop is no four numbers or outside it.
    OutputError
        A file exists or cannot be written.
    """
    for path, other in ((coarse, truth), (truth, None)):
        if path is not None:
            check_destination(path, (fine, other), overwrite)
    field = read_field(fine, variable, accumulation_h)
    if not 1 < factor <= min(field.grid.shape):
        raise InputError(
            f"--factor got {factor}; expected 2 to {min(field.grid.shape)}, the cells of {fine} "
            "along its shorter side. Correct it, or hand in a larger field."
        )
    rows, columns = (n // factor for n in field.grid.shape)
    row, column, height, width = (n * factor for n in _parse(crop, rows, columns))
    field = field.crop(slice(row, row + height), slice(column, column + width))
    means = f"{fine.name}, block means of {factor} x {factor} cells"
    _write(coarse, coarsen(field, factor), means, overwrite)
    if truth is not None:
        _write(truth, field, fine.name, overwrite)


def _parse(crop: str | None, rows: int, columns: int) -> tuple[int, int, int, int]:
    if crop is None:
        return 0, 0, rows, columns
    parts = [part.strip() for part in crop.split(",")]
    if len(parts) == 4 and all(part.isdecimal() for part in parts):
        row, column, height, width = map(int, parts)
        if height > 1 and width > 1 and row + height <= rows and column + width <= columns:
            return row, column, height, width
    raise InputError(
        f"--crop got '{crop}'; expected row,column,height,width of 2 x 2 or more within "
        f"{rows} x {columns} coarse cells. Correct it."
    )


def _write(path: Path, field: PrecipField, origin: str, overwrite: bool) -> None:
    import xarray as xr  # slow to import, and who only averages does without

    (y, x), source, time = field.grid.names, field.source, output_time(field)
    if time is None and len(field.valid_times) > 1:
        raise InputError(
            f"{origin}: {len(field.valid_times)} frames have no valid time; expected times, or one "
            "frame. Give the file a time coordinate."
        )
    quantity = output_quantity(source, "mm h-1")
    attributes = {
        "standard_name": "lwe_precipitation_rate",
        "long_name": quantity.noun,
        "units": quantity.units,
        "cell_methods": cell_methods(source, quantity, time),
    }
    if source.period_h is not None:  # where nothing else in the file says how long
        if time is None:
            attributes["comment"] = f"of sums over {source.period_h:g} hours"
        elif time.bounds is None:
            attributes["cell_methods"] += f" {period_note(source.period_h)}"
    coordinates: dict[str, Any] = {
        y: (y, field.grid.y, field.grid.attributes[0]),
        x: (x, field.grid.x, field.grid.attributes[1]),
    }
    others: dict[str, Any] = {}
    if source.grid_mapping:  # without it nobody knows where metres on a map are
        name = source.grid_mapping.name
        attributes["grid_mapping"] = name
        others[name] = ((), np.int32(0), source.grid_mapping.attributes)
    rates, axes = field.load(), [y, x]
    if time is None:
        rates = rates[0]
    else:
        axes.insert(0, time.name)
        said = {"standard_name": "time", "axis": "T", "units": time.units}
        said["calendar"] = time.calendar
        if time.bounds is not None:
            said["bounds"] = time.bounds_name
            others[time.bounds_name] = ((time.name, "bnds"), time.bounds)
        coordinates[time.name] = (time.name, time.values, said)
    dataset = xr.Dataset(
        {"precipitation_rate": (axes, rates, attributes), **others},
        coords=coordinates,
        attrs={
            "Conventions": "CF-1.11",
            "title": "Precipitation rate",
            "source": origin,
            "history": "wdm-export coarsen",
        },
    )
    encoding: dict[str, dict[str, Any]] = {
        name: {"_FillValue": None}
        for name in (*coordinates, *others)  # which CF has no gaps in
    }
    encoding["precipitation_rate"] = _ENCODING | {"_FillValue": np.float32(-9999)}
    with whole_file(path, overwrite) as temporary:
        dataset.to_netcdf(temporary, engine="netcdf4", encoding=encoding)
