"""Writes an ensemble to CF NetCDF, one (time, member) at a time, whole or not at all."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import netCDF4
import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError, OutputError
from wdm_runtime.field import PrecipField, TimeAxis
from wdm_runtime.grid import Grid
from wdm_runtime.io.atomic import (
    check_destination,
    discard,
    output_errors,
    publish,
    temporary_name,
)
from wdm_runtime.io.netcdf import LIBRARY_LOCK
from wdm_runtime.io.units import rate_factor

CONVENTIONS = "CF-1.11, ACDD-1.3"
FILL_VALUE = np.float32(-9999.0)  # not NaN, which several tools cannot compare with
_COMPRESSION_LEVEL: Final = 1  # noisy floats: higher levels cost much and save little
_CHUNK_CELLS = 512  # along y and x: 1 MiB before compression, so a region reads quickly
_BOUNDS_DIMENSION = "bnds"
_EPOCH = "seconds since 1970-01-01T00:00:00"


class EnsembleWriter:
    """Context manager that writes fine rates [mm h-1] of every (time, member) to one file.

    Parameters
    ----------
    path
        The file to make.
    field
        The coarse field the samples come from: its grid, times and ``source`` are carried over,
        and so are its units.
    factor
        Fine cells per coarse cell along one axis.
    members
        Size of the ``realization`` dimension.
    attributes
        Global attributes: provenance. Booleans are written as ``"true"`` and ``"false"``.
    overwrite
        Whether an older file of that name may be replaced. It stays until the new one is whole.

    Raises
    ------
    OutputError
        On construction: no such folder, or not writable; the output exists, is the input, or is no
        regular file. On entry and writing: the file system refuses. On clean exit: a frame was
        never written, or without ``overwrite`` another process made the output meanwhile. After
        any of them nothing is left behind.
    InputError
        The field is one cell wide, or there is no member to write.
    """

    def __init__(
        self,
        path: Path,
        field: PrecipField,
        factor: int,
        members: int,
        attributes: dict[str, Any],
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        check_destination(self.path, field.source.path, overwrite)
        if factor < 1 or members < 1:
            raise InputError(
                f"Asked for {members} members at factor {factor}; expected at least one of each. "
                "Correct --members."
            )
        self.field = field
        self.grid = field.grid.refined(factor)
        self.members = members
        factor_mm_h = rate_factor(_units(field))
        assert factor_mm_h is not None  # _units gives rates only
        self._factor_mm_h = factor_mm_h
        self._attributes = dict(attributes)
        self._written = np.zeros((len(field.valid_times), members), dtype=bool)
        self._temporary = temporary_name(self.path)
        self._dataset: netCDF4.Dataset | None = None

    def __enter__(self) -> EnsembleWriter:
        try:
            with LIBRARY_LOCK, output_errors(self.path):
                # The library creates it with mode 0666 less the umask; clobber=False is O_EXCL.
                self._dataset = netCDF4.Dataset(
                    str(self._temporary.absolute()), "w", format="NETCDF4", clobber=False
                )
                self._rates = self._define(self._dataset)
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
        """Add or change global attributes, at any time before the file is closed."""
        self._attributes.update(attributes)

    def write(self, time_index: int, member: int, rate_mm_h: npt.NDArray[np.floating]) -> None:
        """Write one frame; NaN is stored as missing, other values in full float32.

        Parameters
        ----------
        time_index, member
            Position in the field's times, and of the member, both from 0. Order is free.
        rate_mm_h
            (y, x) [mm h-1] on the fine grid, rows in the coarse field's order.

        Raises
        ------
        OutputError
            The frame has another shape or position, or cannot be written.
        """
        times, members = self._written.shape
        if self._dataset is None:
            raise OutputError(
                f"{self.path}: is not open for writing; expected an EnsembleWriter inside its "
                "'with' block. Write there."
            )
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
        values = np.asarray(rate_mm_h, dtype=np.float64) / self._factor_mm_h
        frame = np.where(np.isnan(values), FILL_VALUE, values.astype(np.float32))
        with LIBRARY_LOCK, output_errors(self.path):
            self._rates[time_index, member] = frame
        self._written[time_index, member] = True

    def _define(self, dataset: netCDF4.Dataset) -> netCDF4.Variable[Any]:
        source, (y, x) = self.field.source, self.grid.names
        time = _time(self.field)
        time_name = time.name if time else "time"
        rows, columns = self.grid.shape
        dataset.createDimension(time_name, len(self.field.valid_times))
        dataset.createDimension("realization", self.members)
        dataset.createDimension(y, rows)
        dataset.createDimension(x, columns)
        if time:
            coordinate = dataset.createVariable(time_name, time.values.dtype, (time_name,))
            coordinate.setncatts(
                {
                    "standard_name": "time",
                    "axis": "T",
                    "units": time.units,
                    "calendar": time.calendar,
                }
            )
            coordinate[:] = time.values
        realization = dataset.createVariable("realization", "i4", ("realization",))
        realization.setncatts(
            {"standard_name": "realization", "long_name": "ensemble member", "units": "1"}
        )
        realization[:] = np.arange(self.members)
        _define_axes(dataset, self.grid)
        rates: netCDF4.Variable[Any] = dataset.createVariable(
            source.variable or "rainfall_rate",
            "f4",
            (time_name, "realization", y, x),
            zlib=True,
            complevel=_COMPRESSION_LEVEL,
            shuffle=True,
            chunksizes=(1, 1, _chunk(rows), _chunk(columns)),
            fill_value=FILL_VALUE,
        )
        rates.setncatts(_rate_attributes(self.field))
        if source.grid_mapping:
            mapping = dataset.createVariable(source.grid_mapping.name, "i4")
            mapping.setncatts(source.grid_mapping.attributes)
        return rates

    def _commit(self) -> None:
        if not self._written.all():
            missing = np.argwhere(~self._written)
            raise OutputError(
                f"{self.path}: {len(missing)} of {self._written.size} frames were never written, "
                f"first time {missing[0, 0]} member {missing[0, 1]}; expected all. Report this "
                "fault of the program; nothing was kept."
            )
        assert self._dataset is not None  # frames were written into it
        with output_errors(self.path):
            with LIBRARY_LOCK:
                self._dataset.setncatts(_global_attributes(self._attributes))
                self._dataset.close()
                self._dataset = None
            publish(self._temporary, self.path, self.overwrite)

    def _abandon(self) -> None:
        """Close and remove what there is; a second failure must not hide the first."""
        dataset, self._dataset = self._dataset, None
        with LIBRARY_LOCK, suppress(OSError, RuntimeError):
            if dataset is not None and dataset.isopen():
                dataset.close()
        discard(self._temporary)


def _units(field: PrecipField) -> str:
    """The input's units if it has any that are a rate."""
    units = field.source.units
    return units if rate_factor(units) is not None else "mm h-1"


def _rate_attributes(field: PrecipField) -> dict[str, Any]:
    source, units = field.source, _units(field)
    standard_name = source.standard_name
    if not standard_name.endswith(("_rate", "_flux")):
        # CF gives masses per area and time the name of a flux, depths per time that of a rate.
        mass = "kg" in units.casefold()
        standard_name = "precipitation_flux" if mass else "lwe_precipitation_rate"
    attributes = {
        "standard_name": standard_name,
        "long_name": source.long_name or "precipitation rate",
        "units": units,
        "cell_methods": "area: mean",
    }
    if source.grid_mapping:
        attributes["grid_mapping"] = source.grid_mapping.name
    return attributes


def _time(field: PrecipField) -> TimeAxis | None:
    """The time coordinate as read, or made from the valid times if the source only has those."""
    time = field.source.time
    if time is not None or any(text.startswith("none-") for text in field.valid_times):
        return time
    moments = [datetime.fromisoformat(text) for text in field.valid_times]
    seconds = [round(moment.replace(tzinfo=timezone.utc).timestamp()) for moment in moments]
    values = np.array(seconds, dtype=np.int64)
    return TimeAxis("time", _EPOCH, "standard", values)


def _define_axes(dataset: netCDF4.Dataset, grid: Grid) -> None:
    dataset.createDimension(_BOUNDS_DIMENSION, 2)
    for name, axis, values, attributes in zip(
        grid.names, "YX", (grid.y, grid.x), grid.attributes, strict=True
    ):
        coordinate = dataset.createVariable(name, "f8", (name,))
        coordinate.setncatts({"axis": axis} | attributes | {"bounds": f"{name}_bnds"})
        coordinate[:] = values
        # In the coordinate's own direction: a descending latitude has descending bounds.
        bounds = dataset.createVariable(f"{name}_bnds", "f8", (name, _BOUNDS_DIMENSION))
        half = (values[-1] - values[0]) / (values.size - 1) / 2
        inner = (values[:-1] + values[1:]) / 2
        edges = np.concatenate(([values[0] - half], inner, [values[-1] + half]))
        bounds[:] = np.stack((edges[:-1], edges[1:]), axis=1)


def _chunk(size: int) -> int:
    """Equal blocks of at most ``_CHUNK_CELLS``, so the last one is not mostly padding."""
    blocks = -(-size // _CHUNK_CELLS)
    return -(-size // blocks)


def _global_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    everything = {
        "Conventions": CONVENTIONS,
        "title": "Downscaled precipitation ensemble",
        "source": "WDM Edge, wavelet diffusion model",
        "history": f"{now} wdm-run",
    } | attributes
    return {name: _attribute(value) for name, value in everything.items()}


def _attribute(value: Any) -> str | int | float:
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    if isinstance(value, (int, np.integer)) and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    # A file name that is no UTF-8 must not fail an otherwise finished output.
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
