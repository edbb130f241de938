"""A Python process of its own, talked to in messages; it may crash or hang without harm to us."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from wdm_runtime.io.wire import Message, decode, encode

_SLICE_S: Final = 0.25
_ENDS_WITHIN_S: Final = 5.0
_PROC: Final = Path("/proc")
_PACKAGE: Final = Path(__file__).resolve().parent.parent
# Not `python -m`: that would import from the current folder, where untrusted files may lie.
_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {0} import main; main()"
)
# Reading is no work for several threads, and their stacks and buffers would count.
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class ChildError(Exception):
    """The process is gone or silent; the text says how, to go on after 'reading it'."""


class ChildStartError(ChildError):
    """It could not begin."""


class ChildSilentError(ChildError):
    """It says nothing any more."""


def search_path() -> list[str]:
    """Where the process looks for modules: as this one does, but never in the current folder."""
    path = [folder for folder in sys.path if os.path.isabs(folder)]
    package = str(_PACKAGE.parent)
    return path if package in path else [package, *path]


def command_of(module: str, *arguments: str) -> list[str]:
    """What starts a module's ``main`` with this process's search path; ``sys.argv[2:]`` are its."""
    boot = _BOOT.format(module)
    return [sys.executable, "-I", "-c", boot, json.dumps(search_path()), *arguments]


class Child:
    """A module's ``main`` in a process of its own, between its start and its `end`.

    Parameters
    ----------
    module
        Imported with this process's own search path.
    timeout_s
        How long it may say nothing while it is waited for [s]. Time that this process itself is
        stopped for does not count, nor time in which the machine is too busy to give it a core.

    Raises
    ------
    ChildStartError
        Python cannot be started.
    """

    def __init__(self, module: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        if not sys.executable:  # as in programs that embed Python
            raise ChildStartError("could not begin: Python does not know where its program is")
        try:
            self._process = subprocess.Popen(
                command_of(module),
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,  # Ctrl-C is for us, and we end it
            )
        except OSError as error:
            raise ChildStartError(f"could not begin: Python did not start ({error})") from error
        self._poll = select.poll()
        assert self._process.stdout is not None
        self._poll.register(self._process.stdout, select.POLLIN)
        self._finalizer = weakref.finalize(self, _end, self._process, os.getpid())

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def send(self, head: dict[str, Any]) -> None:
        """Send a message without arrays.

        Raises
        ------
        ChildError
            The process has ended.
        """
        assert self._process.stdin is not None
        try:
            for part in encode(head):
                while part:
                    part = part[os.write(self._process.stdin.fileno(), part) :]
        except (OSError, ValueError) as error:
            raise ChildError(self._how_it_ended()) from error

    def receive(self, most_bytes: int) -> Message:
        """The next message, with at most so many bytes of arrays.

        Raises
        ------
        ChildError
            The process has ended, or says nothing for too long.
        WireError
            What it says is no message.
        """
        return decode(self._read_into, most_bytes)

    def end(self) -> None:
        """End the process, whatever it does, and whichever thread waits for it."""
        self._finalizer()

    def _read_into(self, buffer: memoryview) -> None:
        silent_s, waited_s = 0.0, _waited_s(self.pid)
        while buffer:
            try:
                assert self._process.stdout is not None
                if not self._poll.poll(1000 * _SLICE_S):
                    # In slices: if we are stopped or asleep ourselves, only one of them counts.
                    before_s, waited_s = waited_s, _waited_s(self.pid)
                    starved_s = [now - before_s.get(one, 0.0) for one, now in waited_s.items()]
                    # The kernel notes a wait at its end, so one may be longer than the slice.
                    silent_s = max(0.0, silent_s + _SLICE_S - max(starved_s, default=0.0))
                    if silent_s >= self._timeout_s:
                        raise ChildSilentError(f"made no progress for {self._timeout_s:g} s")
                    continue
                count = os.readv(self._process.stdout.fileno(), [buffer])
            except (OSError, ValueError) as error:  # closed by `end` in another thread
                raise ChildError(self._how_it_ended()) from error
            if count == 0:
                raise ChildError(self._how_it_ended())
            silent_s = 0.0
            buffer = buffer[count:]

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            return "closed its end of the line"
        if code >= 0:
            return f"ended its process with exit code {code}"
        if code == -signal.SIGPROF:  # see `limits.reads_structure`
            return "computed without coming to an end"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"ended its process ({name})"


def _waited_s(pid: int) -> dict[str, float]:
    """How long each thread of a process was ready to run and had no core [s].

    Of all threads, as some libraries work in others than the first. Nothing where the kernel does
    not say.
    """
    waited_s: dict[str, float] = {}
    tasks = _PROC / str(pid) / "task"
    with suppress(OSError):  # it may end at any moment
        for thread in os.listdir(tasks):
            with suppress(OSError, ValueError, IndexError):
                waited_ns = (tasks / thread / "schedstat").read_text().split()[1]
                waited_s[thread] = int(waited_ns) / 1e9
    return waited_s


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """Kill and reap; a fork of the owner lets go of the pipes alone."""
    if os.getpid() == owner:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
