"""The version, from the installed distribution's metadata."""

from __future__ import annotations

import importlib.metadata

from wdm_runtime.errors import DISTRIBUTION


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
        return "0+unknown"


__version__ = _version()
