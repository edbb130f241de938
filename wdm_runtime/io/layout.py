"""The variables of an output, the same in every format that has named variables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField, Source, TimeAxis
from wdm_runtime.grid import Grid
from wdm_runtime.io.cf import (
    Quantity,
    axis_attributes,
    cell_bounds,
    cell_methods,
    output_quantity,
    output_time,
    period_note,
)
from wdm_runtime.statistics import StatisticsSpec

FILL_VALUE = np.float32(-9999.0)  # not NaN, which several tools cannot compare with
_CHUNK_CELLS = 512  # along y and x: 1 MiB before compression, so a region reads quickly
_STATISTICS_CHUNK_ROWS = 128  # they come in blocks of few rows: less to hold or to pack again
_BOUNDS = "bnds"
_REAL_CALENDARS = frozenset({"standard", "gregorian", "proleptic_gregorian", "julian"})


@dataclass(frozen=True)
class Variable:
    """A variable to be: its dimensions, type and attributes, and the values of a coordinate.

    Variables without ``values`` are written later, in ``chunks``, missing cells as ``fill_value``.
    """

    name: str
    dimensions: tuple[str, ...]
    dtype: np.dtype[Any]
    attributes: dict[str, Any]
    values: npt.NDArray[Any] | None = None
    chunks: tuple[int, ...] | None = None
    fill_value: np.float32 | None = None


@dataclass(frozen=True)
class Layout:
    """Sizes of the dimensions, the variables in the order of writing, and the main one's name."""

    name: str
    quantity: Quantity
    grid: Grid
    dimensions: dict[str, int]
    variables: tuple[Variable, ...] = field(repr=False)

    @property
    def band_rows(self) -> int:
        """Rows of one chunk, the most that is converted at a time."""
        return _chunk(self.grid.shape[0])

    def shape(self, variable: Variable) -> tuple[int, ...]:
        """The variable's sizes."""
        return tuple(self.dimensions[name] for name in variable.dimensions)


def layout_of(
    coarse: PrecipField,
    factor: int,
    members: int,
    units: str | None,
    statistics: StatisticsSpec | None,
    keep_members: bool,
) -> Layout:
    """The layout of an output: dimensions (time, realization, y, x) and all that describes them.

    Raises
    ------
    InputError
        The field is one cell wide; the units do not fit it.
    """
    quantity, time = output_quantity(coarse.source, units), output_time(coarse)
    grid = coarse.grid.refined(factor)
    dimensions = {time.name if time else "time": len(coarse.valid_times)}
    if keep_members:
        dimensions["realization"] = members
    dimensions |= dict(zip(grid.names, grid.shape, strict=True))
    if statistics:
        dimensions["quantile"] = len(statistics.quantiles)
        dimensions["threshold"] = len(statistics.thresholds_mm_h)
    dimensions = {name: size for name, size in dimensions.items() if size} | {_BOUNDS: 2}
    source, mapping = coarse.source, coarse.source.grid_mapping
    name = source.variable or "rainfall_rate"
    described = {
        "standard_name": quantity.standard_name(source.standard_name),
        "long_name": source.long_name or quantity.noun,
        "units": quantity.units,
    }
    fields = _Fields(
        name,
        (time.name if time else "time", *grid.names),
        grid.shape,
        described,
        cell_methods(source, quantity, time),
        {"grid_mapping": mapping.name} if mapping else {},
    )
    variables = [
        *_time_variables(time),
        *(_realization(members) if keep_members else ()),
        *_axis_variables(grid),
        *_mapping_variable(source),
        *([fields.members()] if keep_members else []),
    ]
    if statistics:
        variables += _statistics_coordinates(statistics, quantity, described["standard_name"])
        variables += fields.statistics(statistics)
    return Layout(name, quantity, grid, dimensions, (*variables, fields.validity()))


def field_layout(field: PrecipField, name: str) -> Layout:
    """The layout of a field as it is, in mm h-1: dimensions (time, y, x), or (y, x) of no time.

    Cells' bounds need two cells along each axis.

    Raises
    ------
    InputError
        The field has several frames without a time.
    """
    source, grid, time = field.source, field.grid, output_time(field)
    if time is None and len(field.valid_times) > 1:
        raise InputError(
            f"{source.path}: {len(field.valid_times)} frames have no valid time; expected times, "
            "or one frame. Give the file a time coordinate."
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
    if source.grid_mapping:  # without it nobody knows where metres on a map are
        attributes["grid_mapping"] = source.grid_mapping.name
    dimensions = dict(zip(grid.names, grid.shape, strict=True))
    chunks = tuple(map(_chunk, grid.shape))
    if time is not None:
        dimensions = {time.name: len(field.valid_times)} | dimensions
        chunks = 1, *chunks
    kind = np.dtype(np.float32)
    rates = Variable(name, tuple(dimensions), kind, attributes, None, chunks, FILL_VALUE)
    described = *_time_variables(time), *_axis_variables(grid), *_mapping_variable(source)
    return Layout(name, quantity, grid, dimensions | {_BOUNDS: 2}, (*described, rates))


def _mapping_variable(source: Source) -> Iterator[Variable]:
    if source.grid_mapping:
        attributes = dict(source.grid_mapping.attributes)
        yield _coordinate(source.grid_mapping.name, (), np.int32(0), attributes)


def _coordinate(
    name: str, dimensions: tuple[str, ...], values: Any, attributes: dict[str, Any]
) -> Variable:
    values = np.asarray(values)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return Variable(name, dimensions, values.dtype, attributes, values)


def _time_variables(time: TimeAxis | None) -> Iterator[Variable]:
    if time is None:
        return
    attributes = {
        "standard_name": "time",
        "long_name": "valid time",
        "axis": "T",
        "units": time.units,
        "calendar": time.calendar,
    }
    # CF wants to hear of leap seconds: no file says.
    if time.calendar.casefold() in _REAL_CALENDARS:
        attributes["units_metadata"] = "leap_seconds: unknown"
    if time.bounds is not None:
        attributes["bounds"] = time.bounds_name
    yield _coordinate(time.name, (time.name,), time.values, attributes)
    if time.bounds is not None:
        yield _coordinate(time.bounds_name, (time.name, _BOUNDS), time.bounds, {})


def _realization(members: int) -> Iterator[Variable]:
    attributes = {"standard_name": "realization", "long_name": "ensemble member", "units": "1"}
    numbers = np.arange(members, dtype=np.int32)
    yield _coordinate("realization", ("realization",), numbers, attributes)


def _axis_variables(grid: Grid) -> Iterator[Variable]:
    for axis, (name, centres) in enumerate(zip(grid.names, (grid.y, grid.x), strict=True)):
        attributes = axis_attributes(grid, axis) | {"bounds": f"{name}_bnds"}
        yield _coordinate(name, (name,), centres, attributes)
        yield _coordinate(f"{name}_bnds", (name, _BOUNDS), cell_bounds(centres), {})


@dataclass(frozen=True)
class _Fields:
    """What the variables over (time, ..., y, x) share."""

    name: str
    dimensions: tuple[str, str, str]
    cells: tuple[int, int]
    described: dict[str, Any]  # standard name, long name, units
    methods: str
    mapping: dict[str, str]

    def rates(
        self, suffix: str, extra: tuple[str, ...], attributes: dict[str, Any], most_rows: int
    ) -> Variable:
        """One in float32, with a dimension more or none."""
        (time, *axes), (rows, columns) = self.dimensions, self.cells
        linked = {"ancillary_variables": f"{self.name}_validity"} | self.mapping
        return Variable(
            self.name + suffix,
            (time, *extra, *axes),
            np.dtype(np.float32),
            attributes | {"coverage_content_type": "modelResult"} | linked,
            chunks=(*(1,) * (1 + len(extra)), _chunk(rows, most_rows), _chunk(columns)),
            fill_value=FILL_VALUE,
        )

    def members(self) -> Variable:
        """The ensemble."""
        attributes = self.described | {"cell_methods": self.methods}
        return self.rates("", ("realization",), attributes, _CHUNK_CELLS)

    def statistics(self, wanted: StatisticsSpec) -> Iterator[Variable]:
        """Over the members. CF has no standard name for a probability of exceedance of rain."""
        long_name, most_rows = self.described["long_name"], _STATISTICS_CHUNK_ROWS
        for method in ("mean", "standard_deviation"):
            said = {
                "long_name": f"ensemble {method.replace('_', ' ')} of {long_name}",
                "cell_methods": f"{self.methods} realization: {method}",
            }
            yield self.rates(f"_{method}", (), self.described | said, most_rows)
        if wanted.quantiles:
            said = {"long_name": f"ensemble quantile of {long_name}", "cell_methods": self.methods}
            yield self.rates("_quantile", ("quantile",), self.described | said, most_rows)
        if wanted.thresholds_mm_h:
            said = {"long_name": f"probability that {long_name} reaches the threshold"}
            yield self.rates("_exceedance", ("threshold",), said | {"units": "1"}, most_rows)

    def validity(self) -> Variable:
        """Where there is a value, the same for all members of a time."""
        flags = {
            "standard_name": "status_flag",
            "long_name": f"whether {self.described['long_name']} is known",
            "flag_values": np.array([0, 1], dtype=np.int8),
            "flag_meanings": "missing valid",
            "coverage_content_type": "qualityInformation",
        }
        return Variable(
            f"{self.name}_validity",
            self.dimensions,
            np.dtype(np.int8),
            flags | self.mapping,
            chunks=(1, *map(_chunk, self.cells)),
        )


def _statistics_coordinates(
    statistics: StatisticsSpec, quantity: Quantity, standard_name: str
) -> Iterator[Variable]:
    if statistics.quantiles:
        attributes = {"long_name": "quantile of the ensemble", "units": "1"}
        yield _coordinate("quantile", ("quantile",), statistics.quantiles, attributes)
    if statistics.thresholds_mm_h:
        attributes = {
            "standard_name": standard_name,
            "long_name": "threshold",
            "units": quantity.units,
        }
        values = np.array(statistics.thresholds_mm_h, dtype=np.float64) / quantity.mm_h
        yield _coordinate("threshold", ("threshold",), values, attributes)


def _chunk(size: int, most: int = _CHUNK_CELLS) -> int:
    """Equal blocks of at most ``most``, so the last one is not mostly padding."""
    blocks = -(-size // most)
    return -(-size // blocks)
