"""The process that reads untrusted files for `wdm_runtime.io.reader`, its other end.

It takes requests on its standard input and answers on what was its standard output; the libraries'
own output goes to the error stream. It ends when its input does, and when it gets nowhere.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from wdm_runtime.errors import InputError, MissingDependencyError, WdmError
from wdm_runtime.field import PrecipField
from wdm_runtime.io import limits
from wdm_runtime.io.field_wire import describe
from wdm_runtime.io.formats import read_file
from wdm_runtime.io.wire import Message, decode, encode

_BEAT_EVERY_S: Final = 0.2
# This alarm ends an orphan whose library call never returns. The parent's timeout comes first, but
# does not count the time that a busy machine gives no core, which this clock does.
_ALARM_FACTOR: Final = 60
_MOST_WARNINGS: Final = 100


def main() -> None:
    """Answer requests until there are no more."""
    replies = os.dup(1)
    os.dup2(2, 1)
    worker = Worker(0, replies)
    with suppress(EOFError, BrokenPipeError):
        worker.set_up()
        while True:
            worker.answer()


class Worker:
    """Reads fields and keeps them by the numbers the other end gave them."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests, self._replies = requests, replies
        self._fields: dict[int, PrecipField] = {}
        self._beat_at = 0.0
        self._alarm_s = 0.0

    def set_up(self) -> None:
        """Take the first message: what reading may cost."""
        asked = self._receive()
        self._alarm_s = _ALARM_FACTOR * asked["timeout_s"]
        if asked["max_bytes"] is not None:
            limits.limit_memory(asked["max_bytes"])
        with suppress(OSError):  # not on every system
            limits.offer_to_the_kernel()
        limits.on_beat(self._beat)

    def answer(self) -> None:
        """Take a request and answer it, with an error if need be.

        Raises
        ------
        EOFError, BrokenPipeError
            Nobody is there any more.
        """
        asked = self._receive()
        signal.setitimer(signal.ITIMER_REAL, self._alarm_s)
        limits.forget_peak()
        for token in asked["forget"]:
            self._fields.pop(token, None)
        try:
            with warnings.catch_warnings(record=True) as caught:
                if not os.path.isabs(asked["path"]) and asked["folder"]:
                    os.chdir(asked["folder"])
                message = self._open(asked) if asked["do"] == "open" else self._frame(asked)
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:
            head = {"is": "error", "trace": traceback.format_exc(), **_told(error, asked)}
            message = Message(head)
        for one in caught[:_MOST_WARNINGS]:
            category = one.category.__name__
            self._send(Message({"is": "warning", "category": category, "text": str(one.message)}))
        # HDF5 leaves some damaged files open, and then takes others for them.
        worn = limits.holds_open(asked["path"]) or limits.is_crowded()
        self._send(Message({**message.head, "worn": worn}, message.arrays))
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _open(self, asked: dict[str, Any]) -> Message:
        field = read_file(Path(asked["path"]), asked["variable"], asked["accumulation_h"])
        self._fields[asked["token"]] = field
        message = describe(field)
        return Message({"is": "answer", **message.head}, message.arrays)

    def _frame(self, asked: dict[str, Any]) -> Message:
        return Message({"is": "answer"}, (self._fields[asked["token"]].frame(asked["index"]),))

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beat_at > _BEAT_EVERY_S:
            self._beat_at = now
            signal.setitimer(signal.ITIMER_REAL, self._alarm_s)
            self._send(Message({"is": "beat"}))

    def _receive(self) -> dict[str, Any]:
        return decode(self._read_into, 0).head

    def _read_into(self, buffer: memoryview) -> None:
        while buffer:
            count = os.readv(self._requests, [buffer])
            if count == 0:
                raise EOFError
            buffer = buffer[count:]

    def _send(self, message: Message) -> None:
        for part in encode(message.head, message.arrays):
            while part:
                part = part[os.write(self._replies, part) :]


def _told(error: Exception, asked: dict[str, Any]) -> dict[str, Any]:
    """An error's kind and text for the other end; what is not typed becomes an `InputError`."""
    if isinstance(error, MissingDependencyError):
        return {"kind": type(error).__name__, "text": str(error), "extra": error.extra}
    if isinstance(error, MemoryError):
        text = (
            f"{asked.get('path', 'The file')}: takes more memory to read than the "
            f"{limits.memory_bytes() / 2**20:,.0f} MiB it may; expected less. Raise --max-memory, "
            "or extract a part of the file first."
        )
        return {"kind": InputError.__name__, "text": text}
    if isinstance(error, WdmError):
        return {"kind": InputError.__name__, "text": f"{error}{limits.shortage()}"}
    text = (
        f"{asked.get('path', 'The file')}: cannot be read ({type(error).__name__}: {error}); "
        "expected an error that says what is wrong with it. Fetch or write the file again, and "
        "report this fault of the program."
    )
    return {"kind": InputError.__name__, "text": text}
