"""Signals that end a training at its next step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Whether a signal asked to stop; ``number`` is the first one's, None so far."""

    number: int | None = None

    def asked(self) -> bool:
        """Whether one came."""
        return self.number is not None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Note signals within the block; a second SIGINT does what it would have done before.

    SIGTERM may come twice for one stop, from systemd and from torchrun: only the first counts. For
    programs. Does nothing outside the main thread, nor to signals that are ignored.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        stop.number = stop.number or number
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for taken, handler in before.items():
            if signal.getsignal(taken) is note:
                signal.signal(taken, handler)
