"""Text files that are whole or not there; `test_netcdf_writer` has the same of ensembles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from wdm_runtime.errors import OutputError
from wdm_runtime.io.atomic import check_destination, write_text
from wdm_runtime.latency import _remember


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
    for target, source in ((tmp_path / "no" / "r", None), (tmp_path, None), (path, str(path))):
        with pytest.raises(OutputError) as caught:
            check_destination(target, source, overwrite=True)
        messages.append(str(caught.value))
    assert all("hoose another name." in text and " -o" not in text for text in messages)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "cache" / "probe.json").mkdir(parents=True)
    for folder in ("file", "cache"):
        _remember(tmp_path / folder / "probe.json", {}, "key", 1.0)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["probe.json"]
    _remember(tmp_path / "new" / "probe.json", {"a": 2.0}, "key", 1.0)
    assert (tmp_path / "new" / "probe.json").read_text().split() == [
        *("{", '"a":', "2.0,", '"key":', "1.0", "}")
    ]
