"""Where training patches come from: a field a line, and what a bundle tells of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wdm_runtime.errors import InputError

MOST_LISTED = 1000  # fields; of more, checkpoints and bundles have a line a storm day
_TIMELESS = "none-"


@dataclass(frozen=True)
class Source:
    """Where the patches ``first .. first + count - 1`` of a store come from."""

    file: str
    sha256: str
    valid_time: str
    first: int
    count: int

    @property
    def storm_day(self) -> str:
        """The valid time's date, or the file of a field without one.

        Fields of one day are one storm, however many there are.
        """
        return storm_day(self.file, self.valid_time)


def storm_day(file: str, valid_time: str) -> str:
    """As `Source.storm_day`."""
    return valid_time.partition("T")[0] if has_time(valid_time) else file


def day_of(source: dict[str, Any]) -> str:
    """The storm day of a line of `listed`, or of a single source."""
    day: str = source.get("storm_day") or storm_day(source["file"], source["valid_time"])
    return day


def has_time(valid_time: str) -> bool:
    """Whether a field's valid time is one, and not the number of a field without."""
    return not valid_time.startswith(_TIMELESS)


def require_new(file: Path, digest: str, read: dict[str, Path], counted: str) -> None:
    """Refuse a file of bytes that came before, or add it to those ``read``, by their SHA-256.

    ``counted`` is what of it would count twice.

    Raises
    ------
    InputError
    """
    if digest in read:
        raise InputError(
            f"{file}: has the same bytes as {read[digest]}; expected each file once, "
            f"as its {counted} would count twice. Leave one of them out."
        )
    read[digest] = file


def none_usable(last: InputError) -> InputError:
    """The error where all files were left out, from that of the last one."""
    return InputError(
        f"None of the files could be used; expected one at least. The last one: {last}"
    )


def told(sources: Any) -> list[dict[str, Any]]:
    """Those of a manifest's sources that say what ours do: others' bundles may not."""
    return [
        source
        for source in (sources if isinstance(sources, list) else [])
        if isinstance(source, dict)
        and "sha256" in source
        and ("storm_day" in source or {"file", "valid_time"} <= source.keys())
    ]


def without(
    sources: Iterable[dict[str, Any]], others: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Sources that are not among others, in order."""
    had = {frozenset(source.items()) for source in others}
    return [source for source in sources if frozenset(source.items()) not in had]


def listed(sources: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sources as checkpoints and bundles tell them, whose headers and manifests are bounded.

    Up to `MOST_LISTED` fields have a line each. Of more, a ``storm_day`` has one: its first valid
    time, ``fields`` and files as numbers, patches (``count``), and as ``sha256`` that of its only
    file, or what ``sha256sum FILES | sha256sum`` prints of its files in order of their names.
    """
    if len(sources) <= MOST_LISTED:
        return [dict(source) for source in sources]
    days: dict[str, list[dict[str, Any]]] = {}
    for source in sources:
        days.setdefault(storm_day(source["file"], source["valid_time"]), []).append(source)
    return [{"storm_day": day, **_one_line(fields)} for day, fields in sorted(days.items())]


def _one_line(fields: Sequence[dict[str, Any]]) -> dict[str, Any]:
    files = sorted({(source["file"], source["sha256"]) for source in fields})
    lines = "".join(f"{digest}  {file}\n" for file, digest in files)
    return {
        "file": files[0][0] if len(files) == 1 else f"{len(files)} files",
        "sha256": files[0][1] if len(files) == 1 else hashlib.sha256(lines.encode()).hexdigest(),
        "valid_time": min(source["valid_time"] for source in fields),
        "first": min(source["first"] for source in fields),
        "count": sum(source["count"] for source in fields),
        "fields": len(fields),
    }
