"""From 1 km radar fields to a memory-mapped store of training patches.

A store is a folder:
    fine.npy, coarse.npy   (patches, size, size) float16 [mm h-1]: the truth, and its block means
                           interpolated back with the runtime's own interpolation; rows from north
                           to south, as the runtime draws
    index.json             version, sizes, domain (spacing and latitudes), and for every source its
                           file name, SHA-256, valid time and the range of patches that
                           were cut from it; over which periods fields are sums; which variable
                           and period were asked for, if any; over how many cells fields were
                           averaged for further patches, if they were; how many places were left
                           out, and why
float16 keeps MRMS's 0.1 mm/h steps to better than 0.05 %.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from wdm_export.patches import DRY, GAPS, cut_patches
from wdm_export.sources import Source, listed, none_usable, require_new
from wdm_runtime.errors import InputError, OutputError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import (
    NOMINAL_KM_PER_DEGREE,
    SPACING_TOLERANCE,
    block_mean,
    same_spacing,
)
from wdm_runtime.input_hash import hash_of
from wdm_runtime.io import read_field
from wdm_runtime.io.atomic import write_text
from wdm_runtime.manifest import Domain
from wdm_runtime.select import latitude_range
from wdm_runtime.skill import MAX_MISSING_SHARE, MIN_WET_SHARE, TILE_PX

STORE_VERSION = 3  # 3: rows from the north, storm days of fields without a time
_INDEX = "index.json"
_ARRAYS = ("fine", "coarse")


@dataclass(frozen=True)
class PatchStore:
    """A prepared store, opened for reading without loading it."""

    path: Path
    factor: int
    domain: Domain
    sources: tuple[Source, ...]
    fine: npt.NDArray[np.float16]
    coarse: npt.NDArray[np.float16]
    variable: str | None = None
    accumulation_h: float | None = None
    periods_h: tuple[float | None, ...] = ()  # of the fields: None of rates
    left_out: tuple[tuple[str, int], ...] = ()  # reasons and how many places
    augment_scale: int | None = None  # patches of fields averaged over so many cells are here too

    @classmethod
    def open(cls, path: str | Path) -> PatchStore:
        """Open a store written by `prepare`.

        Raises
        ------
        InputError
            The folder is no store, or its version is another.
        """
        path = Path(path)
        try:
            index = json.loads((path / _INDEX).read_text())
            if index["version"] != STORE_VERSION:
                raise InputError(
                    f"{path}: store version is {index['version']}; expected {STORE_VERSION}. "
                    "Prepare the files again."
                )
            sources = tuple(Source(**entry) for entry in index["sources"])
            arrays = [np.load(path / f"{name}.npy", mmap_mode="r") for name in _ARRAYS]
            factor, size = index["factor"], index["patch_px"]
            asked = index["variable"], index["accumulation_h"]
            periods_h = tuple(index["periods_h"])
            domain = Domain(**index["domain"])
            left_out = tuple(index.get("left_out", {}).items())  # older stores do not say
            more = left_out, index.get("augment_scale")
            shape = (sum(source.count for source in sources), size, size)
            if any(array.shape != shape for array in arrays):
                raise ValueError(
                    f"arrays of {[array.shape for array in arrays]}, not the index's {shape}"
                )
        except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: is no store of training patches ({error}); expected a folder written "
                "by 'wdm-export prepare'. Prepare the files first."
            ) from error
        fine, coarse = arrays
        return cls(path, factor, domain, sources, fine, coarse, *asked, periods_h, *more)

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether a folder holds a store, of any version."""
        return (path / _INDEX).exists()

    def listed_sources(self) -> list[dict[str, Any]]:
        """The sources as checkpoints and bundles tell them, see `wdm_export.sources.listed`."""
        how = {"augment_scale": self.augment_scale} if self.augment_scale else {}
        return [line | how for line in listed([asdict(source) for source in self.sources])]

    def by_day(self, shard: int = 0, shards: int = 1) -> dict[str, npt.NDArray[np.intp]]:
        """Patch numbers of each storm day, so that days can be drawn evenly.

        Of every ``shards``-th field from number ``shard`` on, the days with the fewest fields dealt
        first: a shard holds whole fields, and each about as many days.
        """
        fields = [source for source in self.sources if source.count]
        of_day = Counter(source.storm_day for source in fields)
        fields.sort(key=lambda source: (of_day[source.storm_day], source.storm_day))
        days: dict[str, list[npt.NDArray[np.intp]]] = {}
        for source in sorted(fields[shard::shards], key=lambda source: source.first):
            numbers = np.arange(source.first, source.first + source.count)
            days.setdefault(source.storm_day, []).append(numbers)
        return {day: np.concatenate(parts) for day, parts in days.items()}


def prepare(
    files: Iterable[str | Path],
    store: str | Path,
    factor: int = 10,
    size: int = TILE_PX,
    on_file: Callable[[Path, int], None] | None = None,
    variable: str | None = None,
    accumulation_h: float | None = None,
    on_unreadable: Callable[[InputError], None] | None = None,
    augment_scale: int | None = None,
) -> PatchStore:
    """Read 1 km fields, cut training patches and write a store.

    Parameters
    ----------
    files
        Precipitation in any format that `read_field` reads, all of one spacing.
    store
        Folder to write; must not hold a store already.
    on_file
        Called after each file with its path and the number of patches it gave.
    variable, accumulation_h
        As for `read_field`.
    on_unreadable
        Called with the error of a file that cannot be read or comes again, which is then left
        out; None: the first one ends it.
    augment_scale
        Cut patches of each field averaged over so many cells along an axis too, as rain of another
        scale; None: of none.

    Raises
    ------
    InputError
        No file given, an unreadable file, two of the same bytes, fields of unknown or different
        spacings or of unknown latitudes, or no patch found.
    OutputError
        The store's folder cannot be made or filled.
    """
    store = Path(store)
    _make_folder(store, size, factor, augment_scale)
    failure: InputError | None = None
    try:
        with _StoreWriter(store, factor, size, augment_scale) as writer:
            for file in map(Path, files):
                count = 0
                try:
                    field = read_field(file, variable, accumulation_h)
                    count = writer.add(file, hash_of(file), field)
                except InputError as error:
                    if on_unreadable is None:
                        raise
                    on_unreadable(error)
                    failure = error
                if on_file:
                    on_file(file, count)
            if failure is not None and not writer.sources:
                raise none_usable(failure)
            writer.finish(variable, accumulation_h)
    except OSError as error:
        raise OutputError(
            f"{store}: cannot be written ({error}); expected room for the patches. Free some "
            "space, or choose another folder with -o."
        ) from error
    return PatchStore.open(store)


class _StoreWriter:
    """A store in the making, whose patches lie in files without a name until all are there."""

    def __init__(self, store: Path, factor: int, size: int, augment_scale: int | None) -> None:
        self.store, self.factor, self.size = store, factor, size
        self.augment_scale, self._of_means = augment_scale, 0
        self.sources: list[Source] = []
        self.domain: Domain | None = None
        self.periods_h: set[float | None] = set()
        self.patches = 0
        self.left_out: Counter[str] = Counter()
        self._read: dict[str, Path] = {}

    def __enter__(self) -> _StoreWriter:
        self._raw = {
            name: tempfile.TemporaryFile(dir=self.store)  # noqa: SIM115
            for name in _ARRAYS
        }
        return self

    def __exit__(self, *_: object) -> None:
        for raw in self._raw.values():
            raw.close()

    def add(self, file: Path, digest: str, field: PrecipField) -> int:
        """Cut the patches of a file's fields, or none if one cannot be used; says how many.

        Raises
        ------
        InputError
            A file of the same bytes came before, or a field cannot be read or belongs to no domain
            with those before.
        """
        require_new(file, digest, self._read, "patches")
        domain = widened(self.domain, field)
        sources, end, left_out, of_means = [], self.patches, Counter[str](), 0
        try:
            for index, time in enumerate(field.valid_times):
                fine = field.frame(index)[field.grid.to_north_first]
                count = self._append(fine, left_out)
                if self.augment_scale:
                    means = self._append(block_mean(fine, self.augment_scale), left_out)
                    count, of_means = count + means, of_means + means
                sources.append(Source(file.name, digest, time, end, count))
                end += count
        except InputError:
            for raw in self._raw.values():
                raw.seek(2 * self.size**2 * self.patches)
                raw.truncate()
            raise
        self.sources += sources
        self.left_out += left_out
        self._of_means += of_means
        self.domain = domain
        self.periods_h.add(field.source.period_h)
        before, self.patches = self.patches, end
        return end - before

    def _append(self, fine: npt.NDArray[np.floating], left_out: Counter[str]) -> int:
        """Append the patches of a frame (y, x) [mm h-1], north first; says how many."""
        count = 0
        for patches in cut_patches(fine, self.factor, self.size, left_out):
            for raw, patch in zip(self._raw.values(), patches, strict=True):
                raw.write(patch.astype(np.float16).tobytes())
            count += 1
        return count

    def finish(self, variable: str | None, accumulation_h: float | None) -> None:
        """Write the arrays, then the index that makes a folder a store."""
        if self.domain is None or not self.patches:
            raise InputError(
                f"{len(self.sources)} fields gave no training patch; expected some of {self.size} "
                f"x {self.size} cells with at least {MIN_WET_SHARE:.0%} wet, under "
                f"{MAX_MISSING_SHARE:.0%} missing and no coarse cell missing in it or near it; got "
                f"{self.left_out[DRY]} places of {DRY} and "
                f"{self.left_out[GAPS]} of {GAPS}. Hand in larger or wetter fields, or cut smaller "
                "patches with --patch."
            )
        shape = self.patches, self.size, self.size
        for name, raw in self._raw.items():
            with raw:  # closed after it is copied, which frees its room for the next one
                _write_npy(self.store / f"{name}.npy", raw, shape)
        index = {
            "version": STORE_VERSION,
            "factor": self.factor,
            "patch_px": self.size,
            "domain": asdict(self.domain),
            "variable": variable,
            "accumulation_h": accumulation_h,
            "periods_h": sorted(self.periods_h, key=lambda period: period or 0),
            "left_out": dict(self.left_out),
            "augment_scale": self.augment_scale if self._of_means else None,
            "sources": [asdict(source) for source in self.sources],
        }
        write_text(self.store / _INDEX, json.dumps(index, indent=1))


def widened(domain: Domain | None, field: PrecipField) -> Domain:
    """The domain of some training fields with one more, or the domain of the first.

    Raises
    ------
    InputError
        The field's spacing or latitudes are unknown, or its spacing is not the domain's.
    """
    path, spacing, latitudes = field.source.path, field.grid.spacing_km, latitude_range(field)
    if spacing is None or latitudes is None:
        what = "spacing" if spacing is None else "latitudes"
        raise InputError(
            f"{path}: variable '{field.source.variable}' has coordinates in units "
            f"{' and '.join(map(repr, field.grid.units))}, from which its {what} cannot be had; "
            "expected degrees, or m or km with a grid mapping. Correct the file's attributes."
        )
    spacing_km = domain.spacing_km if domain else round(sum(spacing) / 2, 3)
    if not all(same_spacing(got, spacing_km) for got in spacing):
        raise InputError(
            f"{path}: variable '{field.source.variable}' has cells of {spacing[0]:.4g} x "
            f"{spacing[1]:.4g} km (y, x); expected {spacing_km:g} km within "
            f"{SPACING_TOLERANCE:.0%}, as in the fields before. Prepare fields of one spacing."
        )
    half = spacing[0] / NOMINAL_KM_PER_DEGREE / 2  # from the cells' centres to their borders
    south, north = max(latitudes[0] - half, -90.0), min(latitudes[1] + half, 90.0)
    own = Domain(spacing_km, (round(south, 3), round(north, 3)))
    return joined(domain, own) if domain else own


def joined(domain: Domain, other: Domain) -> Domain:
    """Where a model is at home that saw both, whose spacing is the same."""
    (south, north), (lower, upper) = domain.latitudes, other.latitudes
    return replace(domain, latitudes=(min(south, lower), max(north, upper)))


def _make_folder(store: Path, size: int, factor: int, augment_scale: int | None) -> None:
    """Refuse what cannot become a store before any file is read."""
    if size < 2:
        raise InputError(
            f"Got patches of {size} cells; expected at least 2, {TILE_PX} for training. "
            "Correct --patch."
        )
    if not 2 <= factor <= size:
        raise InputError(
            f"Got a factor of {factor}; expected 2 to {size}, the cells of a patch. Correct "
            "--factor."
        )
    if augment_scale is not None and augment_scale < 2:
        raise InputError(
            f"Got means of {augment_scale} cells as another scale; expected 2 or more. Correct "
            "--augment-scale, or leave it out."
        )
    if PatchStore.exists(store):
        raise InputError(
            f"{store}: already holds a store; expected a new folder. Choose another with -o."
        )
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{store}: cannot be made ({error.strerror}). Choose another folder with -o."
        ) from error


def _write_npy(target: Path, raw: IO[bytes], shape: tuple[int, int, int]) -> None:
    """Turn appended raw values into a .npy, whose header needs the final count first."""
    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
    raw.seek(0)
    with target.open("wb") as out:  # a mapped file dies on a full disk
        np.lib.format.write_array_header_1_0(out, header)
        shutil.copyfileobj(raw, out)
