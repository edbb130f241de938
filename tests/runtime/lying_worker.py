"""A reading process that a file has taken over: it answers, but not with what was asked for."""

import os
from contextlib import suppress

import numpy as np

from wdm_runtime.io.wire import Message
from wdm_runtime.io.worker import Worker

VARIABLE = "LIE"
SHAPE = (4, 5)  # of a frame of `netcdf_files.rain_file`
FRAMES = {
    "negative": [np.full(SHAPE, -1, np.float32)],
    "infinite": [np.full(SHAPE, np.inf, np.float32)],
    "turned": [np.zeros(SHAPE[::-1], np.float32)],
    "doubles": [np.zeros((2, 5), np.float64)],
    "two": [np.zeros((2, 5), np.float32)] * 2,
    "none": [],
    "larger": [np.zeros((400, 500), np.float32)],
}
HEADS = {"shout": {"is": "shout"}, "nothing": {}}
BYTES = {
    "a head without end": b"\xff" * 64,
    "no JSON": (5).to_bytes(4, "little") + b"{'a':",
    "a list": (2).to_bytes(4, "little") + b"[]",
}


class Liar(Worker):
    """Opens files as it should; frames are what the environment says."""

    def _frame(self, asked):
        lie = os.environ[VARIABLE]
        if lie in BYTES:
            os.write(self._replies, BYTES[lie])
        return Message(HEADS.get(lie, {"is": "answer"}), tuple(FRAMES.get(lie, ())))


def main():
    replies = os.dup(1)
    os.dup2(2, 1)
    liar = Liar(0, replies)
    with suppress(EOFError, BrokenPipeError):
        liar.set_up()
        while True:
            liar.answer()
