"""`wdm-export evaluate`, `identity` and `train --objective` as users call them."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MODELS, TRUTH, edit_manifest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
xarray = pytest.importorskip("xarray")

from command_line import NETWORK, run  # noqa: E402
from small_training import random_checkpoint  # noqa: E402

from wdm_export.config import REGRESSION, TrainConfig  # noqa: E402
from wdm_export.package import CARD_NAME  # noqa: E402
from wdm_runtime.bundle import Bundle  # noqa: E402
from wdm_runtime.downscale import Downscaler  # noqa: E402
from wdm_runtime.input_hash import hash_of  # noqa: E402
from wdm_runtime.version import version  # noqa: E402

QUICK = ("--members", 2, "--steps", 3, "--engine", "ort-cpu", "--threads", 1, "--bootstrap", 20)


def evaluate(*arguments, code=0):
    return run("wdm-export", "evaluate", *arguments, *QUICK, code=code)


@pytest.fixture(scope="module")
def regression(tmp_path_factory) -> Path:
    """Weights that `train --objective regression` wrote."""
    folder = tmp_path_factory.mktemp("cli")
    run("wdm-export", "prepare", TRUTH, "-o", folder / "store", "--patch", 64)
    run(
        "wdm-export", "train", folder / "store", "-o", folder / "mean", "--objective", REGRESSION,
        "--steps", 3, "--threads", 1, *NETWORK,
    )  # fmt: skip
    return folder / "mean" / "weights.safetensors"


def test_baselines_report_and_kept_scores(tiny_copy: Path, tmp_path: Path, regression) -> None:
    other = Path(shutil.copytree(MODELS / "tiny", tmp_path / "twin"))
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "name": "twin"}))
    out = evaluate(
        tiny_copy, TRUTH, "--against", other, "--against", regression, "--no-rainfarm",
        "--report", tmp_path / "report", "--json", tmp_path / "scores.json", "--keep",
    )  # fmt: skip
    content = json.loads((tmp_path / "scores.json").read_text())
    names = [row["forecast"] for row in content["rows"]]
    assert names == [
        "nearest cell", "bilinear", "bicubic", "conservative bicubic",
        "dressed bicubic, one member", "dressed bicubic, median of 2 members",
        "dressed bicubic, mean of 2 members",
        "twin, one member", "twin, median of 2 members", "twin, mean of 2 members",
        "regression mean", "one member", "median of 2 members", "mean of 2 members",
    ]  # fmt: skip
    rows = {row.pop("forecast"): row for row in content["rows"]}
    assert rows["twin, one member"] == rows["one member"]
    assert content["engine"].startswith("onnxruntime") and content["precision"] == "fp32"
    assert content["files"] == [TRUTH.name]
    assert (tmp_path / "report" / "report.html").stat().st_size > 100_000
    assert "PSNR: 10 log10" in out
    bundle = Bundle.open(tiny_copy)
    bundle.verify()
    assert (
        bundle.manifest.scores["rows"]
        == json.loads((tmp_path / "report" / "scores.json").read_text())["rows"]
    )
    card = (tiny_copy / CARD_NAME).read_text()
    assert "| score | nearest cell |" in card and "regression mean" in card
    words = shlex.split(bundle.manifest.scores["command"])
    assert words[:2] == ["wdm-export", "evaluate"] and "--no-rainfarm" in words
    assert words[words.index("--bootstrap") + 1] == "20"


def test_the_recorded_command_makes_the_scores_again(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("pysteps")
    evaluate(tiny, TRUTH, "--rainfarm", "--bbox=-98,33,-89,39", "--report", tmp_path / "a")
    page = (tmp_path / "a" / "report.html").read_text()
    command = page.partition("<code>")[2].partition("</code>")[0]
    words = shlex.split(command)[1:]
    words[words.index(TRUTH.name)] = str(TRUTH)
    run("wdm-export", *words, "--report", tmp_path / "b")
    first, second = (
        json.loads((tmp_path / name / "scores.json").read_text()) for name in ("a", "b")
    )
    assert first == second and "RainFARM, mean of 2 members" in first["metrics"]
    assert "RainFARM, spectral fusion, mean of 2 members" in first["metrics"]


def test_one_variable_of_several_and_amounts_are_scored(tiny: Path, tmp_path: Path) -> None:
    with xarray.open_dataset(TRUTH) as truth:
        rate = next(v for v in truth.data_vars.values() if v.ndim == 3)
        other = (2 * rate).rename("doubled").assign_attrs(rate.attrs)
        amount = (0.5 * rate).rename("amount")
        amount.attrs = {"standard_name": "lwe_thickness_of_precipitation_amount", "units": "mm"}
        xarray.merge([amount, other]).to_netcdf(tmp_path / "amounts.nc")
    asked = ("--variable", "amount", "--accumulation", "30min", "--no-rainfarm")
    evaluate(tiny, tmp_path / "amounts.nc", *asked, "--json", tmp_path / "a.json")
    evaluate(tiny, TRUTH, "--no-rainfarm", "--json", tmp_path / "b.json")
    amounts, rates = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    found, expected = (content["metrics"]["bicubic"]["mae_mm_h"] for content in (amounts, rates))
    assert found == pytest.approx(expected, rel=1e-4)


def test_members_are_drawn_at_the_times_that_are_asked_for(tiny: Path, tmp_path: Path) -> None:
    scores = []
    for grid in ("logsnr", "karras"):
        out = tmp_path / f"{grid}.json"
        evaluate(tiny, TRUTH, "--no-rainfarm", "--time-grid", grid, "--json", out)
        scores.append(json.loads(out.read_text()))
    assert [content["time_grid"] for content in scores] == ["logsnr", "karras"]
    assert scores[0]["rows"] != scores[1]["rows"]


def test_a_region_leaves_tiles_out(tiny: Path, tmp_path: Path) -> None:
    counts = []
    for extra in ((), ("--bbox=-97,33,-93,36.5",), ("--bbox=-97,33,-93,36.5", "--outside")):
        arguments = (tiny, TRUTH, "--no-rainfarm", "--json", tmp_path / "s.json", *extra)
        try:
            evaluate(*arguments)
            counts.append(json.loads((tmp_path / "s.json").read_text())["tiles"])
        except AssertionError as error:
            assert "in the region" in str(error)
            counts.append(0)
    assert counts[0] == counts[1] + counts[2] > 0


def test_tiles_may_be_smaller_than_the_default(tiny: Path, tmp_path: Path) -> None:
    """A single radar's disc has no room for the default's."""
    run("wdm-export", "coarsen", TRUTH, "-o", tmp_path / "c.nc", "--truth", tmp_path / "t.nc",
        "--crop", "10,20,16,18")  # fmt: skip
    said = evaluate(tiny, tmp_path / "t.nc", "--no-rainfarm", code=2)
    assert "one of 288 x 288 cells" in said and "--tile" in said
    report = tmp_path / "report"
    evaluate(tiny, tmp_path / "t.nc", "--no-rainfarm", "--tile", 80, "--report", report)
    content = json.loads((report / "scores.json").read_text())
    assert content["tile_px"] == 80 and content["tiles"] > 1
    assert "--tile 80" in (report / "report.html").read_text()
    assert "Correct --tile" in evaluate(tiny, TRUTH, "--no-rainfarm", "--tile", 50, code=2)


def test_what_cannot_be_compared_is_refused(tiny: Path, tmp_path: Path, regression) -> None:
    diffusion = tmp_path / "weights.safetensors"
    random_checkpoint().save(diffusion)
    assert "Export them first" in evaluate(tiny, TRUTH, "--against", diffusion, code=2)
    assert "names of their own" in evaluate(
        tiny, TRUTH, "--no-rainfarm", "--against", regression, "--against", regression, code=2
    )
    other = shutil.copytree(tiny, tmp_path / "coarser")
    edit_manifest(other, domain={"spacing_km": 2.0, "latitudes": [20.0, 55.0]})
    said = evaluate(tiny, TRUTH, "--no-rainfarm", "--against", other, code=2)
    assert "refines by a factor of 10 to 2 km; expected 10 and 1 km" in said
    assert "no box" not in evaluate(tiny, TRUTH, "--outside", code=2)
    (tmp_path / "file").write_text("")
    assert "--report" in evaluate(tiny, TRUTH, "--report", tmp_path / "file", code=2)


def test_truth_of_another_spacing_has_no_scores_in_kilometres(tiny: Path, tmp_path: Path) -> None:
    with xarray.open_dataset(TRUTH) as truth:
        wide = truth.assign_coords(lat=truth.lat[0] + 5 * (truth.lat - truth.lat[0]))
        wide.assign_coords(lon=5 * wide.lon).to_netcdf(tmp_path / "wide.nc")
    for command in ("evaluate", "identity"):
        message = run("wdm-export", command, tiny, tmp_path / "wide.nc", code=2)
        assert "expected 1" in message and "km" in message and "--assume" not in message


def test_a_bad_file_is_refused_before_the_engine_opens_or_left_out(
    tiny_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small.nc"
    run("wdm-export", "coarsen", TRUTH, "-o", tmp_path / "c.nc", "--truth", small,
        "--crop", "10,20,16,18")  # fmt: skip
    (tmp_path / "junk.nc").write_bytes(b"no rain")
    edit_manifest(tiny_copy, domain={"spacing_km": 1.0, "latitudes": [45.0, 55.0]})
    digest = Bundle.open(tiny_copy).sha256
    files, asked = (small, tmp_path / "junk.nc", small), ("--no-rainfarm", "--tile", 80)
    out = evaluate(
        tiny_copy, *files, *asked, "--skip-unreadable", "--json", tmp_path / "s.json", "--keep"
    )
    assert "Left out 2 of 3 files." in out
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["files"] == [small.name]
    assert content["bundle_sha256"] == digest and content["files_sha256"] == [hash_of(small)]
    assert content["wdm_version"] == version()
    (note,) = content["notes"]
    assert "small.nc: The field lies outside the latitudes" in note
    assert f"- {note}\n" in (tiny_copy / CARD_NAME).read_text()
    kept = Bundle.open(tiny_copy).manifest.scores
    words = shlex.split(kept["command"])
    assert words[2:5] == [tiny_copy.as_posix(), small.name, "--members"]
    monkeypatch.setattr(Downscaler, "open", None)  # any call of it fails
    assert "junk.nc: cannot be read" in evaluate(tiny_copy, *files[:2], *asked, code=2)
    said = evaluate(tiny_copy, small, small, *asked, code=2)
    assert "has the same bytes as" in said


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_drawn(
    tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "report" / "scores.csv").mkdir(parents=True)
    message = evaluate(tiny, TRUTH, "--report", tmp_path / "report", code=2)
    assert "scores.csv" in message and "CRPS" not in message
    assert "scores.json" in evaluate(tiny, TRUTH, "-o", TRUTH / "scores.json", code=2)


def test_a_missing_pysteps_is_an_error_only_if_it_was_asked_for(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pysteps.downscaling.rainfarm", None)
    assert "pip install '.[verify]' in the clone" in evaluate(tiny, TRUTH, "--rainfarm", code=4)
    evaluate(tiny, TRUTH, "--json", tmp_path / "scores.json")
    names = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert "bicubic" in names and not any("RainFARM" in name for name in names)


def test_a_regression_is_no_bundle(regression: Path, tmp_path: Path) -> None:
    said = run("wdm-export", "export", regression, "-o", tmp_path / "bundle", "--tile", 64, code=2)
    assert "--against" in said and not (tmp_path / "bundle").exists()
    from wdm_export.checkpoint import Checkpoint

    assert Checkpoint.load(regression).training.objective == REGRESSION
    older = random_checkpoint()
    assert replace(older, training=TrainConfig(steps=1)).training.objective == "diffusion"


def test_an_unknown_objective_is_refused(regression: Path, tmp_path: Path) -> None:
    store = regression.parent.parent / "store"
    said = run(
        "wdm-export", "train", store, "-o", tmp_path / "run", "--objective", "mse", "--steps", 1,
        *NETWORK, code=2,
    )  # fmt: skip
    assert "diffusion, regression" in said


def test_identity_says_that_nothing_is_left(tiny: Path) -> None:
    out = run("wdm-export", "identity", tiny, TRUTH, "--tile", 64)
    assert "passed" in out and "DD" in out
    assert np.all([name in out for name in ("fine = interpolated", "quotient")])
