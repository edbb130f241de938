"""Zarr stores in the making: format 2, which every reader of Zarr knows, consolidated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import require
from wdm_runtime.field import PrecipField
from wdm_runtime.io.array_output import ArrayOutput, Output
from wdm_runtime.io.layout import Layout, Variable

_DIMENSIONS = "_ARRAY_DIMENSIONS"  # xarray's convention for format 2


def open_zarr(temporary: Path, layout: Layout, _: PrecipField) -> Output:
    """Start a store.

    Raises
    ------
    MissingDependencyError
        Without the extra ``xarray``.
    """
    return ArrayOutput(layout, ZarrArrays(temporary, layout))


class ZarrArrays:
    """A folder of arrays, every chunk a file."""

    def __init__(self, temporary: Path, layout: Layout) -> None:
        self._zarr = require("zarr", "xarray", "Writing Zarr")
        self._compressor = require("numcodecs", "xarray", "Writing Zarr").Blosc(
            cname="zstd", clevel=1, shuffle=1
        )
        self._folder = temporary
        self._group = self._zarr.open_group(str(temporary), mode="w-", zarr_format=2)
        for variable in layout.variables:
            self._define(variable, layout.shape(variable))

    def put(self, name: str, index: tuple[int | slice, ...], values: npt.NDArray[Any]) -> None:
        """Write a part of one array; chunks it covers in part are read and packed again."""
        self._group[name][index] = values

    def finish(self, attributes: dict[str, Any]) -> None:
        """Take the global attributes and consolidate all."""
        self._group.attrs.update(_as_json(attributes))
        self._zarr.consolidate_metadata(str(self._folder), zarr_format=2)

    def abandon(self) -> None:
        """Nothing is open between calls."""

    def _define(self, variable: Variable, shape: tuple[int, ...]) -> None:
        array = self._group.create_array(
            variable.name,
            shape=shape,
            dtype=variable.dtype,
            chunks=variable.chunks or shape,
            compressors=self._compressor if variable.chunks else None,
            fill_value=None if variable.fill_value is None else float(variable.fill_value),
        )
        # One request: every change of the attributes rewrites their file.
        array.attrs.update(
            {_DIMENSIONS: list(variable.dimensions), **_as_json(variable.attributes)}
        )
        if variable.values is not None:
            array[...] = variable.values


def _as_json(attributes: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold: there is no NaN and no infinity in it, so these are left out."""
    plain = {
        name: value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        for name, value in attributes.items()
    }
    return {name: value for name, value in plain.items() if _is_finite(value)}


def _is_finite(value: Any) -> bool:
    numbers = np.asarray(value)
    return numbers.dtype.kind != "f" or bool(np.isfinite(numbers).all())
