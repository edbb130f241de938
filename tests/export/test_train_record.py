"""What a run remembers: the patches it saw, and its last good checkpoint."""

import os
import resource
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
xarray = pytest.importorskip("xarray")

from conftest import TRUTH  # noqa: E402
from small_training import SMALL, sample_store, settings  # noqa: E402

from wdm_export.checkpoint import Checkpoint  # noqa: E402
from wdm_export.cli_parts import progress_bars  # noqa: E402
from wdm_export.cli_train import run_training  # noqa: E402
from wdm_export.data import prepare  # noqa: E402
from wdm_export.stopping import stop_on_signals  # noqa: E402
from wdm_export.train import CHECKPOINT_NAME, WEIGHTS_NAME, Trainer  # noqa: E402
from wdm_export.training_log import LOG_NAME, TrainingLog  # noqa: E402
from wdm_runtime.errors import InputError, OutputError, SuspectError  # noqa: E402


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return sample_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "a"
    Trainer.start(store, folder, SMALL, settings(steps=2)).run()
    return folder


def other_store(folder):
    """The sample's rain on another day and farther north."""
    with xarray.open_dataset(TRUTH) as truth:
        moved = truth.assign_coords(lat=truth.lat + 5, time=truth.time - np.timedelta64(365, "D"))
        moved.to_netcdf(folder / "moved.nc")
    return prepare([folder / "moved.nc"], folder / "moved", size=64)


def test_weights_remember_every_day_and_latitude_they_were_trained_on(store, run, tmp_path):
    released, other = Checkpoint.load(run / WEIGHTS_NAME), other_store(tmp_path)
    trainer = Trainer.start(other, tmp_path / "a", SMALL, settings(steps=1), released)
    trainer.run()
    found = Checkpoint.load(tmp_path / "a" / WEIGHTS_NAME)
    assert [source["file"] for source in found.sources] == [TRUTH.name, "moved.nc"]
    south, north = store.domain.latitudes[0], other.domain.latitudes[1]
    assert found.domain.latitudes == (south, north)
    again = Trainer.resume(other, tmp_path / "a", steps=2).run()
    assert again.sources == found.sources and again.domain == found.domain


def test_a_run_that_trains_on_sees_other_crops_and_noise(store, run, tmp_path):
    released = Checkpoint.load(run / WEIGHTS_NAME)
    first = Trainer.start(store, tmp_path / "a", SMALL, settings(steps=4))
    further = Trainer.start(store, tmp_path / "b", SMALL, settings(steps=4), released)
    begun, continued = first._batch(), further._batch()
    assert not any(torch.equal(a, b) for a, b in zip(begun[:4], continued[:4], strict=True))
    first.step = released.step
    assert torch.equal(first._batch()[3], continued[3])  # as if it had never stopped


def test_a_run_is_not_continued_on_other_patches(run, tmp_path):
    with pytest.raises(InputError, match=r"moved.nc, which the run in .* was not trained on"):
        Trainer.resume(other_store(tmp_path), run, steps=20)


def test_a_run_goes_on_with_its_own_store_alone(store, run, tmp_path):
    """Not with that of the weights it began with, nor with a part of its own."""
    released, other = Checkpoint.load(run / WEIGHTS_NAME), other_store(tmp_path)
    Trainer.start(other, tmp_path / "a", SMALL, settings(steps=1), released).run()
    with pytest.raises(InputError, match="expected the store that it began with"):
        Trainer.resume(store, tmp_path / "a", steps=2)
    both = prepare([TRUTH, tmp_path / "moved.nc"], tmp_path / "both", size=64)
    Trainer.start(both, tmp_path / "b", SMALL, settings(steps=1)).run()
    for part in (store, other):
        with pytest.raises(InputError, match="expected the store that it began with"):
            Trainer.resume(part, tmp_path / "b", steps=2)
    assert Trainer.resume(both, tmp_path / "b", steps=2).run().step == 2


def test_a_run_that_is_told_to_stop_loses_no_step(store, tmp_path):
    whole = Trainer.start(store, tmp_path / "whole", SMALL, settings(steps=12)).run()
    stopped = Trainer.start(store, tmp_path / "a", SMALL, settings(steps=12))
    state = stopped.run(stop=lambda: stopped.step == 7)
    assert state.step == 7 and not (tmp_path / "a" / WEIGHTS_NAME).exists()
    again = Trainer.resume(store, tmp_path / "a", threads=1, checkpoint_minutes=0.0)
    assert (again.step, again.config.checkpoint_minutes) == (7, 0.0)
    ended = again.run()
    assert all(torch.equal(ended.tensors[name], value) for name, value in whole.tensors.items())
    rows = (tmp_path / "a" / "log.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["7", "10"]


def test_one_stop_may_be_told_twice_but_a_second_interrupt_acts_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        assert not stop.asked()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked() and stop.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    # A background job is started with it ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.number == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_a_signal_while_a_run_ends_still_ends_the_program(store, tmp_path):
    trainer = Trainer.start(store, tmp_path, SMALL, settings(steps=1))
    save = trainer._save

    def told(state, name):
        os.kill(os.getpid(), signal.SIGTERM)
        save(state, name)

    trainer._save = told
    with progress_bars() as progress, pytest.raises(SystemExit) as ended:
        run_training(trainer, progress)
    assert ended.value.code == 128 + signal.SIGTERM
    assert Checkpoint.load(tmp_path / WEIGHTS_NAME).step == 1


def test_a_log_that_cannot_be_opened_is_said(tmp_path):
    (tmp_path / LOG_NAME).mkdir()
    with pytest.raises(OutputError, match=r"log.csv: "):
        TrainingLog(tmp_path, 0)


def test_a_log_that_cannot_be_written_is_said(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TrainingLog(tmp_path, 0) as log:
        log.add(1, 0.5, 1.0, 1.0, 1e-4)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
        try:
            with pytest.raises(OutputError, match=r"log.csv: cannot be written .*Free some space"):
                log.add(2, 0.5, 1.0, 1.0, 1e-4)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_numbers_that_are_not_finite_leave_the_last_checkpoint_whole(store, tmp_path):
    trainer = Trainer.start(store, tmp_path / "a", SMALL, settings(steps=2))
    before = trainer.run()
    trainer = Trainer.resume(store, tmp_path / "a", steps=6)
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(torch.nan)
    with pytest.raises(SuspectError, match="--learning-rate"):
        trainer.run()
    kept = Checkpoint.load(tmp_path / "a" / CHECKPOINT_NAME)
    assert kept.step == 2
    assert all(torch.equal(kept.tensors[name], value) for name, value in before.tensors.items())


@pytest.mark.parametrize(
    "change",
    [
        {"time_sampling": "logsnr"},
        {"loss_target": "eps"},
        {"loss_target": "x0"},
        {"rain_weight": 0.5},
        {"intensity_spread": 0.5},
        {"ema_decay": 0.05},
        {"turns": False},
        {"rate_schedule": "constant"},
    ],
)
def test_every_part_of_a_recipe_changes_what_is_learnt(store, run, tmp_path, change):
    Trainer.start(store, tmp_path, SMALL, settings(steps=2, **change)).run()
    plain, other = (Checkpoint.load(folder / WEIGHTS_NAME) for folder in (run, tmp_path))
    assert any(not torch.equal(value, other.tensors[name]) for name, value in plain.tensors.items())
    assert {name: getattr(other.training, name) for name in change} == change


def test_the_errors_of_a_training_step_are_weighed_by_its_target(store, tmp_path):
    """An error of v is one of eps early in the process, and one of x0 late."""
    weights = {
        target: Trainer.start(
            store, tmp_path / target, SMALL, settings(steps=1, batch=8, loss_target=target)
        )._batch()[4]
        for target in ("v", "eps", "x0")
    }
    assert (weights["v"] == 1).all()
    torch.testing.assert_close(weights["eps"] + weights["x0"], weights["v"])
    assert (weights["eps"][0] > 0.9).all() and (weights["x0"][-1] > 0.9).all()


@pytest.mark.parametrize("change", [{"time_sampling": "logsnr"}, {"loss_target": "eps"}])
def test_a_regression_refuses_what_it_has_no_use_for(change):
    with pytest.raises(InputError, match="for a regression, which knows no times"):
        settings(steps=1, objective="regression", **change)
