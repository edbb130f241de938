"""Checkpoints: tensors and JSON in one file, nothing to execute, and nothing damaged gets in."""

import dataclasses
import itertools
import json

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from small_training import SMALL, sample_store  # noqa: E402

from wdm_export.checkpoint import FORMAT_VERSION, Checkpoint  # noqa: E402
from wdm_export.config import TrainConfig  # noqa: E402
from wdm_export.train import CHECKPOINT_NAME, WEIGHTS_NAME, Trainer  # noqa: E402
from wdm_runtime.errors import InputError  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps: its folder and last state."""
    folder = tmp_path_factory.mktemp("run")
    store = sample_store(folder / "store")
    config = TrainConfig(steps=2, batch=2, crop_px=32, threads=1)
    return folder, Trainer.start(store, folder, SMALL, config).run()


def test_files_are_tensors_and_json_to_the_last_byte(run):
    folder, _ = run
    for name in (WEIGHTS_NAME, CHECKPOINT_NAME):
        data = (folder / name).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__")
        assert json.loads(metadata["wdm"])["format"] == FORMAT_VERSION
        spans = sorted(entry["data_offsets"] for entry in header.values())
        assert spans[0][0] == 0 and 8 + length + spans[-1][1] == len(data)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
        with safe_open(folder / name, "np") as file:
            assert set(file.keys()) == set(header)


def test_configuration_survives_json_and_is_read_strictly(run, tmp_path):
    folder, final = run
    assert Checkpoint.load(folder / WEIGHTS_NAME).model == final.model
    with safe_open(folder / WEIGHTS_NAME, "np") as file:
        header = json.loads(file.metadata()["wdm"])
    model, bad = header["model"], tmp_path / "bad.safetensors"
    for changes, word in (
        ({"surprise": 1}, "surprise"),
        ({"factor": "10"}, r"model\.factor"),
        ({"schedule": None}, r"model\.schedule"),
        ({"network": {**model["network"], "blocks": 1.5}}, r"model\.network\.blocks"),
    ):
        metadata = {"wdm": json.dumps({**header, "model": {**model, **changes}})}
        save_file({"ema.a": torch.zeros(2)}, bad, metadata=metadata)
        with pytest.raises(InputError, match=rf"bad\.safetensors.*{word}"):
            Checkpoint.load(bad)


def test_a_file_that_is_no_checkpoint_is_an_input_error(run, tmp_path):
    folder, final = run
    whole = (folder / WEIGHTS_NAME).read_bytes()
    bad = tmp_path / "bad.safetensors"
    for data in (b"", b"garbage", b"\x80\x04]q\x00.", whole[:100], whole[:-10], bytes(1000)):
        bad.write_bytes(data)
        with pytest.raises(InputError, match=r"bad\.safetensors"):
            Checkpoint.load(bad)
    for metadata in (None, {"wdm": "{"}, {"wdm": "{}"}, {"wdm": "[]"}, {"wdm": '{"format": 99}'}):
        save_file({"ema.a": torch.zeros(2)}, bad, metadata=metadata)
        with pytest.raises(InputError, match=r"bad\.safetensors"):
            Checkpoint.load(bad)
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(InputError, match="is no checkpoint"):
            Checkpoint.load(path)
    newer = dataclasses.replace(final, tensors=final.released().tensors)
    newer.save(bad)
    assert Checkpoint.load(bad).step == 2  # the same way of writing, undamaged, loads
