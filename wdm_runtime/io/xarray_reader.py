"""Zarr stores, and whatever else xarray opens or holds, as labelled datasets."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError, require
from wdm_runtime.field import PrecipField
from wdm_runtime.io.dataset import (
    LIBRARY_LOCK,
    Dataset,
    Index,
    Variable,
    as_unsigned,
    check_unchanged,
    holds_unsigned,
    identity,
)
from wdm_runtime.io.precipitation import read_precipitation

# What decoding moves to the encoding, though it stays true of the numbers in memory.
_RELATIONS = ("bounds", "coordinates", "grid_mapping")
_LIMITS = ("valid_range", "valid_min", "valid_max")
_ENCODED = {"mask_and_scale": False, "decode_times": False, "decode_coords": False}
_ZARR_METADATA = ("zarr.json", ".zgroup", ".zmetadata")


def read_xarray(
    path: Path, variable: str | None = None, accumulation_h: float | None = None
) -> PrecipField:
    """Read one precipitation variable of a Zarr store, or of another file xarray opens.

    Parameters
    ----------
    path
        Folder or file; groups of Zarr stores are searched too. Chunks that a Zarr store does not
        hold are what its ``fill_value`` says, as Zarr has it.
    variable, accumulation_h
        As in `wdm_runtime.io.read_field`.

    Returns
    -------
    PrecipField
        Rates (time, y, x) float32 [mm h-1], NaN where missing, read one frame at a time.

    Raises
    ------
    InputError
        See `wdm_runtime.io.read_field`; also when a frame is read and the file is gone or changed.
    MissingDependencyError
        Without the extra ``xarray``.
    """
    path = Path(path)
    xarray = require("xarray", "xarray", "Reading Zarr")
    before = identity(path)

    def unchanged() -> None:
        check_unchanged(path, before)

    with LIBRARY_LOCK, _library_errors(str(path)):
        groups = _open(xarray, path)
        variables = {
            one.path: one
            for group, opened in groups.items()
            for one in _variables(xarray, opened, group.strip("/"), str(path), unchanged)
        }
        return read_precipitation(
            Dataset(str(path), variables), str(path), variable, accumulation_h
        )


def field_from_dataarray(
    labelled: Any, variable: str | None = None, accumulation_h: float | None = None
) -> PrecipField:
    """The rates of an `xarray.DataArray`, or of one variable of an `xarray.Dataset`.

    Parameters
    ----------
    labelled
        Decoded (missing cells NaN, times as dates) or as stored. It may be lazy: one frame is
        computed at a time. A DataArray carries no time bounds: hand in the Dataset, or state
        ``accumulation_h``.
    variable
        Of a Dataset; None looks for the only precipitation.
    accumulation_h
        The period that amounts are summed over [h], where the attributes do not say.

    Returns
    -------
    PrecipField
        Rates (time, y, x) float32 [mm h-1], NaN where missing. ``source.path`` is "".

    Raises
    ------
    InputError
        See `wdm_runtime.io.read_field`; or neither a DataArray nor a Dataset.
    MissingDependencyError
        Without the extra ``xarray``.
    """
    xarray = require("xarray", "xarray", "Taking labelled arrays")
    if isinstance(labelled, xarray.DataArray):
        variable = str(labelled.name or "precipitation")
        if variable in labelled.coords:
            raise InputError(
                f"DataArray '{variable}' is named like one of its coordinates; expected a name of "
                "its own. Give it one, like array.rename('precipitation')."
            )
        label, labelled = f"DataArray '{variable}'", labelled.to_dataset(name=variable)
    elif isinstance(labelled, xarray.Dataset):
        label = "Dataset"
    else:
        raise InputError(
            f"Got a {type(labelled).__name__}; expected an xarray.DataArray or xarray.Dataset. "
            "Give the array its coordinates with xarray.DataArray."
        )
    with _library_errors(label):
        variables = {one.path: one for one in _variables(xarray, labelled, "", label, _always)}
        return read_precipitation(Dataset(label, variables), "", variable, accumulation_h)


def _always() -> None:
    """Arrays in memory need no check before they are read."""


def _open(xarray: Any, path: Path) -> Mapping[str, Any]:
    """Datasets by group, with numbers and times as stored."""
    absolute = path.absolute()
    is_zip = zipfile.is_zipfile(path)
    if is_zip or any((path / name).exists() for name in _ZARR_METADATA):
        zarr = require("zarr", "xarray", "Reading Zarr")
        store = zarr.storage.ZipStore(absolute, mode="r") if is_zip else str(absolute)
        groups: Mapping[str, Any] = xarray.open_groups(
            store, engine="zarr", consolidated=False, **_ENCODED
        )
        return groups
    if path.is_dir():
        raise InputError(
            f"{path}: is a folder without Zarr metadata; expected a precipitation file or a Zarr "
            "store. Hand in one file of it."
        )
    return {"": xarray.open_dataset(str(absolute), **_ENCODED)}


def _variables(
    xarray: Any, dataset: Any, group: str, label: str, before_read: Any
) -> Iterator[Variable]:
    for name, labelled in dataset.variables.items():
        encoded = (
            xarray.conventions.encode_cf_variable(labelled) if _is_dates(labelled) else labelled
        )

        def read(index: Index, encoded: Any = encoded) -> npt.NDArray[Any]:
            with LIBRARY_LOCK, _library_errors(label):
                before_read()
                return np.asarray(encoded[index].values)

        yield Variable(
            f"{group}/{name}".strip("/"),
            tuple(str(dimension) for dimension in encoded.dims),
            tuple(encoded.shape),
            encoded.dtype if encoded.dtype.kind in "iuf" else None,
            _attributes(encoded),
            read,
            chunk_bytes=_chunk_bytes(encoded),
        )


def _chunk_bytes(variable: Any) -> int:
    """What is unpacked at once; of arrays in memory nothing."""
    chunks = variable.encoding.get("chunks") or variable.encoding.get("chunksizes")
    return math.prod(map(int, chunks)) * variable.dtype.itemsize if chunks else 0


def _is_dates(labelled: Any) -> bool:
    if labelled.dtype.kind != "O":
        return labelled.dtype.kind in ("M", "m")  # a forecast's period, too, as a number
    return labelled.size > 0 and hasattr(
        np.ravel(labelled[(0,) * labelled.ndim].values)[0], "calendar"
    )


def _attributes(labelled: Any) -> dict[str, Any]:
    encoding = labelled.encoding
    relations = {name: encoding[name] for name in _RELATIONS if name in encoding}
    attributes = relations | dict(labelled.attrs)
    # xarray unpacks the data and leaves its limits packed; floating ones never were (NUG).
    for name in _LIMITS:
        limits = np.asarray(attributes.get(name, 0.0))
        if limits.dtype.kind in "iu":
            attributes[name] = _unpacked(limits, encoding)
    return attributes


def _unpacked(limits: npt.NDArray[Any], encoding: Mapping[str, Any]) -> npt.NDArray[Any]:
    if holds_unsigned(encoding):
        stored = np.dtype(encoding.get("dtype", limits.dtype))
        meant = np.dtype(f"u{stored.itemsize}")
        limits = np.array([as_unsigned(limit, meant) for limit in np.ravel(limits)])
    scale, offset = encoding.get("scale_factor", 1), encoding.get("add_offset", 0)
    return limits if (scale, offset) == (1, 0) else limits * scale + offset


@contextmanager
def _library_errors(label: str) -> Iterator[None]:
    try:
        yield
    except (
        *(OSError, RuntimeError, ValueError, LookupError, AttributeError, OverflowError),
        *(TypeError, NotImplementedError),  # of the many libraries that may be below
    ) as error:
        raise InputError(
            f"{label}: cannot be read ({type(error).__name__}: {error}); expected labelled "
            "precipitation that xarray can open. Fetch or write it again."
        ) from error
