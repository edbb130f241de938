"""Files, and stores that are folders, that appear whole or not at all.

An output grows in a hidden folder beside its final place and takes its name once all of it is on
disk, so neither a crash nor a full disk leaves something that looks complete.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wdm_runtime.errors import OutputError

ZARR_SUFFIX = ".zarr"
_ZARR_ROOTS = (".zgroup", "zarr.json")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's fcntl.h and stdio.h


def check_destination(
    path: Path, others: Iterable[str | Path | None] = (), overwrite: bool = False
) -> None:
    """Refuse a path that cannot be written to, before any work is done for it.

    Parameters
    ----------
    path
        What is to be written.
    others
        Files and folders that the same run reads, or writes too; None is none.
    overwrite
        Whether an older file may be replaced.

    Raises
    ------
    OutputError
        No such folder, or not writable; ``path`` is no text, no regular file (or, named ``.zarr``,
        no Zarr store), is, holds or lies in one of ``others``, or exists without ``overwrite``.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:  # libraries take names in UTF-8
        raise OutputError(
            f"{str(path.absolute())!r}: has bytes that are no UTF-8 (at {error.start}); expected a "
            "name that is text. Choose another name."
        ) from error
    except OSError as error:
        raise OutputError(
            f"{path}: lies in the current folder, which is gone ({error}); expected one to write "
            "into. Change into another folder, or give the whole path."
        ) from error
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
    check_apart(path, others)
    if not os.path.lexists(path):
        return
    store = path.suffix.lower() == ZARR_SUFFIX
    if path.exists() and not (_is_zarr_group(path) if store else path.is_file()):
        kind = "Zarr store" if store else "regular file"  # no other folder is ever replaced
        raise OutputError(
            f"{path}: is not a {kind}; expected one, or nothing. Choose another name."
        )
    if not overwrite:
        raise OutputError(
            f"{path}: exists already; expected no such file. Pass --overwrite or choose another "
            "name."
        )


def check_apart(path: Path, others: Iterable[str | Path | None]) -> None:
    """Refuse a path that is, holds or lies in one of the others that a run reads or writes.

    Raises
    ------
    OutputError
        It is, does or lies there.
    """
    for other in others:
        if other is not None and (relation := _relation(path, Path(other))):
            raise OutputError(
                f"{path}: {relation} '{other}', which this run reads or writes too; expected "
                "another file. Choose another name."
            )


def _is_zarr_group(path: Path) -> bool:
    return not path.is_symlink() and any((path / name).is_file() for name in _ZARR_ROOTS)


def _relation(path: Path, other: Path) -> str:
    """How writing a path would touch another: "is", "holds" or "lies in", or "" if it does not."""
    mine, its = path.resolve(), other.resolve()
    if mine == its or (path.exists() and other.exists() and path.samefile(other)):
        return "is"
    if mine in its.parents:  # a store that is replaced goes with all it holds
        return "holds"
    return "lies in" if its in mine.parents else ""


class Workspace:
    """A hidden folder beside ``path`` in which one process at a time makes it.

    It is locked, and the system lets go of the lock if the process dies: whoever writes ``path``
    next throws away what a killed process left. Where the file system has no locks the folder gets
    a name of its own, and what is left of it stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = path.with_name(f".{path.name}.writing.tmp")
        self._descriptor: int | None = None

    @property
    def temporary(self) -> Path:
        """Where the output grows, under its final name."""
        return self._folder / self.path.name

    def open(self) -> None:
        """Make the folder, empty and this process's own.

        Raises
        ------
        OutputError
            Another process is writing this output.
        OSError
            The folder cannot be made.
        """
        while self._descriptor is None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            try:
                descriptor = os.open(self._folder, _FOLDER)
            except FileNotFoundError:  # another process finished just now
                continue
            try:
                if self._lock(descriptor):
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
        for left in self._folder.iterdir():
            discard(left)

    def _lock(self, descriptor: int) -> bool:
        """Whether the folder is still the one under its name."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{self.path}: is being written by another process; expected to be the only one. "
                "Wait for it, or choose another name."
            ) from error
        except OSError:  # no locks here
            with suppress(OSError):
                self._folder.rmdir()
            self._folder = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}.tmp")
            self._folder.mkdir(mode=0o700)
            return True
        try:
            return os.path.samestat(os.stat(self._folder), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Throw away whatever is in it."""
        if self._descriptor is not None:
            discard(self._folder)
            os.close(self._descriptor)
            self._descriptor = None


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
    """Put a finished file or folder on disk and give it its name.

    With ``overwrite`` another of that name is replaced at once: the name holds the old one or the
    new one at any time.

    Raises
    ------
    OutputError
        Without ``overwrite``: something of that name appeared meanwhile, and was left as it is.
    OSError
        The file system refuses; an older output is still there.
    """
    if temporary.is_dir():
        os.sync()  # thousands of files, each of which would have to be opened again
        _move_folder(temporary, path, overwrite)
    else:
        _sync(temporary)
        if overwrite:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
    # The folder's entry too; some file systems cannot, and the file is already in place.
    with suppress(OSError):
        _sync(path.parent)


def _move_folder(temporary: Path, path: Path, overwrite: bool) -> None:
    if os.path.lexists(path) and not overwrite:  # as late as possible: a rename may replace
        raise _appeared(path)
    if not path.exists():
        os.rename(temporary, path)
    elif not _exchanged(temporary, path):
        aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.old")  # nobody cleans it up
        os.rename(path, aside)
        try:
            os.rename(temporary, path)
        except BaseException:
            os.rename(aside, path)
            raise
        discard(aside)


def _exchanged(first: Path, second: Path) -> bool:
    """Swap two names in one step, if this system and file system can."""
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(first.absolute()), os.fsencode(second.absolute())
    if exchange is None:
        return False
    if exchange(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code))


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a rename, refuses to replace
    except FileExistsError as error:
        raise _appeared(path) from error
    except OSError:  # no hard links on this file system: check as late as possible
        check_destination(path)
        os.replace(temporary, path)


def _appeared(path: Path) -> OutputError:
    return OutputError(
        f"{path}: appeared while this output was being written; expected no such file. It was "
        "left as it is: pass --overwrite or choose another name."
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(temporary: Path) -> None:
    """Remove an unfinished file or store; a second failure must not hide the first."""
    with suppress(OSError):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise SystemExit within the block: unfinished outputs are removed.

    For programs: a library leaves signals alone. Does nothing outside the main thread, nor to a
    signal that is ignored or handled already (`nohup` ignores SIGHUP).
    """

    def leave(number: int, _: Any) -> None:
        for other in taken:  # a second one must not interrupt the tidying up
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    taken: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        known = (signal.SIGTERM, signal.SIGHUP)
        taken += [n for n in known if signal.getsignal(n) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def whole_file(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Give a temporary name to write to, which becomes ``path`` if the block ends well.

    Raises
    ------
    OutputError
        The folder is missing, full or not writable, or without ``overwrite`` the file exists. An
        older file stays as it was.
    """
    workspace = Workspace(path)
    try:
        with output_errors(path):
            workspace.open()
            yield workspace.temporary
            publish(workspace.temporary, path, overwrite)
    finally:
        workspace.close()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; an older one is replaced."""
    with whole_file(path) as temporary, temporary.open("x", encoding="utf-8") as file:
        file.write(text)
