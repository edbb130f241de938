"""Outputs that are whole or not there: text, and ensembles whose process is stopped or killed."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from output_files import rate_field, write_output

from wdm_runtime.errors import OutputError
from wdm_runtime.io import atomic
from wdm_runtime.io.atomic import check_destination, exit_on_signals, whole_file, write_text
from wdm_runtime.remembered import Remembered


def refuse(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("before", ["old", None])
def test_text_is_written_and_replaces_an_older_file(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "report.json"
    if before is not None:
        path.write_text(before)
    old = os.umask(0o027)
    try:
        write_text(path, "κατά\n")
    finally:
        os.umask(old)
    assert list(tmp_path.iterdir()) == [path] and path.read_text("utf-8") == "κατά\n"
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_refusal_leaves_the_older_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OutputError, match=r"No space left.*Free some space, or choose") as caught:
        write_text(path, "new")
    assert isinstance(caught.value.__cause__, OSError)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_the_remedies_name_no_option_of_one_command(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.touch()
    messages = []
    for target, others in ((tmp_path / "no" / "r", ()), (tmp_path, ()), (path, (str(path),))):
        with pytest.raises(OutputError) as caught:
            check_destination(target, others, overwrite=True)
        messages.append(str(caught.value))
    assert all("hoose another name." in text and " -o" not in text for text in messages)


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_name_that_is_no_text_is_refused_before_work(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.nc")
    with pytest.raises(OutputError, match=r"no UTF-8.*Choose another name") as caught:
        check_destination(path)
    assert str(caught.value).encode()  # can be printed


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "cache" / "probe.json").mkdir(parents=True)
    for folder in ("file", "cache"):
        Remembered(tmp_path / folder / "probe.json", "tiny").put({"key": 1.0})
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["probe.json"]
    for numbers in ({"a": 2.0}, {"key": 1.0}):
        Remembered(tmp_path / "new" / "probe.json", "tiny").put(numbers)
    assert (tmp_path / "new" / "probe.json").read_text().split() == [
        *("{", '"tiny|a":', "2.0,", '"tiny|key":', "1.0", "}")
    ]


WRITE_HALF = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has its children ignore it
sys.path.insert(0, sys.argv[2])
from output_files import FACTOR, rate_field, rates
from wdm_runtime.io.atomic import exit_on_signals
from wdm_runtime.io.writer import EnsembleWriter
field = rate_field()
with exit_on_signals(), EnsembleWriter(sys.argv[1], field, FACTOR, 1, {}, overwrite=True) as writer:
    writer.write(0, 0, rates(field, 0, 0))
    print("half", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("suffix", [".nc", ".zarr", ".grib2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("existing", [False, True])
def test_a_stopped_process_leaves_no_partial_output(
    tmp_path: Path, suffix: str, number: int, existing: bool
) -> None:
    pytest.importorskip("zarr")
    pytest.importorskip("eccodes")
    path = tmp_path / f"out{suffix}"
    before = {}
    if existing:
        write_output(path, rate_field())
        before = everything(tmp_path)
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_HALF, str(path), str(here)],
        cwd=here.parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "half\n"
        process.send_signal(number)
    after = everything(tmp_path)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number and after == before
    else:  # nothing can run then: what is left is hidden and named as unfinished
        assert process.returncode == -number
        left = {name.split(os.sep)[0] for name in after if name not in before}
        assert before.items() <= after.items() and len(left) == 1
        assert left.pop().startswith(f".{path.name}.")


def everything(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_handlers_of_signals_are_put_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        with exit_on_signals():
            assert all(signal.getsignal(number) != signal.SIG_DFL for number in numbers)
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_DFL] * 2
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup: the run is to go on
        with exit_on_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_store_that_cannot_be_swapped_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    pytest.importorskip("zarr")
    path = write_output(tmp_path / "out.zarr", rate_field(variable="old"))
    before, rename, calls = everything(tmp_path), os.rename, iter(range(1, 9))

    def refuse_once(*names: Any) -> None:
        if next(calls) == failing:
            refuse()
        rename(*names)

    monkeypatch.setattr(os, "rename", refuse_once)
    monkeypatch.setattr(atomic, "_exchanged", lambda *_: False)  # a file system that cannot
    with pytest.raises(OutputError, match="No space left"):
        write_output(path, rate_field(), overwrite=True)
    assert everything(tmp_path) == before


def test_a_store_is_swapped_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two renames a killed process would leave no store of that name."""
    pytest.importorskip("zarr")
    path = write_output(tmp_path / "out.zarr", rate_field(variable="old"))
    renamed = []
    monkeypatch.setattr(os, "rename", lambda *names: renamed.append(names))
    write_output(path, rate_field(variable="new"), overwrite=True)
    assert not renamed and (path / "new").is_dir() and list(tmp_path.iterdir()) == [path]


def test_the_second_of_two_writers_is_told(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with whole_file(path) as temporary:
        temporary.write_text("first")
        with pytest.raises(OutputError, match="is being written by another process"):
            write_text(path, "second")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["first"]
    write_text(path, "third")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["third"]


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    left = tmp_path / ".report.json.writing.tmp"
    (left / "out.zarr").mkdir(parents=True)
    (left / "report.json").write_text("half")
    with whole_file(path) as temporary:
        assert list(left.iterdir()) == []
        temporary.write_text("whole")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]


def test_nothing_outside_goes_through_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "report.json"
    path.with_name(".report.json.writing.tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(path, "text")
    assert (tmp_path / "elsewhere" / "precious").exists() and not path.exists()


def test_without_locks_every_process_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    path = tmp_path / "report.json"
    with whole_file(path) as first:
        first.write_text("first")
        with whole_file(path) as second:
            assert second.parent != first.parent
            second.write_text("second")
        assert path.read_text() == "second"
    assert [p.read_text() for p in tmp_path.iterdir()] == ["first"]
