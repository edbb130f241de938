"""What both command lines share: the consoles, and errors without tracebacks."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from rich.console import Console

from wdm_runtime.errors import OutputError, WdmError


class _Console(Console):
    """Shows texts as they are, names of files with brackets among them, and never ends a run."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, where words that a full disk or a lost terminal does not take end no run."""
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Who read along has gone: the work goes on without words."""
        self.quiet = True
        # What Python itself flushes at its end has no reader either.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, (sys.stderr if self.stderr else sys.stdout).fileno())
        os.close(nowhere)


out = _Console()
err = _Console(stderr=True)
_verbosity = 0


def set_verbosity(count: int) -> None:
    """How often -v was given: from two on, typed errors show their traceback."""
    global _verbosity
    _verbosity = count


def run(app: Callable[[], Any]) -> None:
    """Run a typer application; a `WdmError` becomes one message and its exit code.

    So does what the system refuses, like an answer on a full disk, as an `OutputError`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name it cannot encode fails no run
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except WdmError as error:
        _end(error)
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:
            out.on_broken_pipe()  # else Python tries again at its end, and says so
        _end(
            OutputError(
                f"The system refused to go on ({error}); expected streams and files that take what "
                "is written. Free some space, or send the output elsewhere."
            )
        )


def _end(error: WdmError) -> NoReturn:
    if _verbosity >= 2:
        err.print_exception()
    err.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
    sys.exit(error.exit_code)
