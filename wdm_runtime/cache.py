"""Where things are kept that only save time when made again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from wdm_runtime.errors import OutputError


def cache_folder() -> Path:
    """This project's folder below the user's cache folder.

    Raises
    ------
    OutputError
        The user has none: no home, as some services' users.
    """
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise OutputError(
            f"There is no cache folder ({error}); expected a home. Set XDG_CACHE_HOME."
        ) from error
    return Path(root) / "wdm-edge"


def private_folder(*names: str) -> Path | None:
    """A folder below `cache_folder` that only this user can write to, or None.

    What engines keep there is run as code, so a folder that others may write to is not used.
    """
    try:
        path = cache_folder()
        path.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = path / name
            path.mkdir(mode=0o700, exist_ok=True)
            found = path.lstat()
            shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if shared or found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
                return None
    except (OSError, OutputError):  # full, read-only, a file in the way, no home: do without
        return None
    return path if os.access(path, os.W_OK | os.X_OK) else None
