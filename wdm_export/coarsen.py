"""Block averages of a fine field, also as a file: test inputs whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import block_mean
from wdm_runtime.io import read_field
from wdm_runtime.io.array_output import NetCDFArrays
from wdm_runtime.io.atomic import check_destination, whole_file
from wdm_runtime.io.layout import FILL_VALUE, field_layout


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
        rate_mm_h=np.stack(  # of a day of fields, one in memory at a time
            [
                block_mean(fine.frame(index), factor).astype(np.float32)
                for index in range(len(fine.valid_times))
            ]
        ),
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
    if not 1 < factor <= min(field.grid.shape) // 2:
        raise InputError(
            f"--factor got {factor}; expected 2 to {min(field.grid.shape) // 2}, half the cells of "
            f"{fine} along its shorter side. Correct it, or hand in a larger field."
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
    layout = field_layout(field, "precipitation_rate")
    has_time = len(layout.variables[-1].dimensions) > 2
    attributes = {
        "Conventions": "CF-1.11",
        "title": "Precipitation rate",
        "source": origin,
        "history": "wdm-export coarsen",
    }
    with whole_file(path, overwrite) as temporary:
        arrays = NetCDFArrays(temporary, layout)
        try:
            for index in range(len(field.valid_times)):
                rates = field.frame(index)
                values = np.where(np.isnan(rates), FILL_VALUE, rates)
                arrays.put(layout.name, (*(index,) * has_time, slice(None)), values)
            arrays.finish(attributes)
        except BaseException:
            arrays.abandon()
            raise
