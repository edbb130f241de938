"""Training in two processes is training in one: same crops, same losses, same weights."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conftest import TRUTH  # noqa: E402
from netCDF4 import Dataset  # noqa: E402
from small_training import TILE  # noqa: E402

from wdm_export.checkpoint import Checkpoint  # noqa: E402
from wdm_export.config import TrainConfig  # noqa: E402
from wdm_export.data import prepare  # noqa: E402
from wdm_export.parallel import Processes  # noqa: E402
from wdm_runtime.errors import InputError  # noqa: E402

NETWORK = ("--base", 4, "--depths", "1,1", "--blocks", 1, "--crop", 32)
PROGRAM = Path(sys.executable).with_name("wdm-export")


def started(processes, *arguments, restarts=0):
    """`wdm-export train` alone or below torchrun."""
    command = [PROGRAM, "train", *arguments]
    if processes > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--standalone"]
        own = ("--nproc-per-node", processes, "--max-restarts", restarts)
        command = [*start, *own, *command]
    # Without it, processes that torchrun starts again may wait for those of before (torch 2.13).
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=pipe, stderr=pipe, text=True
    )


def train(processes, *arguments):
    """The same to its end."""
    process = started(processes, *arguments)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error


def workers(folder):
    """Processes that train into a folder, but for torchrun itself."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = line.read_bytes().split(b"\0")
            if str(folder).encode() in words and b"torch.distributed.run" not in words:
                found.append(int(line.parent.name))
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Patches of two files, so that each of two shards has one."""
    folder = tmp_path_factory.mktemp("parallel")
    other = Path(shutil.copy(TRUTH, folder / "other.nc"))
    with Dataset(other, "a") as file:
        variable = next(v for v in file.variables.values() if v.ndim == 3)
        variable[:] = 0.5 * variable[:]
    prepare([TRUTH, other], folder / "store", size=TILE)
    return folder / "store"


def settings(steps):
    common = ("--batch", 8, "--shards", 2, "--threads", 1, "--seed", 3, "--learning-rate", 2e-3)
    return (*NETWORK, *common, "--steps", steps)


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    """The same run in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")
    for processes in (1, 2):
        train(processes, store, "-o", folder / str(processes), *settings(20))
    return folder


def losses(folder):
    with open(folder / "log.csv", newline="") as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def test_two_processes_have_the_loss_curve_of_one_with_twice_the_batch(runs):
    one, two = losses(runs / "1"), losses(runs / "2")
    assert len(one) == 2
    np.testing.assert_allclose(two, one, rtol=2e-3)  # bf16 sums in another order
    a, b = (Checkpoint.load(runs / name / "checkpoint.safetensors") for name in "12")
    for scale in ("residual_scale", "condition_scale"):  # of all data, whoever drew it
        np.testing.assert_allclose(
            getattr(b.model, scale).std, getattr(a.model, scale).std, rtol=1e-6
        )
    for name, value in a.group("ema").items():
        torch.testing.assert_close(b.group("ema")[name], value, rtol=0.05, atol=5e-3)


def test_a_run_goes_on_in_another_number_of_processes(store, runs, tmp_path):
    train(2, store, "-o", tmp_path / "run", *settings(10))
    train(1, store, "-o", tmp_path / "run", "--resume", "--steps", 20)
    assert len(losses(tmp_path / "run")) == 2
    train(2, store, "-o", tmp_path / "again", *settings(10))
    train(2, store, "-o", tmp_path / "again", "--resume", "--steps", 20)
    np.testing.assert_allclose(losses(tmp_path / "again"), losses(tmp_path / "run"), rtol=2e-3)


def test_torchrun_restarts_a_run_that_was_killed_where_it_was(store, tmp_path):
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    often = ("--begin-or-resume", "--checkpoint-minutes", 0)
    train(2, store, "-o", plain, *settings(80), *often)
    process = started(2, store, "-o", killed, *settings(80), *often, restarts=1)
    checkpoint = killed / "checkpoint.safetensors"
    try:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.02)
        os.kill(workers(killed)[0], signal.SIGKILL)
        _, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, error
    assert "exitcode: -9" in error
    np.testing.assert_allclose(losses(killed), losses(plain), rtol=5e-3)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_ends_a_run_with_a_checkpoint(store, tmp_path, processes):
    process = started(processes, store, "-o", tmp_path, *settings(100_000))
    log = tmp_path / "log.csv"
    try:
        while not (log.exists() and log.read_text().count("\n") > 1) and process.poll() is None:
            time.sleep(0.02)
        assert not (tmp_path / "checkpoint.safetensors").exists()
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=300)
    finally:
        process.kill()
    step = Checkpoint.load(tmp_path / "checkpoint.safetensors").step
    assert step >= 10 and f"Stopped at step {step}" in error and "Traceback" not in error[:200]
    assert process.returncode == (128 + signal.SIGTERM if processes == 1 else 1)
    assert not (tmp_path / "weights.safetensors").exists()
    train(processes, store, "-o", tmp_path, "--resume", "--steps", step + 1, "--threads", 1)
    assert Checkpoint.load(tmp_path / "weights.safetensors").step == step + 1


def test_what_has_begun_is_continued_with_its_own_settings_alone(store, tmp_path):
    train(1, store, "-o", tmp_path / "run", *settings(10), "--begin-or-resume")
    first = (tmp_path / "run" / "weights.safetensors").read_bytes()
    train(1, store, "-o", tmp_path / "run", *settings(10), "--begin-or-resume")  # is at its end
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == first
    begun = tmp_path / "run" / "weights.safetensors"
    other = started(
        1, store, "-o", tmp_path / "run", *settings(10), "--begin-or-resume", "--weights", begun
    )
    _, error = other.communicate(timeout=300)
    assert other.returncode == 2 and "began with none of the weights named" in error
    other = started(
        1, store, "-o", tmp_path / "run", *settings(10), "--begin-or-resume",
        "--rain-weight", 0.5, "--transform-offset", 1,
    )  # fmt: skip
    _, error = other.communicate(timeout=300)
    assert other.returncode == 2 and "rain_weight 0.5 (the run has 0.0)" in error
    assert "offset_mm_h=1.0" in error and "offset_mm_h=0.1" in error


def test_shards_that_cannot_be_dealt_out_are_refused():
    with pytest.raises(InputError, match=r"2 processes got 3 data shards.*--shards"):
        Processes(0, 2).shards(TrainConfig(steps=1, batch=9, shards=3))
    with pytest.raises(InputError, match=r"5 data shards and 32 crops.*--shards"):
        TrainConfig(steps=1, shards=5)
