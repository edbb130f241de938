"""Pictures as files: in what formats, and written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wdm_runtime.errors import OutputError, require
from wdm_runtime.io.atomic import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 130
_NEEDS_LATEX = "pgf"  # which matplotlib looks for when it writes, after all the work


def check_picture(path: Path, option: str) -> None:
    """Refuse a picture that could not be drawn, before anything is done for it.

    Parameters
    ----------
    path
        The picture to write; its suffix says the format, any that matplotlib writes alone.
    option
        What names it on the command line.

    Raises
    ------
    MissingDependencyError
        No matplotlib.
    OutputError
        The suffix is no format of a picture.
    """
    require("matplotlib", "plot", "Drawing a picture")
    from matplotlib.backend_bases import FigureCanvasBase

    formats = set(FigureCanvasBase.get_supported_filetypes()) - {_NEEDS_LATEX}
    if _format(path) not in formats:
        known = ", ".join(f".{name}" for name in sorted(formats))
        raise OutputError(
            f"{path}: has suffix '{path.suffix}'; expected one of {known}. Choose another name for "
            f"{option}."
        )


def save_picture(figure: Figure, path: Path) -> None:
    """Write a picture in the format of its suffix, replacing an older one.

    Raises
    ------
    OutputError
        It cannot be written there.
    """
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format=_format(path))


def _format(path: Path) -> str:
    return path.suffix[1:].lower()
