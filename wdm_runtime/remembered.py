"""Numbers that were measured on this machine, kept so that no later start measures them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wdm_runtime.bundle import Bundle
from wdm_runtime.cache import private_folder
from wdm_runtime.engines import Engine
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import OutputError
from wdm_runtime.io.atomic import write_text
from wdm_runtime.machine import machine


def measured(name: str, bundle: Bundle, engine: Engine, options: EngineOptions) -> Remembered:
    """The numbers of a kind that this machine, with these threads, found of a bundle's engine."""
    folder = private_folder("measured")
    facts = (bundle.sha256, engine.version, engine.device, engine.precision, machine())
    key = "|".join((*facts, str(options.cpu_threads)))
    return Remembered(folder / f"{name}.json" if folder else None, key)


class Remembered:
    """Numbers by name in one JSON file.

    Parameters
    ----------
    path
        The file; None keeps nothing.
    key
        What the numbers are of: the file may hold others of the same names.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key

    def get(self, name: str) -> float | None:
        """The number of a name; None if there is none, or the file is absent or damaged."""
        found = self._all().get(f"{self._key}|{name}")
        if isinstance(found, int | float) and not isinstance(found, bool):
            return float(found)
        return None

    def put(self, numbers: Mapping[str, float]) -> None:
        """Keep numbers by name. Where they cannot be kept they are measured again, nothing more."""
        if self._path is None:
            return
        with suppress(OSError, OutputError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            ours = {f"{self._key}|{name}": number for name, number in numbers.items()}
            write_text(self._path, json.dumps({**self._all(), **ours}, indent=1))

    def _all(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text()) if self._path else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
