"""A process that reads files ends when it has to, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from netcdf_files import rain_file
from reading_processes import descriptors, gone, state, stop

from wdm_runtime.errors import InputError
from wdm_runtime.io import read_field
from wdm_runtime.io.reader import ReaderProcess


def test_closing_ends_the_process_and_whoever_waits_for_it(tmp_path):
    reader = ReaderProcess()
    found = reader.read_field(rain_file(tmp_path / "in.nc"))
    pid = reader.pid
    stop(pid)
    threading.Timer(0.3, reader.close).start()
    with pytest.raises(InputError, match="reading it ended its process") as waiting:
        found.frame(0)
    assert gone(pid)
    with pytest.raises(InputError, match="reader was closed") as after:
        found.frame(0)
    for caught in (waiting, after):  # the file has done nothing
        assert "Keep the reader open" in str(caught.value) and "damaged" not in str(caught.value)


@pytest.mark.parametrize("python", ["", None, "/no/such/python"])
def test_a_process_that_cannot_begin_is_not_the_files_fault(tmp_path, monkeypatch, python):
    path = rain_file(tmp_path / "in.nc")
    monkeypatch.setattr("sys.executable", python)
    for ask in (ReaderProcess().start, lambda: ReaderProcess().read_field(path)):
        with pytest.raises(InputError, match=r"could not begin.*sys\.executable") as caught:
            ask()
        assert "damaged" not in str(caught.value)


def test_no_descriptor_and_no_process_is_lost(tmp_path):
    path = rain_file(tmp_path / "in.nc")
    read_field(path)  # the shared one stays
    gc.collect()  # what earlier tests left goes before counting
    before, pids = descriptors(), []
    for _ in range(5):
        with ReaderProcess() as reader:
            reader.read_field(path).frame(0)
            pids.append(reader.pid)
    forgotten = ReaderProcess()
    forgotten.start()
    pids.append(forgotten.pid)
    del forgotten
    gc.collect()
    assert descriptors() == before
    assert not any(map(state, pids))


def script(tmp_path, text):
    """Starts Python on a text that knows `path`; its first line of output is the reader's pid."""
    path = rain_file(tmp_path / "in.nc")
    # Where tests run in the background, a shell has them ignore SIGINT.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = f"{heard}path = {str(path)!r}\n" + textwrap.dedent(text)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


OPEN = """
    from wdm_runtime.io.reader import ReaderProcess
    reader = ReaderProcess()
    field = reader.read_field(path)
    print(reader.pid, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_process_ends_with_its_parent(number, tmp_path):
    process, pid = script(tmp_path, OPEN + "    import time; time.sleep(60)\n")
    assert state(pid)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert gone(pid)


def test_the_process_ends_when_its_parent_does_nothing_about_it(tmp_path):
    process, pid = script(tmp_path, OPEN)
    process.communicate(timeout=20)
    assert process.returncode == 0 and gone(pid)


def test_a_reader_that_hangs_outlives_nobody_for_long(tmp_path):
    text = (
        OPEN.replace(
            "ReaderProcess()",
            "ReaderProcess(timeout_s=0.2)\n    reader.start(); reader._child._timeout_s = 60.0",
        )
        + """
    import os, signal, threading
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
    reader._running().send({"do": "open", "token": 9, "path": PIPE, "folder": "",
                            "variable": None, "accumulation_h": None, "forget": []})
    threading.Event().wait(60)
"""
    )
    fifo = tmp_path / "zarr" / ".zgroup"
    fifo.parent.mkdir()
    os.mkfifo(fifo)  # opening it waits for a writer that never comes
    process, pid = script(tmp_path, f"PIPE = {str(fifo.parent)!r}\n" + textwrap.dedent(text))
    process.communicate(timeout=20)
    assert gone(pid, within_s=60)


def test_a_fork_reads_with_a_process_of_its_own(tmp_path):
    text = (
        OPEN
        + """
    import os
    child = os.fork()
    if child == 0:
        same = field.frame(1)[3, 4] == 39 / 8 and reader.pid
        os._exit(0 if same and reader.pid != PARENT else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert field.frame(1)[3, 4] == 39 / 8 and reader.pid == PARENT
    """
    )
    text = text.replace("print(", "PARENT = reader.pid\n    print(")
    process, pid = script(tmp_path, text)
    process.communicate(timeout=30)
    assert process.returncode == 0 and gone(pid)
