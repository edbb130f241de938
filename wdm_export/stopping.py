"""Signals that end a training at its next step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows lacks the last


class Stop:
    """Whether a signal asked to stop; ``number`` is the signal's, None so far."""

    number: int | None = None

    def asked(self) -> bool:
        """Whether one came."""
        return self.number is not None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Note the first signal within the block; the second one does what it would have done before.

    For programs. Does nothing outside the main thread, nor to signals that are ignored.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: Any) -> None:
        stop.number = number
        put_back()

    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        put_back()
