"""Where things are kept that only save time when made again."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """This project's folder below the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or _home_cache()) / "wdm-edge"


def _home_cache() -> Path:
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # a service's user may have no home, nor an entry that names one
        return Path(tempfile.gettempdir()) / f"cache-of-{os.getuid()}"


def private_folder(*names: str) -> Path | None:
    """A folder below `cache_folder` that only this user can write to, or None.

    What engines keep there is run as code, so a folder that others may write to is not used.
    """
    path = cache_folder()
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = path / name
            path.mkdir(mode=0o700, exist_ok=True)
            if hasattr(os, "getuid"):
                found = path.lstat()
                shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                if shared or found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
                    return None
    except OSError:  # full, read-only, or a file in the way: do without
        return None
    return path if os.access(path, os.W_OK | os.X_OK) else None
