"""Small files from folders that somebody else may have filled: bounded, regular, never a link."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

_MAX_DEPTH = 32
_MAX_KEY = 200  # keys are quoted in messages
_MAX_DIGITS = 18  # fits an int64
# A FIFO is not waited for, a link not followed; a terminal does not become this process's own.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def read_plain(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, one more than ``limit`` at most: the caller sees the excess.

    Hard links cannot be told from files, so a bundle's bytes are trusted by their hash alone.

    Raises
    ------
    OSError
        No such file, no permission, or ``path`` itself is a link.
    ValueError
        A folder, FIFO, device or socket.
    """
    descriptor = os.open(path, _FLAGS)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("is no regular file")
        # A file declares no size to allocate for before it has shown that much.
        return file.read(min(found.st_size, limit) + 1)


def parse_json(raw: bytes) -> Any:
    """JSON as a manifest may use it: UTF-8, keys once, finite numbers, at most 32 levels.

    Raises
    ------
    ValueError
        Anything else, with what is wrong. RecursionError where even the parser gives up.
    """
    values = json.loads(
        raw.decode("utf-8"),
        object_pairs_hook=_unique,
        parse_constant=_not_finite,
        parse_float=_finite,
        parse_int=_short,
    )
    level, depth = [values], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        level = [inner for value in level for inner in _inside(value)]
    return values


def _inside(value: Any) -> list[Any]:
    if isinstance(value, str):
        value.encode("utf-8")  # half of a surrogate pair can be neither printed nor written
        return []
    if isinstance(value, dict):
        if any(len(key) > _MAX_KEY for key in value):
            raise ValueError(f"a key has more than {_MAX_KEY} characters")
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _not_finite(text[:24])


def _short(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_DIGITS:
        raise ValueError(f"a whole number has {len(text)} digits, expected at most {_MAX_DIGITS}")
    return int(text)
