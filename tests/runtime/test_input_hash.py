"""Where the input of an output is looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wdm_runtime.errors import InputError
from wdm_runtime.input_hash import find_input, hash_of


def test_a_copy_beside_the_output_serves_where_the_recorded_one_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, beside = tmp_path / "theirs" / "in.nc", tmp_path / "mine" / "in.nc"
    for place in (theirs, beside):
        place.parent.mkdir()
        place.write_text("rain")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != theirs)
    output = tmp_path / "mine" / "out.nc"
    assert find_input(output, str(theirs), hash_of(beside)) == beside


def test_a_closed_folder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> bool:
        raise PermissionError("closed")

    monkeypatch.setattr(Path, "exists", closed)
    with pytest.raises(InputError, match=r"found neither at .*--input"):
        find_input(tmp_path / "out.nc", "/home/alice/in.nc", None)
