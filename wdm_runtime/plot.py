"""A picture of one frame of an ensemble: coarse input, a member, the mean and a probability.

Matplotlib's `Figure` is used directly: no pyplot, no backend switch, no global state.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import Grid
from wdm_runtime.input_hash import find_input
from wdm_runtime.io import read_field
from wdm_runtime.io.atomic import check_destination
from wdm_runtime.io.ensemble import EnsembleFrame, read_frame
from wdm_runtime.io.units import parse_period
from wdm_runtime.picture import check_picture, save_picture
from wdm_runtime.select import select_times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import BoundaryNorm, Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Array = npt.NDArray[np.float32]

RATE_LEVELS_MM_H = (0.1, 0.5, 1, 2, 5, 10, 20, 50, 100)
# One colour a level, the last for all above. Lightness falls steadily, so it survives grey print
# and colour-blind eyes; the hue turns from blue to red where rain becomes heavy.
_RATE_COLOURS = (
    "#d9ecf8", "#afd6ef", "#7ab8e0", "#4f9bd3", "#4374be",
    "#6f4fae", "#932f88", "#a30f3f", "#43050f",
)  # fmt: skip
_PROBABILITY_COLOURS = ("#ffffff", "#fde3b5", "#f9a953", "#dd5b26", "#99201b", "#4a0812")
_DRY, _MISSING = "#ffffff", "#d4d4d4"

_FIGURE_INCHES2 = 11.5 * 8.5  # 1500 x 1100 px; the sides follow the domain's shape
_SIDES_INCHES, _ENDS_INCHES = 1.0, 2.1  # room for labels and bars beside and above the panels
_PAD_INCHES = 0.08  # around each panel
_HEIGHT_OVER_WIDTH = (0.33, 1.6)  # of a panel's place: beyond, the domain leaves some white
_CELLS_ACROSS = 1500  # a panel has half as many pixels, and more cells only cost memory
_SYMBOLS = {"degrees_north": "°N", "degrees_east": "°E", "degrees": "°", "degree": "°"}
_METRES = ("m", "metre", "meter", "metres", "meters")


def plot_ensemble(
    output: Path,
    figure: Path,
    coarse: Path | None,
    time: int | str,
    member: int,
    threshold: float,
) -> None:
    """Draw coarse input, one member, ensemble mean and exceedance probability of one frame.

    Parameters
    ----------
    output
        A NetCDF file or Zarr store that ``wdm-run infer`` wrote.
    figure
        The picture to write; its suffix decides the format. An older one is replaced.
    coarse
        The coarse input; None looks for it as `wdm_runtime.input_hash.find_input` does.
    time
        A number, or a text that names one time as `wdm_runtime.select.select_times` takes it.
    member
        Number from 0.
    threshold
        Rate of the probability [mm h-1].

    Raises
    ------
    InputError
        The output is none, has no such member, no or several such times, or its coarse input is
        not found or another field; the threshold is not positive.
    OutputError
        The figure cannot be written there or in that format.
    MissingDependencyError
        No matplotlib; Zarr without the extra ``xarray``.
    """
    output, figure = Path(output), Path(figure)
    check_picture(figure, "--figure")
    check_destination(figure, overwrite=True)
    frame = read_frame(output, time, member, threshold)
    field = _read_coarse(output, coarse, frame)
    save_picture(_draw(frame, field, member, threshold), figure)


def _read_coarse(output: Path, coarse: Path | None, frame: EnsembleFrame) -> PrecipField:
    """The coarse input, checked to be the one the output was made from."""
    if coarse is None:
        said = frame.provenance
        coarse = find_input(output, str(said["wdm_input"]), said.get("wdm_input_sha256"))
    variable = str(frame.provenance.get("wdm_variable", frame.variable))  # a path, where stated
    stated = frame.provenance.get("wdm_accumulation")
    hours = parse_period(None if stated is None else str(stated))
    field = _as_selected(read_field(coarse, variable, hours), frame)
    time = frame.index
    found = field.valid_times[time] if time < len(field.valid_times) else "no such time"
    # Frames without a time are numbered, in the output from its own first one.
    timeless = found.startswith("none-") and frame.valid_time.startswith("none-")
    if not _same_area(field.grid, frame.grid) or (found != frame.valid_time and not timeless):
        raise InputError(
            f"{coarse}: has {' x '.join(map(str, field.grid.shape))} cells and, at time {time}, "
            f"'{found}'; expected the field that became {output.name}'s "
            f"{' x '.join(map(str, frame.grid.shape))} cells at '{frame.valid_time}'. "
            "Name the coarse input with --input."
        )
    return field


def _as_selected(field: PrecipField, frame: EnsembleFrame) -> PrecipField:
    """The part of the input that the output was made from."""
    if "wdm_time" in frame.provenance:
        field = select_times(field, str(frame.provenance["wdm_time"]))
    if "wdm_bbox" not in frame.provenance:
        return field
    # Not by the box again: what it snapped to depends on the bundle.
    inside = []
    for coarse, fine in ((field.grid.y, frame.grid.y), (field.grid.x, frame.grid.x)):
        half = abs(fine[1] - fine[0]) / 2
        (cells,) = np.nonzero((coarse > fine.min() - half) & (coarse < fine.max() + half))
        inside.append(slice(cells[0], cells[-1] + 1) if cells.size else slice(None))
    return field.crop(inside[0], inside[1])


def _same_area(coarse: Grid, fine: Grid) -> bool:
    """Whether cutting coarse cells evenly gives the fine ones."""
    factor = fine.shape[0] // coarse.shape[0]
    if factor < 1 or fine.shape != (coarse.shape[0] * factor, coarse.shape[1] * factor):
        return False
    refined = coarse.refined(factor)
    return all(
        np.allclose(a, b, rtol=0, atol=0.5 * abs(b[1] - b[0]))
        for a, b in ((refined.y, fine.y), (refined.x, fine.x))
    )


def rate_scale() -> tuple[Colormap, BoundaryNorm]:
    """The colours of all rate panels: white below the first level, grey where missing."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ListedColormap(_RATE_COLOURS[:-1], name="rain").with_extremes(
        under=_DRY, over=_RATE_COLOURS[-1], bad=_MISSING
    )
    return colours, BoundaryNorm(RATE_LEVELS_MM_H, colours.N)


def probability_scale() -> Colormap:
    """The colours of probabilities from 0 to 1: grey where missing."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("probability", list(_PROBABILITY_COLOURS))
    return colours.with_extremes(bad=_MISSING)


def _draw(frame: EnsembleFrame, field: PrecipField, member: int, threshold: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    aspect = 1.0
    if frame.grid.is_latlon:
        aspect = 1 / max(0.1, math.cos(math.radians(float(frame.grid.y.mean()))))
    # Compressed, narrow panels would move together until their titles overlap.
    compress = _height_over_width(frame.grid, aspect) <= _HEIGHT_OVER_WIDTH[1]
    layout = ConstrainedLayoutEngine(compress=compress, w_pad=_PAD_INCHES, h_pad=_PAD_INCHES)
    figure = Figure(figsize=_figure_size(frame.grid, aspect), layout=layout)
    (top_left, top_right), (low_left, low_right) = figure.subplots(2, 2, sharex=True, sharey=True)
    colours, norm = rate_scale()
    members = "1 member" if frame.members == 1 else f"{frame.members} members"
    for axes, title, grid, rates in (
        (top_left, "Coarse input", field.grid, field.frame(frame.index)),
        (top_right, f"Member {member}", frame.grid, frame.member_mm_h),
        (low_left, f"Mean of {members}", frame.grid, frame.mean_mm_h),
    ):
        rain = _show(axes, title, grid, rates, aspect)
        rain.set(cmap=colours, norm=norm)
    title = f"Probability of at least {threshold:g} mm/h"
    chance = _show(low_right, title, frame.grid, frame.probability, aspect)
    chance.set(cmap=probability_scale(), clim=(0, 1))
    bars: dict[str, Any] = {"location": "bottom", "shrink": 0.92, "aspect": 28, "pad": 0.03}
    bar = figure.colorbar(rain, ax=low_left, extend="max", ticks=RATE_LEVELS_MM_H, **bars)
    grey = ", grey: missing" if np.isnan(frame.mean_mm_h).any() else ""
    bar.set_label(f"precipitation rate [mm/h]{grey}")
    bar.ax.set_xticklabels([f"{level:g}" for level in RATE_LEVELS_MM_H])
    bar = figure.colorbar(chance, ax=low_right, format="%.1f", **bars)
    bar.set_label(f"share of {members}")
    for axes in (low_left, low_right):
        _label(axes.xaxis, frame.grid.names[1], frame.grid.attributes[1])
    for axes in (top_left, low_left):
        _label(axes.yaxis, frame.grid.names[0], frame.grid.attributes[0])
    figure.suptitle(_heading(frame), fontsize="large", fontweight="bold")
    return figure


def _figure_size(grid: Grid, aspect: float) -> tuple[float, float]:
    """Width and height [in]: the same area for any domain, little of it white."""
    least, most = _HEIGHT_OVER_WIDTH
    ratio = min(max(_height_over_width(grid, aspect), least), most)
    # (2 w + sides) (2 ratio w + ends) = area, for the panel's width w
    a, b = 4 * ratio, 2 * (_ENDS_INCHES + ratio * _SIDES_INCHES)
    c = _SIDES_INCHES * _ENDS_INCHES - _FIGURE_INCHES2
    panel = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    return 2 * panel + _SIDES_INCHES, 2 * ratio * panel + _ENDS_INCHES


def _height_over_width(grid: Grid, aspect: float) -> float:
    left, right, bottom, top = grid.extent
    return aspect * (top - bottom) / (right - left)


def _show(axes: Axes, title: str, grid: Grid, values: Array, aspect: float) -> AxesImage:
    """Values (y, x) with the largest y on top and x rising to the right, whatever their order."""
    columns = slice(None) if grid.x[0] < grid.x[-1] else slice(None, None, -1)
    stride = max(1, max(values.shape) // _CELLS_ACROSS)
    shown = np.ma.masked_invalid(values[grid.to_north_first, columns][::stride, ::stride])
    axes.set_title(title)
    return axes.imshow(shown, extent=grid.extent, aspect=aspect)


def _label(axis: Any, name: str, attributes: dict[str, Any]) -> None:
    words = str(attributes.get("standard_name") or attributes.get("long_name") or name)
    units = str(attributes.get("units", ""))
    if units in _METRES:
        units = "km"
        axis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
    units = _SYMBOLS.get(units, units)
    axis.set_label_text(words.replace("_", " ") + (f" [{units}]" if units else ""))


def _heading(frame: EnsembleFrame) -> str:
    when = f"Frame {frame.index}"
    if not frame.valid_time.startswith("none-"):
        when = frame.valid_time.replace("T", " ").removesuffix(":00") + " UTC"
    named = (("wdm_bundle", ""), ("wdm_seed", "seed "))
    facts = [f"{word}{frame.provenance[key]}" for key, word in named if key in frame.provenance]
    return ", ".join([when, *facts])
