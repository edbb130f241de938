"""Bundles are written whole and checked, or not at all."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from small_training import (  # noqa: E402
    DOMAIN,
    TILE,
    random_checkpoint,
    random_network,
    score_graph_once,
    small,
)

from wdm_export import graphs, package, parity, unet  # noqa: E402
from wdm_export.card import model_card  # noqa: E402
from wdm_export.config import NetworkConfig  # noqa: E402
from wdm_runtime import Bundle, Downscaler  # noqa: E402
from wdm_runtime.errors import BundleError, InputError, OutputError, ParityError  # noqa: E402
from wdm_runtime.manifest import GRAPH_ROLES  # noqa: E402
from wdm_runtime.presets import FAST, PRESETS  # noqa: E402
from wdm_runtime.signing import SIGNATURE_NAME  # noqa: E402


@pytest.fixture(autouse=True)
def export_each_network_once(monkeypatch):
    monkeypatch.setattr(graphs, "score_graph", score_graph_once)


@pytest.fixture
def checkpoint():
    return random_checkpoint()


@pytest.fixture
def exported(checkpoint, tmp_path):
    return package.export_bundle(checkpoint, tmp_path / "model", tile_px=TILE)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- a good bundle -------------------------------------------------------------------------------


def test_a_bundle_passes_every_check_and_opens(exported, checkpoint, tmp_path):
    bundle, comparisons = exported
    assert bundle.path == tmp_path / "model"
    assert len(comparisons) == 9 and all(c.passed for c in comparisons)
    again = Bundle.open(tmp_path / "model")
    again.verify()
    assert again.sha256 == bundle.sha256 and again.manifest == bundle.manifest
    assert set(again.manifest.graphs) == set(GRAPH_ROLES)
    assert {p.name for p in tmp_path.iterdir()} == {"model"}
    named = {e.file for e in (*again.manifest.graphs.values(), *again.manifest.files)}
    assert {p.name for p in bundle.path.iterdir()} == named | {"manifest.json"}


def test_the_manifest_says_what_the_checkpoint_says(exported, checkpoint):
    manifest, model = exported[0].manifest, checkpoint.model
    assert manifest.name == "model" and manifest.tile_px == TILE
    assert manifest.wavelet == model.network.wavelet and manifest.factor == model.factor
    assert manifest.residual_scale == model.residual_scale
    assert manifest.condition_scale == model.condition_scale
    assert manifest.transform == model.transform and manifest.schedule == model.schedule
    assert manifest.domain == checkpoint.domain == DOMAIN
    assert manifest.training["steps"] == checkpoint.step
    assert manifest.training["parameters"] == sum(
        p.numel() for p in checkpoint.network().parameters()
    )
    assert manifest.training["network"]["base_channels"] == 4
    text = json.dumps(manifest.training)
    assert "/home" not in text and "/tmp" not in text


def test_the_card_names_each_storm_day_once(exported):
    card = (exported[0].path / package.CARD_NAME).read_text()
    assert card.startswith("# model\n")
    assert card.count("2019-06-10") == 1 and card.count("2022-06-02") == 1
    assert "3 fields of 2 storm days" in card
    assert "Cells of 1 km between latitudes 20 and 55" in card
    for word in ("Apache-2.0", "untrained", "2507.01354", "GPU", "Not evaluated yet"):
        assert word in card


def test_the_card_names_the_parts_of_a_recipe_that_are_not_the_usual(exported):
    assert "loss target" not in (exported[0].path / package.CARD_NAME).read_text()
    training = exported[0].manifest.training
    run = dict(training["runs"][0])
    changed = {"loss_target": "x0", "objective": "regression", "turns": False}
    run["training"] = {**run["training"], **changed}
    manifest = replace(exported[0].manifest, training={**training, "runs": [run]})
    card = model_card(manifest)
    assert "objective regression, loss target x0, turns False" in card
    assert "log10 of rate + 0.1 mm/h" in card
    assert "turns" not in (exported[0].path / package.CARD_NAME).read_text()


def test_members_of_a_network_that_saw_no_turns_are_drawn_in_none(checkpoint, tmp_path):
    for turns in (True, False):
        trained = replace(checkpoint, training=replace(checkpoint.training, turns=turns))
        folder = tmp_path / f"turns {turns}"
        package.export_bundle(trained, folder, "model", tile_px=TILE)
        assert Bundle.open(folder).manifest.turns is turns


def test_the_runtime_downscales_with_it(exported, field):
    with Downscaler.open(exported[0].path) as downscaler:
        samples = list(downscaler.downscale(field, members=2, steps=3))
    assert len(samples) == 4
    for sample in samples:
        assert sample.rate_mm_h.shape == (130, 170)
        assert np.isfinite(sample.rate_mm_h).all() and sample.rate_mm_h.min() >= 0
    assert not np.array_equal(samples[0].rate_mm_h, samples[1].rate_mm_h)


def test_wdm1_makes_a_bundle_too(tmp_path, field):
    checkpoint = random_checkpoint(small(1, multipliers=(1,), attention=False))
    bundle, comparisons = package.export_bundle(checkpoint, tmp_path / "wdm1", "other", tile_px=16)
    assert all(c.passed for c in comparisons)
    assert bundle.manifest.wavelet.levels == 1 and bundle.manifest.name == "other"
    with Downscaler.open(bundle) as downscaler:
        (sample, *_) = downscaler.downscale(field, steps=2)
    assert np.isfinite(sample.rate_mm_h).all()


def test_the_latency_graphs_are_the_same_network_on_pixels_without_attention():
    config = NetworkConfig()
    pixels = replace(config.wavelet, levels=0)
    expected = replace(config, wavelet=pixels, attention=False)
    assert package.latency_network(config).config == expected
    tiny = package.latency_network(small())
    v = tiny(torch.randn(1, 1, 16, 16), torch.randn(1, 1, 16, 16), torch.tensor([0.5]))
    assert v.shape == (1, 1, 16, 16) and torch.isfinite(v).all()


@pytest.mark.parametrize("fp16", [False, True], ids=["fp32", "fp16"])
def test_large_latency_graphs_take_little_room(fp16):
    config = small(base_channels=32, head_channels=32)
    pixel = graphs.score_graph(package.latency_network(config), TILE, fp16)
    weights = 2 * unet.parameter_count(package.latency_network(config))
    assert sum(len(w.raw_data) for w in pixel.graph.initializer) < weights / 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_latency_graphs_store_parameters_of_one_shape_once(exported, precision):
    bundle = exported[0]
    score, pixel = (
        onnx.load_from_string(bundle.graph(f"{name}_{precision}")).graph.initializer
        for name in ("score", "pixel")
    )
    shapes = [tuple(w.dims) for w in pixel if np.prod(w.dims) >= 16]
    assert len(shapes) == len(set(shapes)) < len(score) / 2


def test_scores_go_into_manifest_and_card(exported):
    folder = exported[0].path
    scores = {
        "tiles": 57,
        "files": ["august.nc"],
        "command": "wdm-export evaluate model august.nc",
        **{"engine": "an engine 1.2", "precision": "fp32", "bootstrap_draws": 77},
        **asdict(PRESETS[FAST]),
        "rows": [{"forecast": "bicubic", "CSI": 0.845}, {"forecast": "one", "CSI": 0.9}],
    }
    package.write_manifest(folder, replace(exported[0].manifest, scores=scores))
    bundle = Bundle.open(folder)
    bundle.verify()  # the card's new hash included
    assert bundle.manifest.scores == scores
    card = (folder / package.CARD_NAME).read_text()
    assert "57 tiles of august.nc" in card and "0.845" in card and "Not evaluated" not in card


# --- replacing -----------------------------------------------------------------------------------


def test_an_existing_folder_is_refused_and_kept(exported, tmp_path):
    other, target = random_checkpoint(seed=1), tmp_path / "model"
    before = contents(target)
    with pytest.raises(OutputError, match="already exists") as caught:
        package.export_bundle(other, target, tile_px=TILE)
    assert caught.value.exit_code == 2 and contents(target) == before


def test_overwrite_replaces_a_bundle(exported, checkpoint, tmp_path):
    other = replace(checkpoint, step=77)
    target = tmp_path / "model"
    (target / "stray.txt").write_text("of the old bundle")
    bundle, _ = package.export_bundle(other, target, tile_px=TILE, overwrite=True)
    assert Bundle.open(target).manifest.training["steps"] == 77
    assert bundle.sha256 != exported[0].sha256
    assert not (target / "stray.txt").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


def test_overwrite_never_replaces_what_is_no_bundle(checkpoint, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "notes").write_text("a file")
    for name in ("thesis", "notes"):
        with pytest.raises(OutputError, match="already exists"):
            package.export_bundle(checkpoint, tmp_path / name, tile_px=TILE, overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"
    assert {p.name for p in tmp_path.iterdir()} == {"thesis", "notes"}


def test_a_place_that_cannot_be_written_is_an_output_error(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        package.export_bundle(checkpoint, tmp_path / "file" / "model", tile_px=TILE)


# --- failing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["FP32_LIMIT", "FP16_LIMIT", "WAVELET_LIMIT"])
def test_nothing_is_left_when_a_check_fails(checkpoint, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(parity, limit, -1.0)
    with pytest.raises(ParityError) as caught:
        package.export_bundle(checkpoint, tmp_path / "model", tile_px=TILE)
    assert caught.value.exit_code == 5
    assert not list(tmp_path.iterdir())


def test_a_failed_check_leaves_the_old_bundle_whole(exported, checkpoint, tmp_path, monkeypatch):
    before = contents(tmp_path / "model")
    monkeypatch.setattr(parity, "FP32_LIMIT", -1.0)
    with pytest.raises(ParityError):
        package.export_bundle(
            replace(checkpoint, step=78), tmp_path / "model", tile_px=TILE, overwrite=True
        )
    assert contents(tmp_path / "model") == before
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


def test_an_interrupted_export_leaves_nothing(checkpoint, tmp_path):
    def interrupt(line):
        if line.startswith("Comparing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.export_bundle(checkpoint, tmp_path / "model", tile_px=TILE, notify=interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tile", [0, -64, 30, 36])
def test_tiles_the_network_cannot_halve_are_refused(checkpoint, tmp_path, tile):
    # stride 4 and two depths: multiples of 8
    with pytest.raises(InputError, match="--tile"):
        package.export_bundle(checkpoint, tmp_path / "model", tile_px=tile)
    assert not list(tmp_path.iterdir())


# --- checking a bundle that exists ---------------------------------------------------------------


def test_check_bundle_tells_the_right_weights_from_others(exported, checkpoint):
    bundle = exported[0]
    parity.require_all(package.check_bundle(bundle, checkpoint))
    with pytest.raises(ParityError, match="score fp32"):
        parity.require_all(package.check_bundle(bundle, random_checkpoint(seed=1)))
    with pytest.raises(ParityError, match="--weights"):
        package.check_bundle(bundle, random_checkpoint(small(1)))


def test_check_bundle_finds_altered_files(exported, checkpoint):
    bundle = exported[0]
    path = bundle.path / "score_fp16.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match="score_fp16"):
        package.check_bundle(bundle, checkpoint)


def test_check_bundle_finds_a_graph_of_other_weights_under_a_right_hash(exported, checkpoint):
    from conftest import rewrite_graph

    # The fp16 graph, whose weights are in that file, is of the other weights as well.
    other = score_graph_once(random_network(seed=3), TILE, False)
    graphs.label(other, "score_fp32")
    rewrite_graph(exported[0].path, "score_fp32", other.SerializeToString())
    bundle = Bundle.open(exported[0].path)
    bundle.verify()
    with pytest.raises(ParityError, match=r"2 of 9.*score fp32.*score fp16"):
        parity.require_all(package.check_bundle(bundle, checkpoint))


def test_check_bundle_refuses_a_graph_in_another_ones_place(exported, checkpoint):
    from conftest import rewrite_graph

    bundle = exported[0]
    rewrite_graph(bundle.path, "score_fp16", bundle.graph("pixel_fp16"))
    with pytest.raises(ParityError, match="'score_fp16'"):
        package.check_bundle(Bundle.open(bundle.path), checkpoint)


def test_the_current_folder_is_rewritten_as_any_other(tiny_copy, monkeypatch):
    monkeypatch.chdir(tiny_copy)
    bundle = Bundle.open(".")
    said = package.rewrite_manifest(bundle, replace(bundle.manifest, name="renamed"))
    assert Bundle.open(tiny_copy).manifest.name == "renamed"
    assert Bundle.open(tiny_copy).sha256 in said


def test_a_bundle_with_another_manifest_has_no_signature_left(tiny_copy):
    (tiny_copy / SIGNATURE_NAME).write_text("of the old manifest")
    bundle = Bundle.open(tiny_copy)
    said = package.rewrite_manifest(bundle, replace(bundle.manifest, name="renamed"))
    assert "signature" in said and "wdm-export sign" in said
    assert "signature" not in package.rewrite_manifest(bundle, bundle.manifest)
    package.rewrite_manifest(bundle, replace(bundle.manifest, name="renamed"))
    assert not (tiny_copy / SIGNATURE_NAME).exists()
    assert Bundle.open(tiny_copy).manifest.name == "renamed"
    Bundle.open(tiny_copy).verify()
