"""`wdm-export check` tells a bundle that is safe in reduced precision from one that is not."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx  # noqa: E402
from conftest import MODELS, SAMPLE, TRUTH, edit_manifest, feeds, rewrite_graph  # noqa: E402
from onnx import numpy_helper  # noqa: E402

import wdm_export.cli  # noqa: E402
from wdm_export import check_graphs, check_sampling, package, parity  # noqa: E402
from wdm_export.check import LARGEST, check_precision, comparisons  # noqa: E402
from wdm_export.check_sampling import Draws, compare, wettest_tiles  # noqa: E402
from wdm_export.graphs import graph_entry  # noqa: E402
from wdm_runtime import Downscaler, console, read_field  # noqa: E402
from wdm_runtime.bundle import Bundle  # noqa: E402
from wdm_runtime.engines import open_engine  # noqa: E402
from wdm_runtime.engines.families import FAMILIES  # noqa: E402
from wdm_runtime.engines.options import EngineOptions  # noqa: E402
from wdm_runtime.errors import BundleError, InputError, MissingDependencyError, ParityError  # noqa: E402
from wdm_runtime.manifest import MANIFEST_NAME  # noqa: E402
from wdm_runtime.presets import Preset  # noqa: E402

QUIET = EngineOptions(note=lambda _: None)
DRAWS = Draws(members=2, seed=0, way=Preset(steps=3))


def checked(bundle, tiles=2):
    return check_precision(Bundle.open(bundle), [read_field(SAMPLE)], DRAWS, tiles, QUIET)


def scale_weight(bundle, name, factor):
    """Multiply a weight and its bias in both graphs: what follows may be too much for fp16."""
    opened = Bundle.open(bundle)
    graphs = {role: opened.graph(role) for role in ("score_fp32", "score_fp16")}  # they share
    for role, graph in graphs.items():
        model = onnx.load_from_string(graph)
        found = [w for w in model.graph.initializer if name in w.name]
        assert found
        for weight in found:
            values = numpy_helper.to_array(weight)
            scaled = (values.astype(np.float32) * factor).astype(values.dtype)
            assert np.isfinite(scaled).all()
            weight.CopyFrom(numpy_helper.from_array(scaled, weight.name))
        rewrite_graph(bundle, role, model.SerializeToString())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return checked(MODELS / "tiny")


# --- graphs --------------------------------------------------------------------------------------


def test_rounding_is_what_torch_does_in_half_precision():
    """One convolution: its fp32 sums, rounded once, and Inf from 65520 on."""
    x = np.array([[[[1.0, 3.3333333], [70.0, 1e-7]]]], np.float32)
    weight = numpy_helper.from_array(np.full((1, 1, 1, 1), 1000, np.float16), "w.weight")
    h, kind = onnx.helper, onnx.TensorProto
    ends = [h.make_tensor_value_info(n, kind.FLOAT, ["batch", 1, 2, 2]) for n in "xy"]
    nodes = [
        h.make_node("Cast", ["x"], ["half"], to=kind.FLOAT16),
        h.make_node("Conv", ["half", "w.weight"], ["product"]),
        h.make_node("Cast", ["product"], ["y"], to=kind.FLOAT),
    ]
    graph = h.make_graph(nodes, "one", ends[:1], ends[1:], [weight])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=10)
    data = check_graphs.rounded(model).SerializeToString()
    engine = open_engine(data, graph_entry(model, "one.onnx", data), "ort-cpu")
    half = x.astype(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = (half * 1000).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(engine.run({"x": x}), expected)
    assert np.isinf(expected).sum() == 1


def test_the_fp16_graph_is_rounded_more_than_onnxruntime_alone_does(tiny):
    bundle = Bundle.open(tiny)
    graph, entry = bundle.graph("score_fp16"), bundle.manifest.graphs["score_fp16"]
    full = open_engine(bundle.graph("score_fp32"), bundle.manifest.graphs["score_fp32"], "ort-cpu")
    expected = full.run(feeds())
    plain, rounded = (
        np.sqrt(np.mean((engine.run(feeds()) - expected) ** 2)) / expected.std()
        for engine in (
            open_engine(graph, entry, "ort-cpu", "fp16"),
            check_graphs.open_rounded(graph, entry),
        )
    )
    assert plain < rounded < 2e-2


def test_peaks_are_the_largest_magnitudes_and_leave_the_answer_alone(tiny):
    bundle = Bundle.open(tiny)
    full = open_engine(bundle.graph("score_fp32"), bundle.manifest.graphs["score_fp32"], "ort-cpu")
    engine = check_graphs.PeakEngine(full, bundle, QUIET)
    small = feeds()
    np.testing.assert_array_equal(engine.run(small), full.run(small))
    large = {**small, "condition": -100 * small["condition"]}
    engine.run(large)
    engine.run(small)  # a smaller one later changes nothing
    peaks = {site.tensor: peak for site, peak in engine.peaks()}
    inputs = {p.largest for p in peaks.values() if p.op == "Cast"}
    assert inputs >= {np.abs(small["x"]).max(), np.abs(large["condition"]).max()}
    softmax = [p.largest for p in peaks.values() if p.op == "Softmax"]
    assert softmax and all(0 < value <= 1 for value in softmax)
    norms = [peak for site, peak in engine.peaks() if site.into_norm]
    assert len(norms) > 5 and all(peak.largest > 0 for peak in norms)
    assert {p.part for p in peaks.values()} >= {"stem", "encoder.0.conv1", "decoder.0.skip"}


# --- tiles ---------------------------------------------------------------------------------------


def test_tiles_are_the_wettest_and_of_one_tile_each(tiny):
    manifest = Bundle.open(tiny).manifest
    field = read_field(SAMPLE)
    every = wettest_tiles([field], manifest, 1000)
    means = [float(tile.frame(0).mean()) for tile in every]
    assert means == sorted(means, reverse=True) and len(every) > 20
    assert [t.origin for t in wettest_tiles([field], manifest, 3)] == [t.origin for t in every[:3]]
    for tile in every:
        assert tile.grid.shape == (6, 6) and all(start % 2 == 0 for start in tile.origin)
        row, column = tile.origin
        np.testing.assert_array_equal(
            tile.frame(0), field.frame(0)[row : row + 6, column : column + 6]
        )


def test_truth_is_averaged_to_the_same_tiles(tiny):
    manifest = Bundle.open(tiny).manifest
    coarse, fine = (wettest_tiles([read_field(f)], manifest, 4) for f in (SAMPLE, TRUTH))
    for one, other in zip(coarse, fine, strict=True):
        assert one.origin == other.origin
        np.testing.assert_allclose(one.frame(0), other.frame(0), rtol=1e-5, atol=1e-6)


def test_fields_that_cannot_be_used_are_refused(tiny, field):
    manifest = Bundle.open(tiny).manifest
    dry = replace(field, rate_mm_h=np.zeros_like(field.rate_mm_h))
    holes = replace(field, rate_mm_h=np.where(field.rate_mm_h == 0, np.nan, field.rate_mm_h))
    for none in (dry, holes):
        with pytest.raises(InputError, match="No tile of 6 x 6"):
            wettest_tiles([none], manifest, 1)
    wide = replace(field, grid=replace(field.grid, y=5 * field.grid.y, x=5 * field.grid.x))
    with pytest.raises(InputError, match="expected 10 km") as caught:
        wettest_tiles([wide], manifest, 1)
    assert "--assume" not in str(caught.value)  # which `check` does not have
    with pytest.raises(InputError, match="--tiles"):
        wettest_tiles([field], manifest, 0)
    with pytest.raises(InputError, match="--members"):
        Draws(members=1, seed=0)


# --- the verdict ---------------------------------------------------------------------------------


def test_a_good_bundle_passes_with_room(good):
    found = comparisons(good)
    parity.require_all(found)
    assert good.tiles == 2 and 0 < good.ranges.largest[0].largest < LARGEST / 10
    largest = [peak.largest for peak in good.ranges.largest]
    assert largest == sorted(largest, reverse=True) and len(largest) == 10
    assert good.ranges.tensors > 100
    fp16 = good.runs[0]
    assert fp16.precision == "fp16" and fp16.fp32_reruns == 0
    assert 0 < fp16.mean_difference_mm_h < 0.005 * fp16.mean_rate_mm_h
    assert fp16.mean_difference_mm_h <= fp16.max_difference_mm_h < fp16.largest_rate_mm_h
    assert set(fp16.spectrum_db) == {"2-4", "4-8", "8-16", "16-32"}
    assert {"fp16", "bf16"} == {run.precision for run in good.runs} | set(good.not_measured)


def test_the_check_is_the_same_again(good, tiny):
    assert checked(tiny) == good


def test_a_precision_this_machine_lacks_is_said_to_be_unmeasured(tiny, monkeypatch):
    def absent():
        raise MissingDependencyError("Engine 'openvino' is not installed.", "openvino")

    family = replace(FAMILIES["openvino"], probe=absent)
    monkeypatch.setitem(FAMILIES, "openvino", family)
    found = checked(tiny)
    assert [run.precision for run in found.runs] == ["fp16"]
    assert found.not_measured == {"bf16": "Engine 'openvino' is not installed."}


def test_activations_that_fp16_cannot_hold_are_named(tiny_copy):
    # The norm after it takes the scale out again: fp32 gives the same rain, fp16 gives Inf.
    scale_weight(tiny_copy, "encoder.0.conv1", 3e4)
    found = checked(tiny_copy)
    assert found.ranges.largest[0].largest > 65504
    assert found.ranges.largest[0].part.startswith("encoder.0.")
    assert found.runs[0].fp32_reruns > 0
    with pytest.raises(ParityError, match=r"largest in fp16: .*encoder\.0\..* > 8188") as caught:
        parity.require_all(comparisons(found))
    assert "not finite" in str(caught.value) and caught.value.exit_code == 5


def test_activations_with_too_little_room_fail_though_nothing_overflows(tiny_copy):
    scale_weight(tiny_copy, "encoder.0.conv1", 4e3)
    found = checked(tiny_copy)
    assert LARGEST < found.ranges.largest[0].largest < 65504
    assert found.runs[0].fp32_reruns == 0
    with pytest.raises(ParityError, match=r"1 of \d+ .*largest in fp16"):
        parity.require_all(comparisons(found))


@pytest.fixture(scope="module")
def rates():
    with Downscaler.open(MODELS / "tiny", "ort-cpu", "fp32") as downscaler:
        tiles = wettest_tiles([read_field(SAMPLE)], downscaler.manifest, 3)
        return check_sampling.draw(downscaler, tiles, DRAWS, lambda: None)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: r * 1.1, ["mean difference"]),
        (lambda r: np.where(r == r.max(), 0, r), ["largest difference"]),
        (lambda r: np.where(r < 0.3, 0, r), ["wet fraction", "spectrum"]),
        (lambda r: np.roll(r, 1, axis=-1), ["spread of members"]),
        (lambda r: np.where(r >= 20, 19.9, r), ["cells above"]),
        (lambda r: np.where(np.isfinite(r), np.nan, r), ["mean difference", "spectrum"]),
    ],
    ids=["too wet", "one cell", "drizzle lost", "shifted", "heavy rain lost", "NaN"],
)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_each_kind_of_damage_fails(good, rates, precision, spoil, words):
    run = compare(precision, "spoiled", rates, spoil(rates).astype(np.float32), 0)
    failed = [c.name for c in comparisons(replace(good, runs=(run,))) if not c.passed]
    for word in words:
        assert any(word in name for name in failed), failed


def test_equal_rates_differ_by_nothing(good, rates):
    run = compare("bf16", "itself", rates, rates.copy(), 0)
    assert all(c.difference == 0 for c in comparisons(replace(good, runs=(run,)))[1:])
    assert run.cells == run.cells_fp32 and run.wet_fraction == run.wet_fraction_fp32


# --- the bundle keeps it -------------------------------------------------------------------------


def kept(good):
    return replace(good, command="wdm-export check tiny rain.nc", files=("rain.nc",))


def test_manifest_and_card_keep_it_and_info_shows_it(good, tiny_copy, run):
    before = Bundle.open(tiny_copy)
    package.rewrite_manifest(before, replace(before.manifest, precision_check=kept(good)))
    bundle = Bundle.open(tiny_copy)
    bundle.verify()
    assert bundle.manifest.precision_check == kept(good)
    assert bundle.sha256 != before.sha256
    assert replace(bundle.manifest, precision_check=None, files=()) == replace(
        before.manifest, files=()
    )
    card = (tiny_copy / package.CARD_NAME).read_text()
    assert "wdm-export check tiny rain.nc" in card and "every result rounded to fp16" in card
    code, out, _ = run("info", tiny_copy)
    assert (
        code == 0 and "fp16 against fp32" in out and "not measured" not in out.partition("bf16")[0]
    )


def test_a_bundle_without_it_opens_and_says_so(tiny, run):
    assert Bundle.open(tiny).manifest.precision_check is None
    assert "precision_check" not in Bundle.open(tiny).manifest.to_json()
    code, out, _ = run("info", tiny)
    assert code == 0 and "not measured" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("ranges"), "precision_check: missing keys .'ranges'"),
        (lambda v: v["ranges"].update(largest=[]), "name no tensor"),
        (lambda v: v.update(sampler="none"), "sampler"),
        (lambda v: v.update(verdict="good"), "precision_check: .*unknown .'verdict'"),
        (lambda v: v["runs"][0].update(cells={"1": "many"}), r"runs\[0\]\.cells\.1 is 'many'"),
    ],
)
def test_a_damaged_one_is_refused(good, tiny_copy, change, message):
    before = Bundle.open(tiny_copy)
    package.rewrite_manifest(before, replace(before.manifest, precision_check=kept(good)))
    values = json.loads((tiny_copy / MANIFEST_NAME).read_text())["precision_check"]
    change(values)
    edit_manifest(tiny_copy, precision_check=values)
    with pytest.raises(BundleError, match=message):
        Bundle.open(tiny_copy)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def export(monkeypatch, tmp_path, capsys):
    """Call wdm-export in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.out, "_width", 200)  # it has read COLUMNS long ago

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["wdm-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            wdm_export.cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


QUICK = ("--tiles", 1, "--members", 2)


def test_without_files_graphs_are_checked_and_the_rest_is_called_unmeasured(export, tiny_copy):
    before = (tiny_copy / MANIFEST_NAME).read_bytes()
    code, out, error = export("check", tiny_copy)
    assert code == 0, error
    assert "golden outputs" in out and "every result rounded" in out and "FAILED" not in out
    assert "were not measured" in out and "FILES" in out
    assert (tiny_copy / MANIFEST_NAME).read_bytes() == before


def test_with_files_it_measures_and_writes_the_same_again(export, tiny_copy):
    code, out, error = export("check", tiny_copy, SAMPLE, *QUICK)
    assert code == 0, error
    assert "FAILED" not in out and Bundle.open(tiny_copy).sha256 in out
    first = Bundle.open(tiny_copy)
    found = first.manifest.precision_check
    assert found.files == (SAMPLE.name,) and found.tiles == 1 and found.members == 2
    assert f"{SAMPLE.name} --tiles 1 --members 2" in found.command
    assert export("check", tiny_copy, SAMPLE, *QUICK)[0] == 0
    assert Bundle.open(tiny_copy).sha256 == first.sha256


def test_no_keep_leaves_the_bundle_alone(export, tiny_copy):
    before = (tiny_copy / MANIFEST_NAME).read_bytes()
    code, out, _ = export("check", tiny_copy, SAMPLE, *QUICK, "--no-keep")
    assert code == 0 and "mean difference" in out and "sha256" not in out
    assert (tiny_copy / MANIFEST_NAME).read_bytes() == before


def test_a_bundle_that_fails_keeps_nothing(export, tiny_copy):
    scale_weight(tiny_copy, "encoder.0.conv1", 4e3)
    before = (tiny_copy / MANIFEST_NAME).read_bytes()
    code, _, error = export("check", tiny_copy, SAMPLE, *QUICK)
    assert code == 5 and "Traceback" not in error
    assert (tiny_copy / MANIFEST_NAME).read_bytes() == before


def test_graphs_of_other_weights_are_found_without_the_weights(export, tiny_copy):
    scale_weight(tiny_copy, "head", 1.01)
    code, _, error = export("check", tiny_copy)
    assert code == 5 and "golden" in error
