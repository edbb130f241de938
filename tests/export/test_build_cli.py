"""`wdm-export` as users call it: whole runs, exit codes, and errors without tracebacks."""

import csv
import importlib.metadata
import shutil

import numpy as np
import pytest
from conftest import SAMPLE, TRUTH

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
xr = pytest.importorskip("xarray")

from command_line import NETWORK, QUICK, run, run_script  # noqa: E402
from small_training import random_network  # noqa: E402

from wdm_export.config import NetworkConfig  # noqa: E402
from wdm_runtime.bundle import Bundle  # noqa: E402
from wdm_runtime.records import build  # noqa: E402
from wdm_runtime.transform import PrecipTransform  # noqa: E402


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A bundle that `build` made from the sample in the repository."""
    bundle = tmp_path_factory.mktemp("build") / "mine"
    code, out, err = run_script(
        "wdm-export", "build", TRUTH, "--minutes", "0.1", *NETWORK, "--patch", "64",
        "--tile", "64", "--threads", "1", "-o", bundle,
    )  # fmt: skip
    assert code == 0, err
    return bundle, out


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepare") / "store"
    out = run("wdm-export", "prepare", TRUTH, "-o", path, "--patch", "64")
    assert "2022-08-09" in out
    return path


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "run"
    out = run(
        "wdm-export", "train", store, "-o", folder, "--steps", "25", *QUICK, "--crop", "16",
        "--seed", "7", "--tv-weight", "0.001", "--learning-rate", "0.002", "--threads", "1",
        "--time-sampling", "logsnr", "--loss-target", "x0", "--intensity-spread", "0.2",
        "--ema-decay", "0.5", "--even-patches", "--no-turns", "--rate-schedule", "linear",
        "--transform", "cube-root", "--transform-offset", "0.2",
    )  # fmt: skip
    assert str(folder) in out
    return folder


# --- build ---------------------------------------------------------------------------------------


def test_build_makes_a_bundle_that_infer_takes(built, tmp_path):
    bundle, out = built
    assert "passed" in out and "FAILED" not in out and "wdm-run infer" in out
    opened = Bundle.open(bundle)
    opened.verify()
    training = opened.manifest.training
    assert training["steps"] >= 1 and training["seconds"] >= 5.9
    assert training["sources"][0]["file"] == TRUTH.name
    assert opened.manifest.transform == PrecipTransform.zero_where_dry("log10")
    target = tmp_path / "fine.nc"
    code, _, err = run_script(
        "wdm-run", "infer", SAMPLE, "--bundle", bundle, "-o", target, "--steps", "3",
        "--no-pixel-probe",
    )  # fmt: skip
    assert code == 0, err
    with xr.open_dataset(target) as result, xr.open_dataset(TRUTH) as truth:
        (name,) = [n for n, v in result.data_vars.items() if v.ndim >= 4]
        rate = result[name].values.squeeze()
        assert rate.shape == truth["precipitation_rate"].values.squeeze().shape
        assert np.isfinite(rate).all() and rate.min() >= 0 and rate.max() > 1
        np.testing.assert_allclose(result["lat"], truth["lat"], atol=1e-6)
        np.testing.assert_allclose(result["lon"], truth["lon"], atol=1e-6)


def test_build_keeps_its_work_beside_the_bundle(built):
    bundle, _ = built
    work = bundle.with_name("mine-work")
    assert {p.name for p in bundle.parent.iterdir()} == {"mine", "mine-work"}
    assert (work / "store" / "index.json").is_file()
    assert {p.name for p in (work / "run").iterdir()} == {
        "checkpoint.safetensors", "weights.safetensors", "log.csv", "loss.png",
    }  # fmt: skip


def test_build_again_refuses_settings_that_the_run_does_not_have(built, tmp_path):
    bundle, _ = built
    work = bundle.with_name("mine-work")
    for option, value in (
        ("--seed", "3"),
        ("--transform", "cube-root"),
        ("--transform-offset", "1"),
    ):
        err = run(
            "wdm-export", "build", TRUTH, "--minutes", "0.1", *NETWORK, "--tile", "64",
            "--patch", "64", option, value, "--threads", "1", "--work", work,
            "-o", tmp_path / "other", code=2,
        )  # fmt: skip
        assert option.removeprefix("--").split("-")[0] in err and "--work" in err
        assert not (tmp_path / "other").exists()


def test_build_again_refuses_files_and_patches_that_the_run_does_not_have(built, tmp_path):
    bundle, _ = built
    work = bundle.with_name("mine-work")
    (tmp_path / "other.nc").write_bytes(SAMPLE.read_bytes())
    for given, words in (
        ([tmp_path / "other.nc"], ["other.nc (not of the run)", f"no {TRUTH.name}"]),
        ([TRUTH, tmp_path / "absent.nc"], ["absent.nc"]),
        ([TRUTH, "--patch", "96"], ["--patch 96"]),
        ([TRUTH, "--factor", "5"], ["--factor 5"]),
    ):
        err = run(
            "wdm-export", "build", *given, "--minutes", "0.1", *NETWORK, "--tile", "64",
            "--threads", "1", "--work", work, "-o", tmp_path / "other", code=2,
        )  # fmt: skip
        assert all(word in err for word in words), err
        assert not (tmp_path / "other").exists()


def test_a_network_that_build_made_hears_the_time(built):
    """One channel a norm group would subtract the time embedding again, silently."""
    settings = Bundle.open(built[0]).manifest.training["network"]
    network = random_network(build(NetworkConfig, settings, "network"))
    x, condition = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        early, late = (network(x, condition, torch.tensor([t])) for t in (0.1, 0.9))
    assert (early - late).abs().max() > 1e-2


def test_build_refuses_to_replace_a_bundle_before_it_computes(built):
    bundle, _ = built
    message = run("wdm-export", "build", TRUTH, "-o", bundle, code=2)
    assert "already exists" in message and "--overwrite" in message


def test_build_without_files_says_what_it_needs(tmp_path):
    code, _, message = run_script("wdm-export", "build", "-o", tmp_path / "x")
    assert code == 2 and "Traceback" not in message and not list(tmp_path.iterdir())
    for word in ("no files", "1 km", "GRIB2", "NetCDF", "wdm-export build FILES"):
        assert word in message
    assert "--output" in run("wdm-export", "build", TRUTH, code=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tile", "100"], ["--tile", "100"]),  # 25 coefficients cannot be halved twice
        (["--crop", "50"], ["--crop", "50"]),
        (["--minutes", "-1"], ["minutes"]),
        (["--wavelet", "db200"], ["--wavelet", "db200", "sym2 to sym20"]),
    ],
)
def test_build_refuses_bad_sizes_before_it_computes(tmp_path, options, words):
    message = run("wdm-export", "build", TRUTH, "-o", tmp_path / "x", *options, code=2)
    assert all(word in message for word in words), message
    assert not (tmp_path / "x").exists() and not (tmp_path / "x-work").exists()


# --- prepare, train, export, check ---------------------------------------------------------------


def test_train_writes_weights_log_and_plot(trained):
    assert {p.name for p in trained.iterdir()} == {
        "checkpoint.safetensors", "weights.safetensors", "log.csv", "loss.png",
    }  # fmt: skip
    with open(trained / "log.csv", newline="") as log:
        assert [row["step"] for row in csv.DictReader(log)] == ["10", "20"]
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_train_sets_what_was_asked_for(trained):
    from wdm_export.checkpoint import Checkpoint

    weights = Checkpoint.load(trained / "weights.safetensors")
    training, network = weights.training, weights.model.network
    assert (training.steps, training.batch, training.crop_px, training.seed) == (25, 2, 16, 7)
    assert training.tv_weight == 0.001 and training.learning_rate == 0.002
    assert (training.time_sampling, training.loss_target) == ("logsnr", "x0")
    assert (training.intensity_spread, training.ema_decay) == (0.2, 0.5)
    assert (training.even_days, training.turns, training.rate_schedule) == (False, False, "linear")
    transform = weights.model.transform
    assert (transform.name, transform.offset_mm_h) == ("cube-root", 0.2)
    assert network.base_channels == 4 and network.multipliers == (1,) and not network.attention
    assert weights.step == 25


def test_train_resumes_and_starts_from_weights(trained, store, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    before = (copy / "weights.safetensors").read_bytes()
    run("wdm-export", "train", store, "-o", copy, "--resume")  # already done: nothing changes
    assert (copy / "weights.safetensors").read_bytes() == before
    message = run("wdm-export", "train", store, "-o", copy, "--steps", "2", *QUICK, code=2)
    assert "--resume" in message
    root = ("--transform", "cube-root")
    message = run("wdm-export", "train", store, "-o", copy, "--resume", *root, code=2)
    assert "transform" in message
    run(
        "wdm-export", "train", store, "-o", tmp_path / "next", "--steps", "2", *QUICK,
        "--crop", "16", "--weights", copy / "weights.safetensors",
    )  # fmt: skip
    assert (tmp_path / "next" / "weights.safetensors").is_file()
    for half, code in (
        (root, 0),
        (("--transform-offset", "0.2"), 0),
        (("--transform", "log10"), 2),
    ):
        run(
            "wdm-export", "train", store, "-o", tmp_path / half[-1], "--steps", "1", *QUICK,
            "--crop", "16", "--weights", copy / "weights.safetensors", *half, code=code,
        )  # fmt: skip


def test_export_and_check(trained, tmp_path):
    weights, bundle = trained / "weights.safetensors", tmp_path / "model"
    out = run("wdm-export", "export", weights, "-o", bundle, "--name", "quick", "--tile", "16")
    assert "passed" in out and "FAILED" not in out
    assert Bundle.open(bundle).manifest.name == "quick"
    out = run("wdm-export", "check", bundle, "--weights", weights)
    assert out.count("passed") == 9
    assert "quick" in run("wdm-run", "info", bundle)
    # a checkpoint of another run has other weights: the gate's own exit code
    nudged = _nudged(weights, tmp_path)
    assert "score fp32" in run("wdm-export", "check", bundle, "--weights", nudged, code=5)
    message = run("wdm-export", "export", weights, "-o", bundle, "--tile", "16", code=2)
    assert "already exists" in message


def _nudged(weights, folder):
    from dataclasses import replace

    from wdm_export.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(weights)
    tensors = {k: v + 0.1 if k == "ema.head.bias" else v for k, v in checkpoint.tensors.items()}
    path = folder / "nudged.safetensors"
    replace(checkpoint, tensors=tensors).save(path)
    return path


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["prepare", "{tmp}/absent.nc", "-o", "{tmp}/s"], 2, ["absent.nc", "no such file"]),
        (["prepare", "{junk}", "-o", "{tmp}/s"], 2, ["junk.nc"]),
        (["prepare", "{truth}", "-o", "{tmp}/s", "--patch", "2000"], 2, ["2000 x 2000"]),
        (["prepare", "{truth}", "-o", "{tmp}/s", "--patch", "1"], 2, ["--patch"]),
        (["prepare", "{truth}", "-o", "{tmp}/s", "--factor", "1"], 2, ["--factor"]),
        (["prepare", "{truth}", "{truth}", "-o", "{tmp}/s"], 2, ["same bytes"]),
        (["prepare", "{junk}", "-o", "{tmp}/s", "--skip-unreadable"], 2, ["left out", "junk.nc"]),
        (["prepare", "{truth}", "-o", "{junk}"], 2, ["junk.nc", "-o"]),
        (["prepare", "{truth}", "-o", "{store}"], 2, ["already holds a store"]),
        (["train", "{tmp}", "-o", "{tmp}/r", "--steps", "1"], 2, ["no store"]),
        (["train", "{store}", "-o", "{tmp}/r"], 2, ["--minutes or --steps"]),
        (["train", "{store}", "-o", "{tmp}/r", "--steps", "1", "--minutes", "1"], 2, ["exactly"]),
        (["train", "{store}", "-o", "{tmp}/r", "--steps", "0"], 2, ["steps"]),
        (["train", "{store}", "-o", "{tmp}/r", "--steps", "1", "--seed", "-1"], 2, ["seed"]),
        (["train", "{store}", "-o", "{tmp}/r", "--steps", "1", "--seed", "9" * 23], 2, ["seed"]),
        (["train", "{store}", "-o", "{tmp}/r", "--steps", "1", "--base", "0"], 2, ["channels"]),
        (["train", "{store}", "-o", "{tmp}/r", "--steps", "1", "--depths", "a"], 2, ["--depths"]),
        (["train", "{store}", "-o", "{tmp}/r", "--steps", "1", "--depths", "²"], 2, ["--depths"]),
        (["train", "{store}", "-o", "{tmp}/r", "--steps", "1", "--levels", "9"], 2, ["levels"]),
        (["train", "{store}", "-o", "{tmp}/r", "--steps", "1", "--crop", "96"], 2, ["--crop"]),
        (["train", "{store}", "-o", "{junk}", "--steps", "1", "--crop", "32"], 2, ["junk.nc"]),
        (["train", "{store}", "-o", "{tmp}/r", "--resume"], 2, ["checkpoint"]),
        (["train", "{store}", "-o", "{tmp}/r", "--steps", "1", "--weights", "{junk}"], 2, ["junk"]),
        (["export", "{junk}", "-o", "{tmp}/b"], 2, ["junk.nc", "safetensors"]),
        (["export", "{tmp}/absent", "-o", "{tmp}/b"], 2, ["absent"]),
        (["check", "{tmp}", "--weights", "{junk}"], 3, ["manifest.json"]),
        (["coarsen", "{tmp}/absent.nc", "-o", "{tmp}/c.nc"], 2, ["absent.nc"]),
        (["coarsen", "{truth}", "-o", "{tmp}/c.nc", "--crop", "0,0,99,9"], 2, ["--crop"]),
        (["coarsen", "{truth}", "-o", "{tmp}/c.nc", "--crop", "0,0,9,²"], 2, ["--crop"]),
        (["coarsen", "{truth}", "-o", "{tmp}/c.nc", "--factor", "0"], 2, ["--factor"]),
        (["coarsen", "{truth}", "-o", "{tmp}/c.nc", "--factor", "-3"], 2, ["--factor"]),
        (["coarsen", "{truth}", "-o", "{tmp}/c.nc", "--factor", "5000"], 2, ["--factor"]),
        (["coarsen", "{truth}", "-o", "{tmp}/c.nc", "--truth", "{tmp}/c.nc"], 2, ["c.nc"]),
        (["nonsense"], 2, ["nonsense"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors_are_one_message_and_a_code(store, tmp_path, arguments, code, words):
    junk = tmp_path / "junk.nc"
    junk.write_bytes(b"neither rain nor weights")
    places = {"tmp": tmp_path, "junk": junk, "truth": TRUTH, "store": store}
    message = run("wdm-export", *(a.format(**places) for a in arguments), code=code)
    assert "Traceback" not in message and all(word in message for word in words), message
    assert {p.name for p in tmp_path.iterdir()} <= {"junk.nc", "s", "r"}


def test_verbose_shows_where_an_error_came_from(tmp_path):
    arguments = ["prepare", tmp_path / "absent.nc", "-o", tmp_path / "s"]
    code, _, message = run_script("wdm-export", "-vv", *arguments)
    assert code == 2 and "Traceback" in message and "InputError" in message
    code, _, message = run_script("wdm-export", *arguments)
    assert code == 2 and "Traceback" not in message
    assert message.splitlines()[-1].startswith("error: ") and "absent.nc" in message


@pytest.mark.parametrize("command", ["wdm-export", "wdm-run"])
def test_both_commands_say_the_installed_version(command):
    code, out, _ = run_script(command, "--version")
    assert code == 0 and out.split() == ["wdm-edge", importlib.metadata.version("wdm-edge")]
