"""Parts of a field by time and place, and whether a model fits the field's grid.

Every function is pure: fields come back as views of the one handed in, still read when asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError, MissingDependencyError, require
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import SPACING_TOLERANCE, same_spacing
from wdm_runtime.manifest import Manifest

_SNUG = 1e-6  # of a cell: an edge given on a border does not reach into the next cell
_INDEX = re.compile(r"[+-]?\d+")
_INSTANT = re.compile(r"\d{4}-(\d\d(-\d\d(T\d\d(:\d\d(:\d\d)?)?)?)?)?|\d{4}")


def select_times(field: PrecipField, text: str) -> PrecipField:
    """The field at the times a text names.

    Parameters
    ----------
    field
        One or more valid times.
    text
        An index (``"0"``, ``"-1"`` the last); an ISO time in UTC, in full or the beginning of it
        (``"2022-08-09"`` is the whole day); or a range ``"A/B"`` of ISO times with both ends
        included, open where one is left out (``"2022-08-09T12:00/"``).

    Returns
    -------
    PrecipField
        In the field's own order; NaN and rates [mm h-1] as they are.

    Raises
    ------
    InputError
        The text is none of these, or no time of the field fits it.
    """
    return field.at(times_named(field.valid_times, text, _where(field)))


def times_named(times: Sequence[str], text: str, where: str) -> list[int]:
    """The numbers of the times that a text names, as `select_times` takes it.

    Parameters
    ----------
    times
        As `PrecipField.valid_times` has them.
    where
        What has these times, as the messages' subject.

    Raises
    ------
    InputError
        As `select_times` does.
    """
    span = f"{len(times)} times from {times[0]} to {times[-1]}"
    text = text.strip()
    if _INDEX.fullmatch(text):
        index = int(text)
        if not -len(times) <= index < len(times):
            raise InputError(
                f"{where} has {span}; expected an index from {-len(times)} to "
                f"{len(times) - 1}, got {index}. Choose another --time."
            )
        return [index % len(times)]
    first, slash, last = (part.strip().replace(" ", "T") for part in text.partition("/"))
    first, last = first.removesuffix("Z"), (last if slash else first).removesuffix("Z")
    ends = [end for end in (first, last) if end]
    if not ends or not all(_INSTANT.fullmatch(end) for end in ends):
        raise InputError(
            f"Got the time '{text}'; expected an index like 0 or -1, a time like "
            "2022-08-09T15:00 or the beginning of one, or a range A/B of them. Correct --time."
        )
    first, last = first.rstrip("-"), last.rstrip("-")
    # As texts, cut to what was given: ISO times sort as they follow, in every calendar.
    found = [
        index
        for index, time in enumerate(times)
        if time[: len(first)] >= first and time[: len(last)] <= (last or time)
    ]
    dated = not times[0].startswith("none-")
    if not found or not dated:
        remedy = "Choose another --time." if dated else "It has no times: give an index to --time."
        raise InputError(f"{where} has {span}; expected at least one within '{text}'. {remedy}")
    return found


def snap_cells(manifest: Manifest) -> int:
    """Coarse cells that windows begin and end on: as many as are whole wavelet coefficients.

    So a crop draws the whole field's noise. At least 2, as fields have; 2 are enough for a factor
    of 10 and a stride of 4.
    """
    return math.lcm(2, manifest.coefficient_cells)


def select_box(field: PrecipField, text: str, snap: int = 2) -> PrecipField:
    """The smallest window of whole blocks of coarse cells that covers a box.

    The window snaps outward to a multiple of ``snap`` cells from the whole field's north-west
    corner, or to the field's edge; parts of the box beyond the edge are left out.

    Parameters
    ----------
    field
        A field on any grid, rows in either order.
    text
        ``"W,S,E,N"``: degrees on latitude-longitude grids, with longitudes in either convention
        and E below W across the dateline; the coordinates' own units on projected grids.
    snap
        As `snap_cells` says of a bundle; 2 for the shipped one.

    Returns
    -------
    PrecipField
        With its ``origin`` in the whole field, at least 2 x 2 cells where the field has as many.

    Raises
    ------
    InputError
        The text is no box, the box lies outside the grid, or would need two windows because the
        grid itself begins in its middle.
    """
    west, south, east, north = _box(field, text)
    rows = _window(field.grid.y, south, north)
    columns = _columns(field, west, east, text)
    if rows is None or columns is None:
        raise InputError(
            f"{_where(field)} covers {_extent(field)}; expected a box that meets it, got "
            f"'{text}'. Correct --bbox."
        )
    size = field.grid.y.size
    # Rows counted from the north, as noise is; columns as they are stored.
    mirrored = not field.grid.north_first
    top, bottom = (size - rows[1], size - rows[0]) if mirrored else rows
    top, bottom = _snap(top, bottom, size, field.origin[0], snap)
    left, right = _snap(*columns, field.grid.x.size, field.origin[1], snap)
    chosen = slice(size - bottom, size - top) if mirrored else slice(top, bottom)
    return field.crop(chosen, slice(left, right))


def crop_alike(fine: PrecipField, part: PrecipField, factor: int) -> PrecipField:
    """What lies in a whole fine field where a part lies in the whole coarse one.

    Parameters
    ----------
    fine
        ``factor`` times as many cells as the whole coarse field along both axes; rows in either
        order.
    part
        A window of the coarse field.
    """
    top, left = (factor * cells for cells in part.origin)
    height, width = (factor * n for n in part.grid.shape)
    if not fine.grid.north_first:
        top = fine.grid.y.size - top - height
    return fine.crop(slice(max(0, top), max(0, top + height)), slice(left, left + width))


def check_spacing(field: PrecipField, spacing_km: float, factor: int, assume: bool | None) -> None:
    """Refuse a grid whose cells are not ``factor`` times as wide as those a model makes.

    Parameters
    ----------
    field
        The coarse field. Degrees count 100 km, as grids are named: 0.1 degrees is 10 km.
    spacing_km
        The model's fine spacing [km].
    factor
        Fine cells per coarse cell along one axis.
    assume
        The caller takes the grid for what the model expects, whatever its spacing. None: scores
        or lengths depend on the spacing, so that no option takes it as it is.

    Raises
    ------
    InputError
        The spacing differs by more than 10 % along an axis, or cannot be known; or an axis has one
        cell, which has no finer grid even if its spacing is assumed.
    """
    y, x = field.grid.shape
    if min(y, x) < 2:
        raise InputError(
            f"{_where(field)} has {y} x {x} cells (y, x), so their spacing is unknown; expected at "
            "least two along each axis. Hand in a larger area."
        )
    if assume:
        return
    expected = spacing_km * factor
    spacing = field.grid.spacing_km
    remedy = (
        "Regrid the field, choose another bundle with --bundle, or pass --assume-factor to "
        "take the grid as it is."
    )
    if assume is None:
        remedy = f"{_averaging(field, expected, factor)}, or choose another bundle."
    if spacing is None:
        units = " and ".join(f"'{unit}'" for unit in field.grid.units)
        raise InputError(
            f"{_where(field)} has coordinates in units {units}, so its cells' spacing is unknown; "
            f"expected {expected:g} km along both axes. {remedy}"
        )
    if not all(same_spacing(got, expected) for got in spacing):
        raise InputError(
            f"{_where(field)} has cells of {spacing[0]:.4g} x {spacing[1]:.4g} km (y, x); "
            f"expected {expected:g} km within {SPACING_TOLERANCE:.0%} along both axes. {remedy}"
        )


def _averaging(field: PrecipField, expected_km: float, factor: int) -> str:
    """How to come to an expected spacing; the sentence goes on."""
    spacing = field.grid.spacing_km
    cells = round(expected_km / spacing[0]) if spacing else 0
    if not spacing or cells < 2 or not all(same_spacing(cells * km, expected_km) for km in spacing):
        return "Regrid the field"
    name = "fine" if factor == 1 else "coarse"
    return f"Average it (wdm-export coarsen {name.upper()} -o {name}.nc --factor {cells})"


def outside_training(field: PrecipField, latitudes: tuple[float, float]) -> str | None:
    """A sentence if the field reaches beyond the latitudes a model was trained on, else None.

    ``latitudes`` are the southern and northern edge [degrees]. Cells count by their centres. None
    also where the field's latitudes cannot be had: see `latitude_range`.
    """
    found = latitude_range(field)
    if found is None or (latitudes[0] <= found[0] and found[1] <= latitudes[1]):
        return None
    apart = found[1] < latitudes[0] or found[0] > latitudes[1]
    return (
        f"The field lies {'' if apart else 'partly '}outside the latitudes the model was trained "
        f"on: {found[0]:.2f} to {found[1]:.2f} against {latitudes[0]:g} to {latitudes[1]:g} "
        "degrees."
    )


def latitude_range(field: PrecipField) -> tuple[float, float] | None:
    """Southernmost and northernmost latitude of the cells' centres [degrees].

    Of a projected or rotated grid it is worked out from the grid mapping, which needs the extra
    ``odim``; None without that, or without a grid mapping that says enough.
    """
    grid, mapping = field.grid, field.source.grid_mapping
    names = (
        str(grid.attributes[0].get("standard_name")),
        str(mapping.attributes.get("grid_mapping_name")) if mapping else "",
    )
    if grid.is_latlon and "grid_latitude" not in names and "rotated" not in names[1]:
        return float(grid.y.min()), float(grid.y.max())
    spacing_km = grid.spacing_km
    if mapping is None or spacing_km is None:
        return None
    try:
        pyproj = require("pyproj", "odim", "Finding a projected grid's latitudes")
        crs = pyproj.CRS.from_cf(mapping.attributes)
        scale = 1.0
        if not grid.is_latlon:  # metres or kilometres to the projection's own unit
            scale = 1e3 * spacing_km[1] / grid.spacing[1] / crs.axis_info[0].unit_conversion_factor
        # A pole inside the grid is far from its border, so every cell counts.
        x, y = np.meshgrid(grid.x * scale, grid.y * scale)
        to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        found = to_degrees.transform(x, y)[1]
    except (MissingDependencyError, ValueError, KeyError, IndexError, RuntimeError):
        return None
    found = found[np.isfinite(found)]
    return (float(found.min()), float(found.max())) if found.size else None


def _where(field: PrecipField) -> str:
    path, variable = field.source.path, field.source.variable
    return f"{path or 'The field'}: variable '{variable}'" if variable else path or "The field"


def _extent(field: PrecipField) -> str:
    """W,S,E,N of the cells' outer borders, as --bbox takes them."""
    west, east, south, north = field.grid.extent
    units = "degrees" if field.grid.is_latlon else field.grid.units[1] or "its own units"
    return f"W,S,E,N = {west:g},{south:g},{east:g},{north:g} ({units})"


def _box(field: PrecipField, text: str) -> tuple[float, float, float, float]:
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        west = south = east = north = math.nan
    degrees = field.grid.is_latlon
    if degrees and east < west:  # across the dateline
        east += 360
    if not (west <= east < math.inf and -math.inf < south <= north < math.inf > -west):
        raise InputError(
            f"Got the box '{text}'; expected 'W,S,E,N' with S not above N"
            f"{'' if degrees else ' and W not above E'}, within {_extent(field)}. Correct --bbox."
        )
    return west, south, east, north


def _columns(field: PrecipField, west: float, east: float, text: str) -> tuple[int, int] | None:
    x = field.grid.x
    if not field.grid.is_latlon:
        return _window(x, west, east)
    if east - west >= 360:
        return 0, x.size
    turns = range(math.floor((x.min() - east) / 360), math.ceil((x.max() - west) / 360) + 1)
    found = {_window(x, west + 360 * turn, east + 360 * turn) for turn in turns} - {None}
    if len(found) > 1:
        raise InputError(
            f"{_where(field)} covers {_extent(field)} and the box '{text}' crosses the border "
            "where it begins and ends; expected a box on one side of it. Ask for both sides one "
            "after the other with --bbox."
        )
    return found.pop() if found else None


def _window(centres: npt.NDArray[np.float64], low: float, high: float) -> tuple[int, int] | None:
    """First and one past the last cell that a stretch of the axis meets; None beyond its ends."""
    if centres.size == 1:
        return (0, 1) if low <= centres[0] <= high else None
    step = (centres[-1] - centres[0]) / (centres.size - 1)
    near, far = sorted((edge - centres[0]) / step + 0.5 for edge in (low, high))
    first, stop = math.floor(near + _SNUG), math.ceil(far - _SNUG)
    stop = max(stop, first + 1)  # a stretch without width lies in one cell
    if stop <= 0 or first >= centres.size:
        return None
    return max(first, 0), min(stop, centres.size)


def _snap(first: int, stop: int, size: int, origin: int, snap: int) -> tuple[int, int]:
    """Outward to blocks of the whole field, but not beyond this one's edges."""
    first -= (first + origin) % snap
    stop += -(stop + origin) % snap
    first, stop = max(first, 0), min(stop, size)
    if stop - first < 2:  # the odd cell at the edge takes neighbours in
        first, stop = max(first - snap, 0), min(stop + snap, size)
    return first, stop
