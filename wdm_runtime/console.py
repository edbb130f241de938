"""What both command lines share: the consoles, and errors without tracebacks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from wdm_runtime.errors import WdmError

out = Console()
err = Console(stderr=True)
_verbosity = 0


def set_verbosity(count: int) -> None:
    """How often -v was given: from two on, typed errors show their traceback."""
    global _verbosity
    _verbosity = count


def run(app: Callable[[], Any]) -> None:
    """Run a typer application; a `WdmError` becomes one message and its exit code."""
    try:
        app()
    except WdmError as error:
        if _verbosity >= 2:
            err.print_exception()
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
