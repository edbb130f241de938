"""The truth of an evaluation: files that are looked at before the work, and read in their turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wdm_export.sources import day_of, has_time, none_usable, require_new, storm_day, told
from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import Grid
from wdm_runtime.input_hash import hash_of
from wdm_runtime.io import read_field
from wdm_runtime.manifest import Manifest
from wdm_runtime.select import check_spacing, outside_training

_SAME_PLACE = 0.1  # of a cell: corners that lie closer are the same, as files round differently
_MOST_DAYS = 5  # that a note names
_Frame = tuple[str, float | None, str, tuple[int, int]]


@dataclass(frozen=True)
class TruthFile:
    """A file that can be scored, and what limits its scores.

    Parameters
    ----------
    path, sha256
        The file.
    cells
        Of its grid, (y, x).
    outside
        As `outside_training` says it, or None.
    known
        Whether the bundle was trained on this very file.
    known_days
        Of its days those that the bundle was trained on.
    """

    path: Path
    sha256: str
    cells: tuple[int, int]
    outside: str | None = None
    known: bool = False
    known_days: tuple[str, ...] = ()


class TruthFiles:
    """Fields of the model's own spacing, each opened again when its turn comes.

    What was found when they were looked at is not kept: a day of frames does not fit into memory.

    Parameters
    ----------
    files
        1 km truth in any format that `read_field` reads.
    manifest
        Of the bundle that is evaluated.
    variable, accumulation_h
        As for `read_field`.
    on_unreadable
        Called with the error of a file that cannot be read or comes again, which is then left
        out; None: the first one ends it.

    Attributes
    ----------
    files : list of TruthFile
        Those that count, fewer after `leave_out`.

    Raises
    ------
    InputError
        As `read_truth`; two files of the same bytes, or with the same time of the same grid; or
        none is left.
    """

    def __init__(
        self,
        files: Iterable[Path],
        manifest: Manifest,
        variable: str | None = None,
        accumulation_h: float | None = None,
        on_unreadable: Callable[[InputError], None] | None = None,
    ) -> None:
        self._spacing_km, latitudes = manifest.domain.spacing_km, manifest.domain.latitudes
        sources = told(manifest.training.get("sources"))
        hashes, days = {source["sha256"] for source in sources}, set(map(day_of, sources))
        self._asked, self._on_unreadable = (variable, accumulation_h), on_unreadable
        self._failure: InputError | None = None
        self.files: list[TruthFile] = []
        read: dict[str, Path] = {}
        frames: dict[_Frame, list[tuple[Path, Grid]]] = {}
        for file in files:
            try:
                field = read_truth(file, self._spacing_km, *self._asked)
                digest = hash_of(file)
                require_new(file, digest, read, "tiles")
                _require_new_frames(file, field, frames)
            except InputError as error:
                self.leave_out(error)
            else:
                known = days & {storm_day("", time) for time in field.valid_times} - {""}
                self.files.append(
                    TruthFile(
                        file,
                        digest,
                        field.grid.shape,
                        outside_training(field, latitudes),
                        digest in hashes,
                        tuple(sorted(known)),
                    )
                )
        self._require_some()

    def __iter__(self) -> Iterator[PrecipField]:
        """The fields of the files that count.

        Raises
        ------
        InputError
            One cannot be opened any more, or none is left at the end.
        """
        for file in tuple(self.files):
            try:
                field = read_truth(file.path, self._spacing_km, *self._asked)
            except InputError as error:
                self.leave_out(error, str(file.path))
            else:
                yield field
        self._require_some()

    def leave_out(self, error: InputError, path: str = "") -> None:
        """Take a file off the list, or raise its error where none may be left out."""
        if self._on_unreadable is None:
            raise error
        self._on_unreadable(error)
        self._failure = error
        self.files = [file for file in self.files if str(file.path) != path]

    def notes(self) -> list[str]:
        """What limits the scores: a line for each kind, with the files it is true of."""
        found: dict[str, list[TruthFile]] = {}
        for file in self.files:
            if file.outside:
                found.setdefault(file.outside, []).append(file)
        notes = [f"{_named(files)}: {said}" for said, files in found.items()]
        known = [file for file in self.files if file.known]
        if known:
            notes.append(f"The bundle was trained on {_named(known)}: its scores there flatter.")
        others = [file for file in self.files if file.known_days and not file.known]
        if others:
            days = sorted({day for file in others for day in file.known_days})
            shown = ", ".join(days[:_MOST_DAYS]) + ", ..." * (len(days) > _MOST_DAYS)
            notes.append(
                f"The bundle was trained on fields of the same day as {_named(others)} ({shown}): "
                "its scores on storms that it knows flatter."
            )
        return notes

    def _require_some(self) -> None:
        if not self.files and self._failure is not None:
            raise none_usable(self._failure)


def _named(files: list[TruthFile]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return files[0].path.name + more


def read_truth(
    file: Path, spacing_km: float, variable: str | None, accumulation_h: float | None
) -> PrecipField:
    """A field of a model's own spacing [km]; NetCDF's rates are read when they are asked for.

    Raises
    ------
    InputError
        As `read_field` and `check_spacing`.
    """
    field = read_field(file, variable, accumulation_h)
    check_spacing(field, spacing_km, factor=1, assume=None)
    return field


def _require_new_frames(
    file: Path, field: PrecipField, known: dict[_Frame, list[tuple[Path, Grid]]]
) -> None:
    """Refuse a time of a grid that came before, as unpacked beside the gzipped one.

    A rate and a sum up to the same time are two truths, and fields without a time may be of any.
    """
    place = _counted_from(field)
    if place is None:
        return
    frames = [
        (time, field.source.period_h, place, field.grid.shape)
        for time in field.valid_times
        if has_time(time)
    ]
    for frame in frames:
        for other, grid in known.get(frame, []):
            if _same_place(field.grid, grid):
                raise InputError(
                    f"{file}: has the time {frame[0]} on the same grid as {other}; expected each "
                    "time once, as its tiles would count twice. Leave one of them out."
                )
    for frame in frames:
        known.setdefault(frame, []).append((file, field.grid))


def _counted_from(field: PrecipField) -> str | None:
    """What coordinates count from, "" of plain degrees; None if unknown, as of a lone radar."""
    mapping = field.source.grid_mapping
    if mapping and mapping.attributes.get("grid_mapping_name") != "latitude_longitude":
        return repr(sorted(mapping.attributes.items()))
    return "" if field.grid.is_latlon else None


def _same_place(one: Grid, other: Grid) -> bool:
    """Whether the corners are the same, in either order of rows and convention of longitudes."""
    for a, b, step, turn in zip(
        (one.y, one.x), (other.y, other.x), one.spacing, (0, 360 * one.is_latlon), strict=True
    ):
        off = np.array([a.min() - b.min(), a.max() - b.max()])
        if turn:
            off -= turn * np.round(off / turn)
        if np.abs(off).max() > _SAME_PLACE * abs(step):
            return False
    return True
