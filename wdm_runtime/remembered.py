"""Numbers that were measured on this machine, kept so that no later start measures them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wdm_runtime.errors import OutputError
from wdm_runtime.io.atomic import write_text


class Remembered:
    """Numbers by key in one JSON file.

    Parameters
    ----------
    path
        The file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def get(self, key: str) -> float | None:
        """The number of a key; None if there is none, or the file is absent or damaged."""
        found = self._all().get(key)
        if isinstance(found, int | float) and not isinstance(found, bool):
            return float(found)
        return None

    def put(self, numbers: Mapping[str, float]) -> None:
        """Keep numbers by key. Where they cannot be kept they are measured again, nothing more."""
        if self._path is None:
            return
        with suppress(OSError, OutputError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps({**self._all(), **numbers}, indent=1))

    def _all(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text()) if self._path else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
