"""`wdm-export` as users call it: whole runs, exit codes, and errors without tracebacks."""

import csv
import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import xarray
from conftest import SAMPLE, TRUTH

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
xr = pytest.importorskip("xarray")

from small_training import random_network  # noqa: E402

import wdm_export.cli  # noqa: E402
import wdm_runtime.cli  # noqa: E402
from wdm_export.config import NetworkConfig  # noqa: E402
from wdm_runtime.bundle import Bundle  # noqa: E402
from wdm_runtime.grid import block_mean  # noqa: E402
from wdm_runtime.io import read_field  # noqa: E402
from wdm_runtime.wavelets import WaveletSpec  # noqa: E402

NETWORK = ["--base", "4", "--depths", "1,1", "--blocks", "1", "--crop", "32", "--batch", "4"]
QUICK = ["--base", "4", "--depths", "1", "--blocks", "1", "--no-attention", "--batch", "2"]


ENVIRONMENT = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
MAINS = {"wdm-export": wdm_export.cli.main, "wdm-run": wdm_runtime.cli.main}


def run_script(command, *arguments):
    """Call a console script of this interpreter: exit code, output, errors."""
    script = shutil.which(command, path=str(Path(sys.executable).parent)) or command
    result = subprocess.run(
        [script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        timeout=900,  # a minute alone; machines may be busy
    )
    return result.returncode, result.stdout, result.stderr


def run(command, *arguments, code=0):
    """Call an entry point in this process, which spares seconds of imports, and return its output.

    A call that must fail returns its errors; an exception that is no typed error gets through.
    """
    out, err = io.StringIO(), io.StringIO()
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command, *map(str, arguments)])
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with redirect_stdout(out), redirect_stderr(err):
            try:
                MAINS[command]()
                got = 0
            except SystemExit as end:
                got = end.code or 0
    torch.set_num_threads(threads)
    assert got == code, err.getvalue()
    return err.getvalue() if code else out.getvalue()


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
    err = run(
        "wdm-export", "build", TRUTH, "--minutes", "0.1", *NETWORK, "--tile", "64",
        "--patch", "64", "--seed", "3", "--threads", "1", "--work", work,
        "-o", tmp_path / "other", code=2,
    )  # fmt: skip
    assert "seed" in err and "--work" in err
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
    settings["wavelet"] = WaveletSpec.from_dict(settings["wavelet"])
    network = random_network(NetworkConfig(**settings))
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


def test_coarsen_writes_block_means(tmp_path):
    out = run(
        "wdm-export", "coarsen", TRUTH, "-o", tmp_path / "coarse.nc",
        "--truth", tmp_path / "truth.nc", "--crop", "2,3,20,30",
    )  # fmt: skip
    assert "coarse.nc" in out
    with (
        xr.open_dataset(tmp_path / "coarse.nc") as coarse,
        xr.open_dataset(tmp_path / "truth.nc") as fine,
        xr.open_dataset(TRUTH) as whole,
    ):
        rate, truth = (d["precipitation_rate"].values[0] for d in (coarse, fine))
        np.testing.assert_array_equal(truth, whole["precipitation_rate"].values[0, 20:220, 30:330])
        blocks = truth.astype(float).reshape(20, 10, 30, 10).mean(axis=(1, 3))
        np.testing.assert_allclose(rate, blocks, rtol=1e-5, atol=1e-6)
        assert rate.mean() == pytest.approx(truth.mean(), rel=1e-5)
    message = run("wdm-export", "coarsen", TRUTH, "-o", tmp_path / "coarse.nc", code=2)
    assert "exists" in message


def test_coarsen_takes_a_field_without_a_time(tmp_path):
    with xr.open_dataset(TRUTH) as whole:
        whole["precipitation_rate"].isel(time=0, drop=True).to_netcdf(tmp_path / "still.nc")
    run("wdm-export", "coarsen", tmp_path / "still.nc", "-o", tmp_path / "coarse.nc")
    found = read_field(tmp_path / "coarse.nc")
    assert found.valid_times == ("none-0",)
    expected = block_mean(read_field(TRUTH).frame(0), 10)
    np.testing.assert_allclose(found.frame(0), expected, atol=1e-5)


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


def test_files_that_cannot_be_read_are_counted(tmp_path):
    (tmp_path / "junk.nc").write_bytes(b"no rain")
    files = (tmp_path / "junk.nc", TRUTH)
    out = run("wdm-export", "prepare", *files, "-o", tmp_path / "s", "--skip-unreadable")
    assert "2022-08-09" in out and "Left out 1 of 2 files." in out


def test_rates_and_sums_in_one_store_are_said(amounts, tmp_path):
    asked = ("--variable", "rain_amount", "--accumulation", "30min")
    out = run("wdm-export", "prepare", amounts, "-o", tmp_path / "a", "--patch", "64", *asked)
    assert "The fields are" not in out
    with xr.open_dataset(amounts) as dataset:  # with bounds, so that nothing needs to be asked for
        sums = dataset[["rain_amount"]].load()
    times = sums["time"].values
    sums["time"].attrs["bounds"] = "time_bnds"
    sums["time_bnds"] = ("time", "nv"), np.stack([times - np.timedelta64(30, "m"), times], axis=1)
    sums.to_netcdf(tmp_path / "sums.nc")
    out = run("wdm-export", "prepare", tmp_path / "sums.nc", TRUTH, "-o", tmp_path / "b")
    assert "The fields are rates and sums over 0.5 h" in out


def test_a_model_of_another_factor(tmp_path):
    """From 5 km to 1 km, from the fields to an ensemble whose block means are its input."""
    factor, names = 5, ("s", "r", "b", "coarse.nc", "fine.nc")
    store, folder, bundle, coarse, fine = (tmp_path / name for name in names)
    run("wdm-export", "prepare", TRUTH, "-o", store, "--patch", "64", "--factor", factor)
    run("wdm-export", "train", store, "-o", folder, "--steps", 2, *QUICK, "--crop", "16")
    run("wdm-export", "export", folder / "weights.safetensors", "-o", bundle, "--tile", "64")
    run("wdm-export", "coarsen", TRUTH, "-o", coarse, "--factor", factor, "--crop", "0,0,30,40")
    run("wdm-run", "infer", coarse, "--bundle", bundle, "-o", fine, "--no-pixel-probe")
    given = read_field(coarse).load()[0]
    with xr.open_dataset(fine) as drawn:
        member = next(v for v in drawn.data_vars.values() if v.ndim == 4).values[0, 0]
    assert member.shape == tuple(factor * size for size in given.shape)
    means = block_mean(member, factor)
    np.testing.assert_allclose(means[given > 0.5], given[given > 0.5], rtol=1e-4)


def test_verbose_shows_where_an_error_came_from(tmp_path):
    arguments = ["prepare", tmp_path / "absent.nc", "-o", tmp_path / "s"]
    code, _, message = run_script("wdm-export", "-vv", *arguments)
    assert code == 2 and "Traceback" in message and "InputError" in message
    code, _, message = run_script("wdm-export", *arguments)
    assert code == 2 and "Traceback" not in message
    assert message.splitlines()[-1].startswith("error: ") and "absent.nc" in message


@pytest.fixture
def amounts(tmp_path):
    """The sample's rain as 30-minute amounts without a stated period, beside another variable."""
    with xarray.open_dataset(TRUTH) as truth:
        rate = next(v for v in truth.data_vars.values() if v.ndim == 3)
        amount = (0.5 * rate).rename("rain_amount")
        amount.attrs = {"standard_name": "lwe_thickness_of_precipitation_amount", "units": "mm"}
        other = (2 * rate).rename("rain_rate")
        other.attrs = dict(rate.attrs)
        xarray.merge([amount, other]).to_netcdf(tmp_path / "amounts.nc")
    return tmp_path / "amounts.nc"


def test_amounts_and_one_of_several_variables_can_be_trained_on(amounts, store, tmp_path):
    from wdm_export.data import PatchStore

    asked = ("--variable", "rain_amount", "--accumulation", "30min")
    run("wdm-export", "prepare", amounts, "-o", tmp_path / "own", "--patch", "64", *asked)
    own, expected = PatchStore.open(tmp_path / "own"), PatchStore.open(store)
    np.testing.assert_allclose(own.fine, expected.fine, rtol=2e-3)
    assert (own.variable, own.accumulation_h) == ("rain_amount", 0.5)
    assert (expected.variable, expected.accumulation_h) == (None, None)
    run("wdm-export", "coarsen", amounts, "-o", tmp_path / "a.nc", *asked)
    run("wdm-export", "coarsen", TRUTH, "-o", tmp_path / "b.nc")
    with xarray.open_dataset(tmp_path / "a.nc") as a, xarray.open_dataset(tmp_path / "b.nc") as b:
        np.testing.assert_allclose(a.precipitation_rate, b.precipitation_rate, rtol=1e-5)
