"""Labelled arrays: coarse precipitation in an `xarray.DataArray`, the fine ensemble in another."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.consistency import DEFAULT_CONSISTENCY
from wdm_runtime.downscale import Downscaler, Sample
from wdm_runtime.errors import InputError, require
from wdm_runtime.field import PrecipField, TimeAxis
from wdm_runtime.io.cf import plain
from wdm_runtime.io.layout import FILL_VALUE, Layout, Variable, layout_of
from wdm_runtime.io.xarray_reader import field_from_dataarray
from wdm_runtime.job import facts, settled
from wdm_runtime.machine import available_bytes
from wdm_runtime.select import check_spacing, outside_training
from wdm_runtime.settings import Settings
from wdm_runtime.tally import Tally

# What refers to variables that a single array cannot carry along.
_REFERENCES = ("bounds", "ancillary_variables", "grid_mapping")


def downscale(
    labelled: Any,
    downscaler: Downscaler,
    *,
    variable: str | None = None,
    accumulation_h: float | None = None,
    members: int = 1,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    noise_scale: float | None = None,
    time_grid: str | None = None,
    preset: str | None = None,
    consistency: str | None = None,
    noise_decorrelation_min: float = 0.0,
    units: str | None = None,
    assume_factor: bool = False,
) -> Any:
    """Downscale an `xarray.DataArray`, with the values ``wdm-run infer`` gives for its file.

    Warns (`UserWarning`) where the field lies outside the latitudes the model was trained on.

    Parameters
    ----------
    labelled
        Coarse precipitation as rates or amounts with coordinates, dimensions in any order, with
        or without time: a DataArray, or a Dataset that holds it. Lazy ones are computed one frame
        at a time. Missing cells are NaN, or as the attributes say. A part cut out of a larger
        array draws noise of its own: `wdm_runtime.select.select_box` keeps the whole's, with
        `snap_cells` of the bundle.
    downscaler
        An open one.
    variable, accumulation_h
        As in `wdm_runtime.io.xarray_reader.field_from_dataarray`.
    members, seed, steps, sampler, noise_scale, time_grid, preset
        As in `Downscaler.downscale`; where None is allowed it takes the default.
    consistency, noise_decorrelation_min
        As in `Downscaler.downscale`; where None is allowed it takes the default.
    units
        Of the result, for example ``"mm h-1"``; None for the input's.
    assume_factor
        Take the grid's spacing for the one the model expects, unchecked.

    Returns
    -------
    xarray.DataArray
        (time, realization, y, x) float32 in ``units``, NaN where missing, held in memory. The
        dimensions are named as the input's coordinates; rows, longitudes and times (dates or
        numbers) are as the input has them. The attributes are those of the file's variable, and
        ``wdm_*`` for what decided the values. Bounds do not fit into a DataArray: the
        ``cell_methods`` of amounts tell their period instead.

    Raises
    ------
    InputError
        No labelled precipitation on a regular grid of the spacing the model expects, an option
        out of range, or a result that does not fit into memory.
    MissingDependencyError
        Without the extra ``xarray``.
    """
    xarray = require("xarray", "xarray", "Taking labelled arrays")
    coarse = field_from_dataarray(labelled, variable, accumulation_h)
    settings = settled(
        Settings(
            members=members,
            seed=seed,
            steps=steps,
            sampler=sampler,
            noise_scale=noise_scale,
            time_grid=time_grid,
            preset=preset,
            consistency=consistency,
            noise_decorrelation_min=noise_decorrelation_min,
            variable=variable,
            accumulation=None if accumulation_h is None else f"{accumulation_h}h",
            assume_factor=assume_factor,
            units=units,
        ),
        downscaler.manifest.presets,
    )
    domain = downscaler.manifest.domain
    check_spacing(coarse, domain.spacing_km, downscaler.factor, assume_factor)
    note = outside_training(coarse, domain.latitudes)
    if note:
        warnings.warn(note, stacklevel=2)
    rows, columns = (n * downscaler.factor for n in coarse.grid.shape)
    shape = len(coarse.valid_times), members, rows, columns
    room = _left_beside(shape)
    layout = layout_of(_without_bounds(coarse), downscaler.factor, members, units, None, True)
    tally = Tally(downscaler.engine)
    samples = downscaler.downscale(
        coarse,
        members,
        seed,
        settings.steps,
        settings.sampler,
        settings.consistency or DEFAULT_CONSISTENCY,
        noise_decorrelation_min,
        room,
        tally.steps.append,
        noise_scale=settings.noise_scale,
        time_grid=settings.time_grid,
    )
    values = _collected(samples, shape, layout.quantity.mm_h, tally)
    times = _dates(xarray, labelled, coarse.source.time) if coarse.source.time else None
    known = _provenance(downscaler, settings, layout) | tally.attributes()
    return _labelled(xarray, layout, values, times, known)


def _dates(xarray: Any, labelled: Any, time: TimeAxis) -> Any:
    """The coordinate as it was handed in, exact; but of a forecast's beginning the valid time."""
    own = labelled[time.name].variable
    if own.dtype.kind not in "MO" or own.attrs.get("standard_name") != "forecast_reference_time":
        return own
    attributes = {"units": time.units, "calendar": time.calendar}
    numbers = xarray.Variable(time.name, time.values, attributes)
    return xarray.conventions.decode_cf_variable(time.name, numbers)


def _without_bounds(coarse: PrecipField) -> PrecipField:
    time = coarse.source.time
    bare = replace(time, bounds=None) if time else None
    return replace(coarse, source=replace(coarse.source, time=bare))


def _collected(
    samples: Iterator[Sample], shape: tuple[int, ...], mm_h: float, tally: Tally
) -> npt.NDArray[np.float32]:
    """(time, member, y, x) in units of ``mm_h`` mm h-1."""
    values = np.empty(shape, dtype=np.float32)
    for sample in samples:
        place = values[sample.time_index, sample.member]
        # Divided in float64 and rounded once, as the writers of files do.
        np.divide(sample.rate_mm_h, mm_h, out=place, dtype=np.float64, casting="same_kind")
        tally.take(sample)
    return values


def _left_beside(shape: tuple[int, ...]) -> int | None:
    """Memory that is free beside the result, None where the system does not say."""
    free, result = available_bytes(), 4 * math.prod(shape)
    if free is None or result < free:
        return None if free is None else free - result
    raise InputError(
        f"The result has (time, realization, y, x) = {shape}, which take "
        f"{result / 2**20:,.0f} MiB; expected less than the {free / 2**20:,.0f} MiB that are free. "
        "Ask for fewer members or times at once, or write a file with 'wdm-run infer'."
    )


def _provenance(downscaler: Downscaler, settings: Settings, layout: Layout) -> dict[str, Any]:
    known = settings.attributes() | facts(downscaler)
    if layout.quantity.period_h is not None:
        known["wdm_accumulation_h"] = layout.quantity.period_h
    return {name: plain(value) for name, value in known.items()}


def _labelled(
    xarray: Any, layout: Layout, values: npt.NDArray[np.float32], times: Any, provenance: Any
) -> Any:
    """The values with the layout's coordinates and attributes; times as given, if there are any."""
    main = next(variable for variable in layout.variables if variable.name == layout.name)
    time, mapping = main.dimensions[0], main.attributes.get("grid_mapping")
    coordinates = {
        variable.name: _coordinate(xarray, variable, times if variable.name == time else None)
        for variable in layout.variables
        if variable.values is not None and variable.name in (*main.dimensions, mapping)
    }
    array = xarray.DataArray(
        values, coordinates, main.dimensions, layout.name, _own(main.attributes) | provenance
    )
    array.encoding = {"dtype": main.dtype, "_FillValue": FILL_VALUE}
    if mapping:
        array.encoding["grid_mapping"] = mapping  # where xarray looks for it when it writes
    return array


def _coordinate(xarray: Any, variable: Variable, times: Any) -> Any:
    attributes, values = _own(variable.attributes), variable.values
    encoding: dict[str, Any] = {"_FillValue": None}  # CF: no coordinate is missing
    if times is not None and times.dtype.kind in "MO":  # dates: their numbers are the encoding
        encoding |= {name: attributes.pop(name) for name in ("units", "calendar")}
        encoding["dtype"] = variable.dtype
        values = np.ravel(times.values)
    return xarray.Variable(variable.dimensions, values, attributes, encoding)


def _own(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in _REFERENCES}
