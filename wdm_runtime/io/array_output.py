"""Outputs made of named arrays: the part that NetCDF and Zarr share, and NetCDF's own."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import netCDF4
import numpy as np
import numpy.typing as npt

from wdm_runtime.io.dataset import LIBRARY_LOCK
from wdm_runtime.io.layout import FILL_VALUE, Layout, Variable
from wdm_runtime.statistics import StatisticsBlock

_COMPRESSION_LEVEL: Final = 1  # noisy floats: higher levels cost much and save little


class Output(Protocol):
    """A format: takes frames of an ensemble, which the writer checked, into a temporary file."""

    def write(self, time_index: int, member: int, rate_mm_h: npt.NDArray[np.floating]) -> None:
        """Take one frame (y, x) [mm h-1]."""
        ...

    def write_statistics(self, time_index: int, block: StatisticsBlock) -> None:
        """Take the statistics of some rows of one time."""
        ...

    def finish(self, attributes: dict[str, Any]) -> None:
        """Take the global attributes and close."""
        ...

    def abandon(self) -> None:
        """Close, whatever state it is in."""
        ...


class Arrays(Protocol):
    """Named arrays on disk that take values at an index."""

    def put(self, name: str, index: tuple[int | slice, ...], values: npt.NDArray[Any]) -> None:
        """Write a part of one array."""
        ...

    def finish(self, attributes: dict[str, Any]) -> None:
        """Take the global attributes and close."""
        ...

    def abandon(self) -> None:
        """Close, whatever state it is in."""
        ...


class ArrayOutput:
    """An output of named arrays: converts units and missing cells, a band of rows at a time."""

    def __init__(self, layout: Layout, arrays: Arrays) -> None:
        self._layout = layout
        self._arrays = arrays
        self._names = {variable.name for variable in layout.variables}

    def write(self, time_index: int, member: int, rate_mm_h: npt.NDArray[np.floating]) -> None:
        """Write one member, and with the first one the cells that are valid at that time."""
        rows = rate_mm_h.shape[0]
        for first in range(0, rows, self._layout.band_rows):
            band = slice(first, min(first + self._layout.band_rows, rows))
            rates = rate_mm_h[band]
            self._put("", (time_index, member, band), self._in_units(rates))
            if member == 0:
                self._put_validity(time_index, band, rates)

    def write_statistics(self, time_index: int, block: StatisticsBlock) -> None:
        """Write some rows of every statistic."""
        rows = slice(block.first_row, block.first_row + block.mean_mm_h.shape[0])
        everywhere = slice(None)
        self._put("_mean", (time_index, rows), self._in_units(block.mean_mm_h))
        self._put("_standard_deviation", (time_index, rows), self._in_units(block.std_mm_h))
        if block.quantiles_mm_h.shape[0]:
            quantiles = self._in_units(block.quantiles_mm_h)
            self._put("_quantile", (time_index, everywhere, rows), quantiles)
        if block.exceedance.shape[0]:
            shares = np.where(np.isnan(block.exceedance), FILL_VALUE, block.exceedance)
            self._put("_exceedance", (time_index, everywhere, rows), shares)
        if self._layout.name not in self._names:  # else the members said it
            self._put_validity(time_index, rows, block.mean_mm_h)

    def finish(self, attributes: dict[str, Any]) -> None:
        """Take the global attributes and close."""
        self._arrays.finish(attributes)

    def abandon(self) -> None:
        """Close, whatever state it is in."""
        self._arrays.abandon()

    def _put(self, suffix: str, index: tuple[int | slice, ...], values: npt.NDArray[Any]) -> None:
        self._arrays.put(self._layout.name + suffix, index, values)

    def _put_validity(self, time_index: int, rows: slice, rates: npt.NDArray[np.floating]) -> None:
        self._put("_validity", (time_index, rows), (~np.isnan(rates)).astype(np.int8))

    def _in_units(self, rate_mm_h: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        values = np.asarray(rate_mm_h, dtype=np.float64) / self._layout.quantity.mm_h
        return np.where(np.isnan(values), FILL_VALUE, values.astype(np.float32))


class NetCDFArrays:
    """A NetCDF-4 file in the making."""

    def __init__(self, temporary: Path, layout: Layout) -> None:
        with LIBRARY_LOCK:
            # The library creates it with mode 0666 less the umask; clobber=False is O_EXCL.
            self._dataset = netCDF4.Dataset(
                str(temporary.absolute()), "w", format="NETCDF4", clobber=False
            )
            try:
                for name, size in layout.dimensions.items():
                    self._dataset.createDimension(name, size)
                for variable in layout.variables:
                    self._define(variable, layout.shape(variable))
            except BaseException:
                self.abandon()
                raise

    def put(self, name: str, index: tuple[int | slice, ...], values: npt.NDArray[Any]) -> None:
        """Write a part of one variable."""
        with LIBRARY_LOCK:
            self._dataset.variables[name][index] = values

    def finish(self, attributes: dict[str, Any]) -> None:
        """Take the global attributes and close."""
        with LIBRARY_LOCK:
            self._dataset.setncatts(attributes)
            self._dataset.close()

    def abandon(self) -> None:
        """Close; a second failure must not hide the first."""
        with LIBRARY_LOCK, suppress(OSError, RuntimeError):
            if self._dataset.isopen():
                self._dataset.close()

    def _define(self, variable: Variable, shape: tuple[int, ...]) -> None:
        written_later = variable.values is None
        made: netCDF4.Variable[Any] = self._dataset.createVariable(
            variable.name,
            variable.dtype,
            variable.dimensions,
            zlib=written_later,
            complevel=_COMPRESSION_LEVEL,
            shuffle=written_later,
            chunksizes=variable.chunks,
            fill_value=variable.fill_value,
        )
        made.set_auto_maskandscale(False)
        made.setncatts(variable.attributes)
        if variable.values is not None:
            made[...] = variable.values
        elif variable.chunks is not None:
            # Blocks of rows end within chunks: those of one row of chunks stay unpacked till then.
            chunks = zip(variable.dimensions, shape, variable.chunks, strict=True)
            held = [-(-n // chunk) for name, n, chunk in chunks if name != "realization"]
            chunk_bytes = int(np.prod(variable.chunks)) * variable.dtype.itemsize
            made.set_var_chunk_cache(size=chunk_bytes * int(np.prod(held[1:-2])) * held[-1])
