"""A process that reads files, and what tests see of it by its number."""

import os
import signal
import time
from pathlib import Path

import pytest

from wdm_runtime.io.reader import ReaderProcess


@pytest.fixture
def own_reader():
    with ReaderProcess(timeout_s=20.0) as one:
        yield one


def state(pid):
    """One letter: R, S, T, Z; "" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    while state(pid) != "T":  # it is on its way
        time.sleep(0.01)


def gone(pid, within_s=10.0):
    until = time.monotonic() + within_s
    while state(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not state(pid)


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))
