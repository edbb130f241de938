"""Files that appear whole or not at all.

A file grows under a hidden temporary name beside its final one and takes that name once all of it
is on disk, so neither a crash nor a full disk leaves something that looks complete.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wdm_runtime.errors import OutputError


def check_destination(path: Path, input_path: str | None, overwrite: bool) -> None:
    """Refuse a path that cannot be written to, before any work is done for it.

    Raises
    ------
    OutputError
        No such folder, or not writable; ``path`` is no regular file, is ``input_path``, or exists
        without ``overwrite``.
    """
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(
            f"{path}: folder '{folder}' does not exist; expected one to write into. Create it or "
            "choose another name."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path}: folder '{folder}' is not writable; expected permission to create files. "
            "Change its mode or choose another name."
        )
    if not os.path.lexists(path):
        return
    if path.exists() and not path.is_file():
        raise OutputError(
            f"{path}: is not a regular file; expected one, or nothing. Choose another name."
        )
    if input_path is not None and _same_file(path, Path(input_path)):
        raise OutputError(
            f"{path}: is the input itself; expected another file. Choose another name."
        )
    if not overwrite:
        raise OutputError(
            f"{path}: exists already; expected no such file. Pass --overwrite or choose another "
            "name."
        )


def _same_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path``: random, so two processes writing one file never share it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the system says against writing ``path`` into an OutputError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # netCDF4 reports a full disk as RuntimeError
        raise OutputError(
            f"{path}: cannot be written ({error}); expected a folder with room and permission. "
            "Free some space, or choose another name."
        ) from error


def publish(temporary: Path, path: Path, overwrite: bool) -> None:
    """Put a finished file on disk and give it its name, replacing another with ``overwrite``.

    Raises
    ------
    OutputError
        Without ``overwrite``: a file of that name appeared meanwhile, and was left as it is.
    OSError
        The file system refuses.
    """
    _sync(temporary)
    if overwrite:
        os.replace(temporary, path)
    else:
        _link(temporary, path)
    # The folder's entry too; some file systems cannot, and the file is already in place.
    with suppress(OSError):
        _sync(path.parent)


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a rename, refuses to replace
    except FileExistsError as error:
        raise OutputError(
            f"{path}: appeared while this output was being written; expected no such file. It was "
            "left as it is: pass --overwrite or choose another name."
        ) from error
    except OSError:  # no hard links on this file system: check as late as possible
        check_destination(path, None, overwrite=False)
        os.replace(temporary, path)
    else:
        temporary.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(temporary: Path) -> None:
    """Remove an unfinished file; a second failure must not hide the first."""
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Give a temporary name to write to, which becomes ``path`` if the block ends well.

    Raises
    ------
    OutputError
        The folder is missing, full or not writable, or without ``overwrite`` the file exists. An
        older file stays as it was.
    """
    temporary = temporary_name(path)
    try:
        with output_errors(path):
            yield temporary
            publish(temporary, path, overwrite)
    finally:
        discard(temporary)  # nothing is left of it after success


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; an older one is replaced."""
    with whole_file(path) as temporary, temporary.open("x", encoding="utf-8") as file:
        file.write(text)
