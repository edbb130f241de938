"""Tuning: what is suggested from which trials, on which fields, and where it is kept."""

import json
import shutil
from dataclasses import replace

import netCDF4
import numpy as np
import pytest
from conftest import SAMPLE, TRUTH, edit_manifest
from netcdf_files import add, coordinates

from wdm_runtime.bundle import Bundle
from wdm_runtime.diffusion import GRIDS
from wdm_runtime.downscale import Downscaler
from wdm_runtime.errors import InputError, OutputError
from wdm_runtime.grid import block_mean
from wdm_runtime.io import read_field
from wdm_runtime.io.stored import read_attributes
from wdm_runtime.presets import BEST, FAST, Preset
from wdm_runtime.select import crop_alike, select_box
from wdm_runtime.signing import SIGNATURE_NAME
from wdm_runtime.tune import Trial, Tuning, keep_presets, tune, ways


@pytest.fixture
def downscaler(tiny):
    with Downscaler.open(tiny, "ort-cpu", "fp32") as opened:
        yield opened


@pytest.fixture(scope="module")
def pair():
    return read_field(SAMPLE), read_field(TRUTH)


def trial(steps, crps, spread=1.0, bands=(0.0, 0.0, 0.0, 0.0), scale=1.0):
    way = Preset(steps=steps, noise_scale=scale)
    return Trial(way, crps, crps / 0.1, spread, bands, 1.0, 1.0)


def suggested(*trials):
    found = Tuning("bundle", "engine", 3, 8, trials).suggested
    return {name: (way.steps, way.noise_scale) for name, way in found.items()}


def test_the_lowest_crps_is_suggested_within_the_calls_of_each_preset():
    found = suggested(trial(4, 0.08), trial(8, 0.06), trial(8, 0.07, scale=1.1), trial(20, 0.05))
    assert found == {FAST: (8, 1.0), BEST: (20, 1.0)}


def test_longitudes_of_the_pair_may_count_from_either_meridian(downscaler, pair):
    coarse, truth = pair
    other = replace(truth, grid=replace(truth.grid, x=truth.grid.x + 360))
    one = Preset(steps=2)
    a, b = (
        tune(downscaler, coarse, fine, [one], members=2, tiles=1).trials for fine in (truth, other)
    )
    assert [t.crps_mm_h for t in a] == [t.crps_mm_h for t in b]


def test_more_calls_are_not_suggested_for_next_to_nothing():
    assert suggested(trial(8, 0.0600), trial(40, 0.0598))[BEST] == (8, 1.0)


def test_smooth_or_overconfident_ensembles_are_passed_over_while_there_are_others():
    smooth = trial(6, 0.04, bands=(-3.0, -2.5, 0.0, 0.0))
    narrow = trial(6, 0.05, spread=0.6)
    assert suggested(smooth, narrow, trial(8, 0.06))[FAST] == (8, 1.0)
    assert suggested(smooth, narrow)[FAST] == (6, 1.0)
    assert FAST not in suggested(trial(20, 0.05))


def test_deterministic_samplers_have_no_scales():
    found = ways(("second-order", "heun"), (4, 8), (1.0, 1.1))
    assert len(found) == 6 and {w.noise_scale for w in found if w.sampler == "heun"} == {1.0}
    with pytest.raises(InputError, match="ddim"):
        ways(("ddim",), (8,), (1.0,))


def test_every_time_grid_is_tried_and_calls_the_network_at_other_times(downscaler, pair):
    tried = ways(("second-order",), (3,), (1.0,), GRIDS)
    trials = tune(downscaler, *pair, tried, members=2, tiles=1).trials
    assert tuple(trial.way.time_grid for trial in trials) == GRIDS
    assert len({trial.crps_mm_h for trial in trials}) == len(GRIDS)
    with pytest.raises(InputError, match="karras"):
        ways(("second-order",), (3,), (1.0,), ("linear",))


def test_more_noise_is_more_spread_and_runs_repeat(downscaler, pair):
    tried = ways(("second-order",), (3,), (0.8, 1.2))
    first, again = (tune(downscaler, *pair, tried, members=3, tiles=2) for _ in range(2))
    assert first.tiles == 2
    narrow, wide = first.trials
    assert wide.spread_skill > narrow.spread_skill > 0
    assert [replace(t, seconds=0.0) for t in first.trials] == [
        replace(t, seconds=0.0) for t in again.trials
    ]


def test_scores_are_those_of_the_evaluation(downscaler, pair):
    """The same tiles, members and definitions as `wdm-export evaluate`."""
    pytest.importorskip("skimage", reason="scikit-image is not installed (export)")
    from wdm_export.evaluate import evaluate

    way, size = Preset(steps=3, noise_scale=1.1), downscaler.manifest.tile_px
    (found,) = tune(downscaler, *pair, [way], members=3, tiles=10**6).trials
    result = evaluate(downscaler, [pair[1]], 3, 0, way, tile_px=size).to_dict()
    scores = result["metrics"]["mean of 3 members"]
    assert found.crps_mm_h == pytest.approx(scores["fair_crps_mm_h"], rel=1e-4)
    assert found.spread_skill == pytest.approx(scores["spread_skill"], rel=1e-4)
    bicubic = result["metrics"]["bicubic"]["mae_mm_h"]
    assert found.crps_ratio == pytest.approx(scores["fair_crps_mm_h"] / bicubic, rel=1e-4)


def test_rows_in_either_order_are_the_same_fields(downscaler, pair):
    def turned(field):
        grid = replace(field.grid, y=field.grid.y[::-1])
        return replace(field, rate_mm_h=np.stack([field.frame(0)[::-1]]), grid=grid)

    way = [Preset(steps=2)]
    (plain,) = tune(downscaler, *pair, way, members=2, tiles=1).trials
    (flipped,) = tune(downscaler, pair[0], turned(pair[1]), way, members=2, tiles=1).trials
    assert flipped.crps_mm_h == plain.crps_mm_h and flipped.bands_db == plain.bands_db


def test_fields_that_do_not_belong_together_are_refused(downscaler, pair):
    coarse, truth = pair
    shifted = replace(truth, grid=replace(truth.grid, x=truth.grid.x + 0.05))
    later = replace(truth, valid_times=("2030-01-01T00:00:00",))
    dry = replace(truth, rate_mm_h=np.zeros((1, *truth.grid.shape), dtype=np.float32))
    for field, says in (
        (coarse, "10 times finer"), (later, "2030"), (shifted, "along x"), (dry, "no tile")
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            tune(downscaler, coarse, field, [Preset(steps=2)], members=2)
    with pytest.raises(InputError, match="at least 2"):
        tune(downscaler, coarse, truth, [Preset(steps=2)], members=1)


def test_kept_presets_are_the_bundles_defaults_and_end_its_signature(tiny, tmp_path, pair):
    folder = tmp_path / "bundle"
    shutil.copytree(tiny, folder)
    (folder / SIGNATURE_NAME).write_text("of the manifest before")
    way = Preset("second-order", 3, 1.3, "karras")
    said = keep_presets(Bundle.open(folder), {FAST: way})
    kept = Bundle.open(folder)
    assert f"is now {kept.sha256}. Its signature" in said and f"wdm-export sign {folder}" in said
    assert kept.manifest.presets == {FAST: way} and not (folder / SIGNATURE_NAME).exists()
    kept.verify()
    assert "signature" not in keep_presets(kept, {BEST: Preset()})
    assert Bundle.open(folder).manifest.presets == {FAST: way, BEST: Preset()}
    with Downscaler.open(folder, "ort-cpu", "fp32") as opened:
        (own,) = opened.downscale(pair[0], seed=1)
        (same,) = opened.downscale(
            pair[0], seed=1, sampler=way.sampler, steps=way.steps, noise_scale=way.noise_scale,
            time_grid=way.time_grid,
        )  # fmt: skip
        others = [
            next(opened.downscale(pair[0], seed=1, **change))
            for change in ({"noise_scale": 1.0}, {"noise_scale": 1.3, "time_grid": "time"})
        ]
    np.testing.assert_array_equal(own.rate_mm_h, same.rate_mm_h)
    for other in others:
        assert np.abs(own.rate_mm_h - other.rate_mm_h).max() > 0


def test_presets_that_cannot_be_written_leave_the_signature_as_it_was(tiny_copy, monkeypatch):
    def full(path, text):
        raise OutputError(f"{path}: cannot be written (No space left on device).")

    signature = tiny_copy / SIGNATURE_NAME
    signature.write_text("of this manifest")
    monkeypatch.setattr("wdm_runtime.tune.write_text", full)
    with pytest.raises(OutputError, match="No space left"):
        keep_presets(Bundle.open(tiny_copy), {FAST: Preset()})
    assert signature.read_text() == "of this manifest"


def test_a_signature_that_cannot_be_removed_is_said(tiny_copy):
    (tiny_copy / SIGNATURE_NAME).mkdir()
    with pytest.raises(OutputError, match=r"manifest\.sig: cannot be removed"):
        keep_presets(Bundle.open(tiny_copy), {FAST: Preset()})


def test_json_says_what_is_suggested():
    text = Tuning("bundle", "engine", 3, 8, (trial(8, 0.06, scale=1.1),)).to_json()
    assert json.loads(text)["suggested"][FAST]["noise_scale"] == 1.1


def test_what_fast_loses_against_best_is_said():
    found = Tuning("bundle", "engine", 3, 8, (trial(8, 0.06), trial(20, 0.05)))
    assert found.fast_over_best == json.loads(found.to_json())["fast_over_best"]
    assert found.fast_over_best == pytest.approx(1.2)
    assert Tuning("bundle", "engine", 3, 8, (trial(20, 0.05),)).fast_over_best is None


def test_the_command_tables_draws_and_keeps(run, tiny_copy, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (plot)")
    (tiny_copy / SIGNATURE_NAME).write_text("of the manifest before")
    code, out, err = run(
        "tune", SAMPLE, TRUTH, "--bundle", tiny_copy, "--engine", "ort-cpu", "--precision", "fp32",
        "--samplers", "second-order,heun", "--steps", "2,3", "--noise-scales", "1,1.2",
        "--members", 2, "--tiles", 2, "--json", "tune.json", "--chart", "tune.png", "--keep",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads((tmp_path / "tune.json").read_text())
    assert len(found["trials"]) == 6 and found["tiles"] == 2
    assert "fast: " in out.replace("fast, best: ", "fast: ") and "heun" in out
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")
    kept = Bundle.open(tiny_copy)
    assert "Its signature was of the old one and is gone" in out
    assert kept.manifest.presets[FAST] == Preset(**found["suggested"][FAST])
    assert kept.sha256 in out
    code, out, err = run(
        "tune", SAMPLE, TRUTH, "--bundle", tiny_copy, "--engine", "ort-cpu", "--precision", "fp32",
        "--samplers", "euler-maruyama", "--steps", "4", "--noise-scales", "1.3",
        "--members", 2, "--tiles", 1, "--json", "again.json",
    )  # fmt: skip
    assert code == 0, err
    tried = [t["way"] for t in json.loads((tmp_path / "again.json").read_text())["trials"]]
    assert found["suggested"][FAST] in tried, "the bundle's own presets are tried too"
    assert "CRPS of fast over best: " in out


def test_the_variable_and_the_period_of_amounts_can_be_stated(
    run, tiny, tmp_path, downscaler, pair
):
    for name, field in zip(("coarse.nc", "fine.nc"), pair, strict=True):
        with netCDF4.Dataset(tmp_path / name, "w") as data:
            coordinates(data, field.grid.y, field.grid.x, (0,))
            add(data, "sum", 2 * field.load(), units="mm")  # of two hours
            add(data, "precip", 0 * field.load(), units="mm")
    command = ("tune", "coarse.nc", "fine.nc", "--bundle", tiny, "--engine", "ort-cpu")
    command += ("--precision", "fp32", "--members", 2, "--tiles", 1, "--json", "tune.json")
    command += ("--steps", 2, "--samplers", "second-order", "--noise-scales", 1)
    code, _, err = run(*command, "--variable", "sum")
    assert code == InputError.exit_code and "--accumulation 1h" in err
    code, _, err = run(*command, "--variable", "sum", "--accumulation", "2h")
    assert code == 0, err
    (trial,) = json.loads((tmp_path / "tune.json").read_text())["trials"]
    (same,) = tune(downscaler, *pair, ways(["second-order"], [2], [1.0]), 2, 0, 1).trials
    assert trial["crps_mm_h"] == pytest.approx(same.crps_mm_h, rel=1e-4)


def test_latitudes_outside_the_training_are_said(run, tiny_copy):
    edit_manifest(tiny_copy, domain={"spacing_km": 1.0, "latitudes": [45.0, 55.0]})
    code, _, err = run("tune", SAMPLE, SAMPLE, "--bundle", tiny_copy, "--engine", "ort-cpu")
    assert code == 2 and "note: The field lies outside the latitudes the model was trained" in err


def test_what_cannot_be_tuned_is_refused_before_anything_is_drawn(run, tmp_path):
    def refused(*options):
        code, _, err = run("tune", SAMPLE, TRUTH, *options)
        return code == 2 and err

    assert "ddim" in refused("--samplers", "ddim")
    assert "karras" in refused("--time-grids", "linear")
    assert "--steps got 'many'" in refused("--steps", "many")
    assert "expected 2 to" in refused("--steps", "1")
    assert "has suffix '.txt'; expected one of" in refused("--chart", tmp_path / "chart.txt")
    assert "--accumulation" in refused("--accumulation", "")


def test_infer_takes_a_preset_and_says_what_it_was(infer, run, tiny, tmp_path):
    way = ("--steps", 3, "--noise-scale", 1.2, "--time-grid", "karras")
    code, out, err = infer("--preset", "best", *way, "-o", "a.nc")
    assert code == 0 and "karras grid" in out, err
    attributes = read_attributes(tmp_path / "a.nc")
    assert attributes["wdm_preset"] == "best" and attributes["wdm_noise_scale"] == 1.2
    assert attributes["wdm_time_grid"] == "karras"
    assert run("replay", "a.nc", "--bundle", tiny)[0] == 0
    code, _, err = infer("--preset", "slow", "-o", "b.nc")
    assert code == 2 and "fast, best" in err
    code, _, err = infer("--sampler", "heun", "--noise-scale", 1.2, "-o", "b.nc")
    assert code == 2 and "adds no noise" in err and not (tmp_path / "b.nc").exists()


@pytest.mark.parametrize("south_first", [False, True], ids=["north first", "south first"])
def test_any_box_cuts_input_and_truth_alike(pair, south_first):
    whole, fine = pair
    if south_first:
        grid = replace(fine.grid, y=fine.grid.y[::-1])
        fine = replace(fine, rate_mm_h=fine.load()[:, ::-1], grid=grid)
    part = select_box(whole, "-96.03,34.02,-92,37")
    cut = crop_alike(fine, part, 10)
    rows = cut.frame(0)[::-1] if south_first else cut.frame(0)
    np.testing.assert_allclose(block_mean(rows, 10), part.frame(0), atol=2e-2)
    centres = np.sort(cut.grid.y).reshape(-1, 10).mean(axis=1)
    np.testing.assert_allclose(centres, np.sort(part.grid.y))


def test_json_has_null_where_a_score_is_no_number():
    undefined = replace(trial(8, 0.06), spread_skill=np.nan)
    text = Tuning("bundle", "engine", 3, 8, (undefined,)).to_json()
    (found,) = json.loads(text, parse_constant=pytest.fail)["trials"]
    assert found["spread_skill"] is None and found["crps_mm_h"] == 0.06
