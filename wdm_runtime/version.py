"""The version, from the installed distribution's metadata."""

from __future__ import annotations

from wdm_runtime.errors import DISTRIBUTION


def version() -> str:
    """This distribution's version, ``0+unknown`` where it is not installed."""
    import importlib.metadata  # 20 ms, which an import of the package should not cost

    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"
