"""Training: reproducible, resumable, on the runtime's own terms, and without pickles."""

import csv
import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conftest import TRUTH  # noqa: E402
from small_training import SMALL, random_checkpoint, sample_store, settings, small  # noqa: E402

from wdm_export.checkpoint import Checkpoint  # noqa: E402
from wdm_export.config import TrainConfig  # noqa: E402
from wdm_export.data import prepare  # noqa: E402
from wdm_export.train import CHECKPOINT_NAME, WEIGHTS_NAME, Trainer  # noqa: E402
from wdm_export.training_log import LOG_NAME  # noqa: E402
from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.manifest import Domain  # noqa: E402
from wdm_runtime.transform import PrecipTransform  # noqa: E402


class Interrupted(Exception):
    pass


@pytest.fixture(autouse=True)
def threads():
    """Training sets torch's threads for the process: put them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return sample_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A finished run of 12 steps: its folder, last state, and what on_step was told."""
    folder, seen = tmp_path_factory.mktemp("run") / "a", []
    trainer = Trainer.start(store, folder, SMALL, settings())
    return folder, trainer.run(seen.append), seen


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=1e-6, msg=name)


def log_rows(folder):
    with open(folder / LOG_NAME, newline="") as log:
        return list(csv.DictReader(log))


# --- what the network is shown -------------------------------------------------------------------


def test_every_step_sees_other_crops_noise_and_times(store, tmp_path):
    trainer = Trainer.start(store, tmp_path, SMALL, settings(steps=6, batch=8))
    seen = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    trainer.run()
    states, conditions, times = (torch.stack(values) for values in zip(*seen, strict=True))
    assert states.shape == (6, 8, 16, 8, 8)
    for values in (states, conditions, times):
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(values, 2))
    # one time in each eighth of [0, 1): no batch misses the hard middle
    assert torch.equal((8 * times).floor(), torch.arange(8.0).expand(6, 8))
    # late times are noise of unit variance, whatever the rain
    assert states[:, -1].std() == pytest.approx(1.0, abs=0.1)


def test_times_even_in_log_snr_cover_what_samplers_use(store, tmp_path):
    trainer = Trainer.start(
        store, tmp_path, SMALL, settings(steps=3, batch=7, time_sampling="logsnr")
    )
    seen = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    trainer.run()
    angles = 0.5 * math.pi * torch.stack(seen).double()
    logsnr = 2 * (angles.cos() / angles.sin()).log()
    # -6 to 8: one time in each seventh of the range is one in each step of 2
    assert torch.equal(((logsnr + 6) / 2).floor(), torch.arange(7.0).double().expand(3, 7))


# --- reproducible and resumable ------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_and_another_does_not(store, run, tmp_path):
    _, final, _ = run
    again = Trainer.start(store, tmp_path / "b", SMALL, settings()).run()
    assert final.step == again.step == 12
    assert_same(final.tensors, again.tensors)
    other = Trainer.start(store, tmp_path / "c", SMALL, settings(seed=1)).run()
    stem = "model.stem.weight"
    assert (other.tensors[stem] - final.tensors[stem]).abs().max() > 1e-3


@pytest.mark.parametrize("stop_at", [1, 7])
def test_a_run_stopped_and_resumed_ends_as_one_in_one_go(store, run, tmp_path, stop_at):
    _, whole, _ = run

    def stop(progress):
        if progress.step == stop_at + 2:  # two steps after the last checkpoint are lost
            raise Interrupted
        if progress.step == stop_at:
            trainer.checkpoint().save(tmp_path / CHECKPOINT_NAME)

    trainer = Trainer.start(store, tmp_path, SMALL, settings())
    with pytest.raises(Interrupted):
        trainer.run(stop)
    assert not (tmp_path / WEIGHTS_NAME).exists()
    resumed = Trainer.resume(store, tmp_path)
    assert resumed.step == stop_at and resumed.seconds > 0
    final = resumed.run()
    assert final.step == 12
    assert_same(whole.tensors, final.tensors)


def test_the_loop_saves_what_a_stopped_run_goes_on_from(store, run, tmp_path):
    _, whole, _ = run

    def stop(progress):
        if progress.step == 11:
            raise Interrupted

    trainer = Trainer.start(store, tmp_path, SMALL, settings(checkpoint_minutes=0.0))
    with pytest.raises(Interrupted):
        trainer.run(stop)
    assert not list(tmp_path.glob(".*")), "a temporary file was left"
    resumed = Trainer.resume(store, tmp_path)
    assert resumed.step == 10  # where a row of the log ended
    assert_same(whole.tensors, resumed.run().tensors)


def test_the_log_of_a_resumed_run_has_every_step_once(store, tmp_path):
    def stop(progress):
        if progress.step == 12:
            trainer.checkpoint().save(tmp_path / CHECKPOINT_NAME)
        if progress.step == 22:
            raise Interrupted

    trainer = Trainer.start(store, tmp_path, SMALL, settings(steps=30))
    with pytest.raises(Interrupted):
        trainer.run(stop)
    assert [int(row["step"]) for row in log_rows(tmp_path)] == [10, 20]
    Trainer.resume(store, tmp_path).run()
    assert [int(row["step"]) for row in log_rows(tmp_path)] == [10, 20, 30]


def test_resuming_a_finished_run_changes_nothing(store, run, tmp_path):
    _, final, _ = run
    final.save(tmp_path / CHECKPOINT_NAME)
    again = Trainer.resume(store, tmp_path).run()
    assert again.step == 12
    assert_same(final.tensors, again.tensors)


def test_a_time_limit_ends_the_run_and_is_not_started_anew(store, tmp_path):
    config = settings(steps=None, minutes=0.01)
    final = Trainer.start(store, tmp_path, SMALL, config).run()
    assert final.step > 1 and 0.6 <= final.seconds < 10
    again = Trainer.resume(store, tmp_path).run()
    assert (again.step, again.seconds) == (final.step, final.seconds)


# --- learning ------------------------------------------------------------------------------------


def test_bf16_only_where_the_processor_multiplies_in_it(store, tmp_path):
    flags = set(Path("/proc/cpuinfo").read_text().split())
    native = bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})  # the last one: Arm
    trainer = Trainer.start(store, tmp_path, SMALL, settings(steps=1))
    kinds = []
    for module in trainer.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _module, _x, y: kinds.append(y.dtype))
    trainer.run()
    assert set(kinds) == {torch.bfloat16 if native else torch.float32}


def test_training_reduces_the_loss(store, tmp_path):
    losses = []
    config = settings(steps=300, batch=8, learning_rate=5e-3)
    Trainer.start(store, tmp_path, SMALL, config).run(lambda p: losses.append(p.loss))
    # v = alpha eps - sigma x0 has unit variance, which is the loss of a network that says 0
    assert np.mean(losses[:3]) == pytest.approx(1.0, abs=0.25)
    # Single batches scatter by 0.2: a mean of 100 by 0.02.
    assert np.mean(losses[-100:]) < 0.96
    rows = log_rows(tmp_path)
    assert np.mean([float(row["matching"]) for row in rows[-10:]]) < 0.96
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates) <= 5e-3 and rates[-1] < 0.02 * max(rates)


@pytest.mark.parametrize(
    ("schedule", "left"),
    [
        ("cosine", [(1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0.0]),
        ("linear", [0.75, 0.5, 0.25, 0.0]),
        ("constant", [1.0] * 4),
    ],
)
def test_the_learning_rate_falls_as_its_schedule_says(store, tmp_path, schedule, left):
    Trainer.start(store, tmp_path, SMALL, settings(steps=40, rate_schedule=schedule)).run()
    rates = [float(row["learning_rate"]) for row in log_rows(tmp_path)]
    assert rates == pytest.approx([2e-3 * share for share in left], rel=2e-3)


def test_the_average_lags_behind_the_weights(store, tmp_path):
    trainer = Trainer.start(store, tmp_path, SMALL, settings())
    path = [{k: v.detach().clone() for k, v in trainer.network.named_parameters()}]
    trainer.run(
        lambda _: path.append(
            {k: v.detach().clone() for k, v in trainer.network.named_parameters()}
        )
    )
    final = Checkpoint.load(tmp_path / CHECKPOINT_NAME)
    raw, ema = final.group("model"), final.group("ema")
    assert raw.keys() == ema.keys()
    for ends in (path[-1], path[0]):  # behind the last weights, away from the first
        assert max(float((ema[k] - ends[k]).abs().max()) for k in ema) > 1e-4
    for name in raw:
        torch.testing.assert_close(raw[name], path[-1][name])
        steps = torch.stack([weights[name] for weights in path])
        # an average never leaves the range of what it averages
        assert (ema[name] >= steps.amin(0) - 1e-6).all()
        assert (ema[name] <= steps.amax(0) + 1e-6).all()
    exported = final.network().state_dict()
    assert_same(exported, ema)


def test_a_constant_field_trains_without_nan(tmp_path):
    xr = pytest.importorskip("xarray")
    with xr.open_dataset(TRUTH) as truth:
        flat = xr.full_like(truth.load(), 2.0)
    flat.to_netcdf(tmp_path / "flat.nc")
    store = prepare([tmp_path / "flat.nc"], tmp_path / "store", size=64)
    final = Trainer.start(store, tmp_path / "run", SMALL, settings(steps=3)).run()
    assert all(torch.isfinite(v).all() for v in final.tensors.values())


@pytest.mark.parametrize("levels", [0, 1])
def test_the_other_models_train_too(store, tmp_path, levels):
    final = Trainer.start(store, tmp_path, small(levels), settings(steps=2, tv_weight=1e-3)).run()
    assert len(final.model.residual_scale.std) == 4**levels
    assert all(torch.isfinite(v).all() for v in final.tensors.values())


# --- progress and files --------------------------------------------------------------------------


def test_progress_is_told_after_each_step(run):
    _, final, seen = run
    assert [p.step for p in seen] == list(range(1, 13))
    assert [p.share for p in seen] == pytest.approx([k / 12 for k in range(1, 13)])
    assert all(np.isfinite(p.loss) and p.samples_per_s > 0 for p in seen)
    assert seen[-1].seconds == final.seconds


def test_the_log_has_rows_with_finite_losses(run):
    (row,) = log_rows(run[0])
    assert int(row["step"]) == 10
    assert 0.3 < float(row["matching"]) <= float(row["loss"]) < 3
    assert float(row["seconds"]) >= 0 and float(row["learning_rate"]) > 0


def test_released_weights_are_fp16_and_know_their_model(run, store):
    folder, final, _ = run
    released = Checkpoint.load(folder / WEIGHTS_NAME)
    assert released.tensors and all(v.dtype == torch.float16 for v in released.tensors.values())
    assert all(name.startswith("ema.") for name in released.tensors)
    assert not released.resumable and Checkpoint.load(folder / CHECKPOINT_NAME).resumable
    for name, value in final.group("ema").items():
        assert torch.equal(released.group("ema")[name], value.half())
    assert released.model == final.model and released.model.network == SMALL
    assert released.training == settings() and released.step == 12
    assert [s["sha256"] for s in released.sources] == [s.sha256 for s in store.sources]
    assert released.sources[0]["valid_time"].startswith("2022-08-09")
    assert released.domain == final.domain == store.domain
    (row,) = log_rows(folder)
    assert released.curve == ((10, pytest.approx(float(row["matching"]), rel=1e-3)),)
    assert released.earlier == () and released.runs[0].step == 12


# --- refusals ------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_refused(store, run):
    with pytest.raises(InputError, match="already holds a run"):
        Trainer.start(store, run[0], SMALL, settings())
    assert Checkpoint.load(run[0] / CHECKPOINT_NAME).step == 12


def test_a_folder_without_a_run_cannot_be_resumed(store, tmp_path):
    with pytest.raises(InputError, match=r"holds no run to continue.*without --resume"):
        Trainer.resume(store, tmp_path)


def test_training_goes_on_from_released_weights_of_the_same_network_only(store, run, tmp_path):
    released = Checkpoint.load(run[0] / WEIGHTS_NAME)
    trainer = Trainer.start(store, tmp_path / "a", SMALL, settings(seed=3), released)
    begin = trainer.checkpoint()
    assert begin.step == 0 and begin.training.seed == 3
    assert begin.model == released.model  # scales belong to the weights
    for name, value in released.group("ema").items():
        assert torch.equal(begin.group("model")[name], value.float())
        assert torch.equal(begin.group("ema")[name], value.float())
    final = trainer.run()
    assert [run.training.seed for run in final.runs] == [0, 3] and final.curve
    assert final.runs[0] == released.runs[0]
    # and so in the files, over an interruption
    assert Checkpoint.load(tmp_path / "a" / WEIGHTS_NAME).runs == final.runs
    assert Trainer.resume(store, tmp_path / "a").checkpoint().earlier == released.runs
    for other in (small(1), small(blocks=2), small(multipliers=(1, 2)), small(attention=False)):
        with pytest.raises(InputError, match="initial weights"):
            Trainer.start(store, tmp_path / "b", SMALL, settings(), random_checkpoint(other))
    root = PrecipTransform.zero_where_dry("cube-root")
    with pytest.raises(InputError, match=r"initial weights are of PrecipTransform.*same transform"):
        Trainer.start(store, tmp_path / "b", SMALL, settings(), released, transform=root)
    finer = dataclasses.replace(released, model=dataclasses.replace(released.model, factor=5))
    with pytest.raises(InputError, match="factor of 5; expected that of the store, 10"):
        Trainer.start(store, tmp_path / "b", SMALL, settings(), finer)
    coarser = dataclasses.replace(released, domain=Domain(2.0, (20.0, 55.0)))
    with pytest.raises(InputError, match="patches of 1 km cells; the initial weights expect 2 km"):
        Trainer.start(store, tmp_path / "b", SMALL, settings(), coarser)
    assert not (tmp_path / "b" / CHECKPOINT_NAME).exists()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"minutes": 1.0, "steps": 1},
        {"steps": 0},
        {"steps": -1},
        {"minutes": 0.0},
        {"minutes": -1.0},
        {"minutes": float("nan")},
        {"steps": 1, "batch": 0},
        {"steps": 1, "threads": 0},
        {"steps": 1, "learning_rate": 0.0},
        {"steps": 1, "learning_rate": -1e-3},
        {"steps": 1, "tv_weight": -1.0},
        {"steps": 1, "seed": -1},
        {"steps": 1, "checkpoint_minutes": -1.0},
        {"steps": 1, "time_sampling": "even"},
        {"steps": 1, "loss_target": "score"},
        {"steps": 1, "intensity_spread": -0.1},
        {"steps": 1, "ema_decay": 1.0},
        {"steps": 1, "rate_schedule": "step"},
        {"steps": 1, "even_days": False, "batch": 8, "shards": 2},
    ],
)
def test_a_run_needs_one_limit_and_sensible_settings(values):
    with pytest.raises(InputError) as caught:
        TrainConfig(**values)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("crop", [0, 30, 36, 128])
def test_crops_the_network_cannot_halve_are_refused(store, tmp_path, crop):
    with pytest.raises(InputError, match="--crop"):
        Trainer.start(store, tmp_path, SMALL, settings(crop_px=crop)).run()
