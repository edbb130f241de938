"""Weights of another kind: pickles are refused without being run."""

import sys

import pytest
import torch
from conftest import Touch

from wdm_export import cli
from wdm_export.checkpoint import Checkpoint
from wdm_runtime.errors import InputError


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pth_file_is_refused_and_not_run(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    torch.save({"ema": Touch(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="expected safetensors"):
        Checkpoint.load(path)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_the_command_line_says_what_it_wants(tmp_path, tiny, monkeypatch, capsys):
    torch.save({"ema.weight": torch.zeros(3)}, tmp_path / "weights.pth")
    arguments = ["check", str(tiny), "--weights", str(tmp_path / "weights.pth")]
    monkeypatch.setattr(sys, "argv", ["wdm-export", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "expected safetensors written by 'wdm-export train'" in capsys.readouterr().err
