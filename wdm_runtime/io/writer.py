"""Writes an ensemble, one (time, member) at a time, whole or not at all: NetCDF, Zarr or GRIB2."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError, OutputError, require
from wdm_runtime.field import PrecipField
from wdm_runtime.io.array_output import ArrayOutput, NetCDFArrays, Output
from wdm_runtime.io.atomic import (
    ZARR_SUFFIX,
    Workspace,
    check_destination,
    output_errors,
    publish,
)
from wdm_runtime.io.cf import discovery_attributes, identity, output_time, plain, written_now
from wdm_runtime.io.layout import Layout, layout_of
from wdm_runtime.statistics import StatisticsBlock, StatisticsSpec

NETCDF_SUFFIXES = (".nc", ".nc4", ".cdf")
GRIB_SUFFIXES = (".grib2", ".grb2")

OpenOutput: TypeAlias = Callable[[Path, Layout, PrecipField], Output]


def _open_netcdf(temporary: Path, layout: Layout, _: PrecipField) -> Output:
    return ArrayOutput(layout, NetCDFArrays(temporary, layout))


def _format_of(
    path: Path,
    field: PrecipField,
    factor: int,
    members: int,
    statistics: StatisticsSpec | None,
) -> OpenOutput:
    """What opens the format that the suffix says, seen to be had here and to hold what is asked."""
    suffix = path.suffix.lower()
    if suffix in NETCDF_SUFFIXES:
        return _open_netcdf
    if suffix == ZARR_SUFFIX:
        from wdm_runtime.io.zarr_output import open_zarr

        require("zarr", "xarray", "Writing Zarr")  # now, and not when a member is there
        return open_zarr
    if suffix in GRIB_SUFFIXES:
        from wdm_runtime.io.grib_header import load_eccodes
        from wdm_runtime.io.grib_output import GribOutput, check_grib

        check_grib(path, field, factor, members, statistics)
        load_eccodes("Writing GRIB2")
        return GribOutput
    known = ", ".join((*NETCDF_SUFFIXES, ZARR_SUFFIX, *GRIB_SUFFIXES))
    raise OutputError(
        f"{path}: has suffix '{path.suffix}'; expected one of {known}. Choose another name."
    )


class EnsembleWriter:
    """Context manager that writes fine rates [mm h-1] of every (time, member).

    ``.nc``, ``.nc4`` and ``.cdf`` are NetCDF-4. ``.zarr`` is a Zarr store (format 2, consolidated)
    with the same variables, and needs the extra ``xarray``. ``.grib2`` and ``.grb2`` are GRIB2, one
    message a (time, member), and need the extra ``grib``: regular latitude-longitude grids without
    a row of cells around a pole and known times only, no statistics and no attributes, SI units and
    longitudes from 0 to 360, rates within 1e-4 mm/h up to 800 mm/h.

    Parameters
    ----------
    path
        The output to make; its suffix says the format.
    field
        The coarse field the samples come from: its grid, times and ``source`` are carried over,
        and so are its units.
    factor
        Fine cells per coarse cell along one axis.
    members
        Size of the ensemble.
    attributes
        Global attributes: provenance. Booleans are written as ``"true"`` and ``"false"``.
    overwrite
        Whether an older output of that name may be replaced. It stays until the new one is whole.
    units
        Of the output's numbers, rates or (if the field has a ``period_h``) amounts; None for the
        input's.
    statistics
        Which statistics over the members are written besides them; None for none.
    keep_members
        Whether the members are written.

    Raises
    ------
    OutputError
        On construction: no known suffix, or GRIB2 cannot hold what is asked for; no such folder, or
        not writable; the output exists, is the input, or is no regular file. On entry and writing:
        the file system refuses. On clean exit: a frame or a row of statistics was never written, or
        without ``overwrite`` another process made the output meanwhile. After any of them nothing
        is left behind.
    InputError
        The field is one cell wide, its units are not ``units``, or there is nothing to write.
    MissingDependencyError
        On construction: the format's extra is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        field: PrecipField,
        factor: int,
        members: int,
        attributes: dict[str, Any],
        overwrite: bool = False,
        units: str | None = None,
        statistics: StatisticsSpec | None = None,
        keep_members: bool = True,
    ) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self._open_output = _format_of(self.path, field, factor, members, statistics)
        check_destination(self.path, (field.source.path or None,), overwrite)  # "": made in memory
        if factor < 1 or members < 1:
            raise InputError(
                f"Asked for {members} members at factor {factor}; expected at least one of each. "
                "Correct --members."
            )
        if statistics is None and not keep_members:
            raise InputError(
                "Asked for neither members nor statistics; expected one of them. Pass --stats."
            )
        self.field = field
        self.members = members
        self._layout = layout_of(field, factor, members, units, statistics, keep_members)
        self.grid = self._layout.grid
        self._attributes = dict(attributes)
        times = len(field.valid_times)
        self._written = np.zeros((times, members if keep_members else 0), dtype=bool)
        self._rows_written = np.zeros((times, self.grid.shape[0] if statistics else 0), dtype=bool)
        self._masks: dict[int, bytes] = {}
        self._workspace = Workspace(self.path)
        self._output: Output | None = None

    def __enter__(self) -> EnsembleWriter:
        try:
            with output_errors(self.path):
                self._workspace.open()
                temporary = self._workspace.temporary
                self._output = self._open_output(temporary, self._layout, self.field)
        except BaseException:
            self._abandon()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        try:
            self._commit()
        except BaseException:
            self._abandon()
            raise

    def set_attributes(self, attributes: dict[str, Any]) -> None:
        """Add or change global attributes, at any time before the output is closed."""
        self._attributes.update(attributes)

    def write(self, time_index: int, member: int, rate_mm_h: npt.NDArray[np.floating]) -> None:
        """Write one frame; NaN is stored as missing, other values in full float32.

        Parameters
        ----------
        time_index, member
            Position in the field's times, and of the member, both from 0. Order is free.
        rate_mm_h
            (y, x) [mm h-1] on the fine grid, rows in the coarse field's order; missing in the same
            cells for all members of a time.

        Raises
        ------
        OutputError
            The frame has another shape, position or missing cells, or cannot be written.
        """
        times, members = self._written.shape
        output = self._opened()
        if rate_mm_h.shape != self.grid.shape:
            raise OutputError(
                f"{self.path}: got rates of shape {rate_mm_h.shape}; expected (y, x) = "
                f"{self.grid.shape}. Write one frame on the fine grid at a time."
            )
        if not (0 <= time_index < times and 0 <= member < members):
            raise OutputError(
                f"{self.path}: got time {time_index} and member {member}; expected less than "
                f"{times} and {members}. Open the writer with as many as there will be."
            )
        mask = hashlib.sha256(np.packbits(np.isnan(rate_mm_h)).tobytes()).digest()
        if self._masks.setdefault(time_index, mask) != mask:
            raise OutputError(
                f"{self.path}: member {member} of time {time_index} misses other cells than the "
                "members before; expected the same ones. Report this fault of the program."
            )
        with output_errors(self.path):
            output.write(time_index, member, rate_mm_h)
        self._written[time_index, member] = True

    def write_statistics(self, time_index: int, block: StatisticsBlock) -> None:
        """Write the statistics of some rows of one time; the order of blocks is free.

        Raises
        ------
        OutputError
            The block has another shape or position than the grid and the statistics asked for, or
            cannot be written.
        """
        times, all_rows = self._rows_written.shape
        output = self._opened()
        rows, columns = block.mean_mm_h.shape
        last = block.first_row + rows
        counts = tuple(self._layout.dimensions.get(name, 0) for name in ("quantile", "threshold"))
        found = block.quantiles_mm_h.shape[0], block.exceedance.shape[0]
        fits = columns == self.grid.shape[1] and 0 <= block.first_row < last <= all_rows
        if not (0 <= time_index < times and fits) or found != counts:
            raise OutputError(
                f"{self.path}: got statistics of time {time_index}, rows {block.first_row} to "
                f"{last} of {columns} cells, {found[0]} quantiles and {found[1]} thresholds; "
                f"expected less than {times}, rows 0 to {all_rows} of {self.grid.shape[1]} cells, "
                f"{counts[0]} and {counts[1]}. Open the writer with what is computed."
            )
        with output_errors(self.path):
            output.write_statistics(time_index, block)
        self._rows_written[time_index, block.first_row : last] = True

    def _opened(self) -> Output:
        if self._output is None:
            raise OutputError(
                f"{self.path}: is not open for writing; expected an EnsembleWriter inside its "
                "'with' block. Write there."
            )
        return self._output

    def _commit(self) -> None:
        self._check_complete("frames", "member", self._written)
        self._check_complete("rows of statistics", "row", self._rows_written)
        output = self._opened()
        with output_errors(self.path):
            output.finish(self._global_attributes())
            self._output = None
            publish(self._workspace.temporary, self.path, self.overwrite)
        self._workspace.close()

    def _check_complete(self, things: str, second: str, written: npt.NDArray[np.bool_]) -> None:
        if written.all():
            return
        missing = np.argwhere(~written)
        raise OutputError(
            f"{self.path}: {len(missing)} of {written.size} {things} were never written, first "
            f"time {missing[0, 0]} {second} {missing[0, 1]}; expected all. Report this fault of "
            "the program; nothing was kept."
        )

    def _global_attributes(self) -> dict[str, Any]:
        quantity = self._layout.quantity
        provenance = dict(self._attributes)
        if quantity.period_h is not None:  # readers of one frame have no bounds to look at
            provenance["wdm_accumulation_h"] = quantity.period_h
        time = output_time(self.field)
        known = discovery_attributes(self.grid, time, quantity, self.members)
        everything = known | {"id": identity(known | provenance)} | written_now() | provenance
        return {name: plain(value) for name, value in everything.items()}

    def _abandon(self) -> None:
        output, self._output = self._output, None
        if output is not None:
            output.abandon()
        self._workspace.close()
