"""Reads untrusted files in a process of its own, so that a file can harm nothing but that process.

The libraries of NetCDF, HDF5 and GRIB crash, hang or fill the memory on some damaged files. Here
that is an `InputError`, and the next file is read by a new process.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError, MissingDependencyError
from wdm_runtime.field import PrecipField
from wdm_runtime.io.child import Child, ChildError, ChildSilentError, ChildStartError
from wdm_runtime.io.field_wire import described
from wdm_runtime.io.wire import Message, WireError
from wdm_runtime.machine import available_bytes

Array = npt.NDArray[np.float32]

READ_TIMEOUT_S: Final = 60.0
_WORKER: Final = "wdm_runtime.io.worker"
_DESCRIPTION_BYTES: Final = 1 << 28  # coordinates and attributes, no rates
_MOST_RELEASED: Final = 1000  # in one request, which has to fit into the pipe
_CATEGORIES: Final = {
    category.__name__: category
    for category in (UserWarning, RuntimeWarning, FutureWarning, DeprecationWarning)
}


@dataclass(frozen=True)
class Request:
    """What was asked to be read, complete, so that a new process can read it again."""

    path: str
    folder: str
    variable: str | None
    accumulation_h: float | None


class ReaderFault(Exception):
    """The traceback of the other process, as the cause of an error here."""


class ReaderProcess:
    """Reads files in one other process, which is started when needed and after each crash.

    Its fields read a frame when it is asked for, so keep it open as long as they are used. It may
    be used from several threads, which take turns.

    Parameters
    ----------
    max_bytes
        Memory that reading may take, of declared sizes and in fact; None is what is free when the
        process starts.
    timeout_s
        How long reading may make no progress [s]; waiting for a core does not count.
    timeout_option
        The option of a command line that sets ``timeout_s``, for messages; none if "".

    Examples
    --------
    >>> with ReaderProcess(max_bytes=2 << 30) as reader:  # doctest: +SKIP
    ...     for path in arriving:
    ...         field = reader.read_field(path)
    """

    def __init__(
        self,
        max_bytes: int | None = None,
        timeout_s: float = READ_TIMEOUT_S,
        timeout_option: str = "",
    ) -> None:
        if not 0 < timeout_s < np.inf:
            raise InputError(
                f"Got a read timeout of {timeout_s:g} s; expected a positive number. Correct "
                f"{timeout_option or 'timeout_s'}."
            )
        self.max_bytes, self.timeout_s = max_bytes, timeout_s
        self._timeout_option = timeout_option
        self._closed = False
        self._start_over()

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The number of the process that reads now, None if there is none."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Start the process ahead of its first file, so that nobody waits for it."""
        with self._turn(""):
            self._running()

    def close(self) -> None:
        """End the process, even one that is reading: whoever waits for it gets an `InputError`."""
        self._closed = True
        child = self._child
        if child is not None:
            child.end()

    def read_field(
        self, path: str | Path, variable: str | None = None, accumulation_h: float | None = None
    ) -> PrecipField:
        """As `wdm_runtime.io.read_field`, with this process."""
        request = Request(str(Path(path)), _folder(), variable, accumulation_h)
        with self._turn(request.path):
            found = described(request.path, self._open(request))
            frames = RemoteFrames(self, request, found.shape)
        return PrecipField(frames, found.grid, found.valid_times, found.source)

    def frame(self, frames: RemoteFrames, index: int) -> Array:
        """One frame (y, x) of a field it has opened [mm h-1]."""
        rows, columns = frames.shape[1:]
        with self._turn(frames.request.path):
            if self._running() is not frames.child:  # a new one, which does not know the field
                again = described(frames.request.path, self._open(frames.request))
                if again.shape != frames.shape:
                    raise WireError(f"{again.shape} cells, before of {frames.shape}")
                frames.child, frames.token = self._running(), self._opened
            asked = {
                "do": "frame",
                "token": frames.token,
                "index": index,
                "path": frames.request.path,
                "folder": frames.request.folder,
            }
            answer = self._ask(asked, 4 * rows * columns)
            found = [(a.dtype, a.shape) for a in answer.arrays]
            if found != [(np.dtype(np.float32), (rows, columns))]:
                raise WireError(f"arrays {found}; expected one of {rows} x {columns} rates")
            rate: Array = answer.arrays[0]
            if (rate < 0).any() or np.isinf(rate).any():
                raise WireError("negative or infinite rates")
        return rate

    @property
    def opened(self) -> tuple[Child, int]:
        """The process, and its number of the field it opened last."""
        return self._running(), self._opened

    def forget(self, child: Child, token: int) -> None:
        """Nobody holds a field any more; takes no turn, as it may be called at any moment."""
        if child is self._child:
            self._forgotten.append(token)

    def _start_over(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._worn = False
        self._opened = 0
        self._forgotten: list[int] = []

    @contextmanager
    def _turn(self, path: str) -> Iterator[None]:
        """One exchange at a time; what ends badly ends the process."""
        if os.getpid() != self._owner:  # a fork must not talk to its parent's process
            self._start_over()
        with self._lock:
            try:
                yield
            except (InputError, MissingDependencyError):
                raise  # as told: no other answer is on its way
            except BaseException as error:  # whose answer may still be on its way
                self._drop()
                if isinstance(error, (ChildError, WireError)):
                    raise self._refused(path, error) from error
                raise

    def _refused(self, path: str, error: ChildError | WireError) -> InputError:
        what = str(error) if isinstance(error, ChildError) else f"told of {error}"
        expected = "a precipitation field"
        remedy = "It is damaged or made to do harm: fetch or write it again."
        if self._closed:  # by us, whatever the file is
            remedy = "Keep the reader open as long as its fields are used."
        elif isinstance(error, ChildStartError):
            expected = "a process for it"
            remedy = "Set sys.executable to a Python program, or free memory and processes."
        elif isinstance(error, ChildSilentError):
            option = self._timeout_option
            longer = f", or allow more than {self.timeout_s:g} s with {option}" if option else ""
            remedy = (
                f"Fetch or write it again; if its disk is slow, copy it to a faster one{longer}."
            )
        named = path or "The input"  # the process may start ahead of it
        return InputError(f"{named}: reading it {what}; expected {expected}. {remedy}")

    def _drop(self) -> None:
        """End the process; the next question starts another."""
        child, self._child, self._worn = self._child, None, False
        if child is not None:
            child.end()

    def _running(self) -> Child:
        if self._closed:
            raise ChildError("was ended: its reader was closed")
        if self._child is None:
            self._child = Child(_WORKER, self.timeout_s)
            self._forgotten = []
            limit = self.max_bytes if self.max_bytes is not None else available_bytes()
            self._child.send({"max_bytes": limit, "timeout_s": self.timeout_s})
        return self._child

    def _open(self, request: Request) -> Message:
        if self._worn:  # what it keeps of one file it may give for another
            self._drop()
        self._opened += 1
        asked = {"do": "open", "token": self._opened, **vars(request)}
        return self._ask(asked, _DESCRIPTION_BYTES)

    def _ask(self, asked: dict[str, Any], most_bytes: int) -> Message:
        """Send a request and wait for its answer."""
        child = self._running()
        forgotten = [
            self._forgotten.pop() for _ in range(min(len(self._forgotten), _MOST_RELEASED))
        ]
        child.send({**asked, "forget": forgotten})
        while True:
            message = child.receive(most_bytes)
            self._worn |= bool(message.head.get("worn"))
            kind, text = message.head.get("is"), str(message.head.get("text", ""))
            if kind == "answer":
                return message
            if kind == "warning":
                category = _CATEGORIES.get(str(message.head.get("category")), UserWarning)
                warnings.warn(text, category, stacklevel=4)
            elif kind == "error":
                raise _error(message, text)
            elif kind != "beat":
                raise WireError(f"a message of kind {kind!r}")


class RemoteFrames:
    """Rates [mm h-1] (time, y, x) that another process reads, each when it is asked for."""

    def __init__(
        self, reader: ReaderProcess, request: Request, shape: tuple[int, int, int]
    ) -> None:
        self.request, self.shape = request, shape
        self.child, self.token = reader.opened
        self._reader = reader

    def __getitem__(self, index: int) -> Array:
        return self._reader.frame(self, range(self.shape[0])[index])

    def __del__(self) -> None:
        self._reader.forget(self.child, self.token)


def _folder() -> str:
    """What relative paths are relative to, "" if it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _error(message: Message, text: str) -> Exception:
    """The error that the other process told of."""
    head = message.head
    if head.get("kind") == MissingDependencyError.__name__:
        error: Exception = MissingDependencyError(text, str(head.get("extra")))
    else:
        error = InputError(text)
    error.__cause__ = ReaderFault(f"in the reading process:\n{head.get('trace', '')}")
    return error
