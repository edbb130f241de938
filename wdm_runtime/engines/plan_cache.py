"""A private folder of what TensorRT makes on this machine: plans, timings, compiled kernels.

A plan is code that the GPU runs, so entries are read only from a folder and files that belong to
this user and that nobody else may write to. An entry is one file: a line of JSON with its key, its
length and its hash, then its bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from wdm_runtime.errors import EngineError, OutputError
from wdm_runtime.io.atomic import whole_file

Key = Mapping[str, str | int]
_SUFFIX = ".entry"
# Entries kept. A bench of two engines writes 34; this holds those of a few bundles and of the
# version before.
_KEPT = 128
_READ_ONLY_USER = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class PlanCache:
    """Entries by key.

    Parameters
    ----------
    folder
        Made when the first entry is written, readable by this user alone; None keeps nothing.
    note
        Told, in one line each, what was wrong with an entry and why one is not kept.
    """

    def __init__(self, folder: Path | None, note: Callable[[str], None]) -> None:
        self.folder, self._note = folder, note

    def read(self, key: Key) -> bytes | None:
        """The entry of a key; None if there is none. A damaged one is removed.

        Raises
        ------
        EngineError
            The folder or the entry belongs to somebody else, or others may write to it.
        """
        path = self._path(key)
        if path is None:
            return None
        try:
            self._check_private(path.parent)
            descriptor = os.open(path, _READ_ONLY_USER)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note(f"{path}: cannot be read ({error}); it is made again.")
            return None
        with os.fdopen(descriptor, "rb") as file:
            _check_owner(path, os.fstat(file.fileno()))
            header, data = file.readline(), file.read()
        if header != _header(key, data):
            self._note(f"{path}: is damaged or of an older version; it is made again.")
            self.remove(key)
            return None
        with suppress(OSError):
            os.utime(path)  # the longest unused go first
        return data

    def write(self, key: Key, data: bytes) -> None:
        """Keep an entry, whole or not at all. Where it cannot be kept, the note says why.

        Raises
        ------
        EngineError
            The folder belongs to somebody else, or others may write to it.
        """
        path = self._path(key)
        if path is None:
            return
        try:
            self._make_folder(path.parent)
            with whole_file(path) as temporary:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_header(key, data))
                    file.write(data)
        except (OSError, OutputError) as error:
            self._note(f"{path}: is not kept, the next start makes it again ({error}).")
            return
        self._prune(path.parent)

    def remove(self, key: Key) -> None:
        """Forget an entry, if there is one."""
        path = self._path(key)
        if path is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @contextmanager
    def only_one(self, key: Key) -> Iterator[None]:
        """Within the block no other process is in the block of the same key.

        Where the folder cannot be written to there is nothing to share, and nobody waits.

        Raises
        ------
        EngineError
            The folder belongs to somebody else, or others may write to it.
        """
        path = self._path(key)
        if path is None:
            yield
            return
        path = path.with_suffix(".lock")
        try:
            self._make_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            yield
            return
        try:
            with suppress(OSError):  # network homes may have no locks: build twice at worst
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # let go by the system if a process dies
            yield
        finally:
            os.close(descriptor)

    def _path(self, key: Key) -> Path | None:
        return self.folder and self.folder / (
            hashlib.sha256(_key_text(key).encode()).hexdigest()[:32] + _SUFFIX
        )

    def _make_folder(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        self._check_private(folder)

    def _check_private(self, path: Path) -> None:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise EngineError(
                f"{path}: is not a folder; expected one for plans. Remove it, or set "
                "XDG_CACHE_HOME to another place."
            )
        _check_owner(path, found)

    def _prune(self, folder: Path) -> None:
        with suppress(OSError):  # another process may be pruning too
            entries = sorted(folder.glob("*" + _SUFFIX), key=lambda p: p.stat().st_mtime_ns)
            for path in entries[:-_KEPT]:
                path.unlink(missing_ok=True)
                path.with_suffix(".lock").unlink(missing_ok=True)


def _key_text(key: Key) -> str:
    return json.dumps(dict(key), sort_keys=True)


def _header(key: Key, data: bytes) -> bytes:
    digest = hashlib.sha256(data).hexdigest()
    values = {"key": dict(key), "bytes": len(data), "sha256": digest}
    return json.dumps(values, sort_keys=True).encode() + b"\n"


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise EngineError(
            f"{path}: belongs to user {found.st_uid} with mode {mode:o}; expected user "
            f"{os.geteuid()} and nobody else with permission to write, because plans are run as "
            "code. Remove it, or set XDG_CACHE_HOME to another place."
        )
