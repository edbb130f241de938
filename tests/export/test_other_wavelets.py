"""The whole chain on wavelets other than Haar: train, export, check, infer, evaluate."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from conftest import SAMPLE, TRUTH, edit_manifest, rewrite_graph

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pywt = pytest.importorskip("pywt")
xr = pytest.importorskip("xarray")

from command_line import NETWORK, run  # noqa: E402
from seams import seam_index  # noqa: E402
from small_training import (  # noqa: E402
    SMALL,
    TILE,
    sample_store,
)

from wdm_export import graphs  # noqa: E402
from wdm_export.checkpoint import Checkpoint  # noqa: E402
from wdm_export.config import TrainConfig  # noqa: E402
from wdm_export.crops import Coefficients, crop_samplers  # noqa: E402
from wdm_export.filter_banks import named_wavelet  # noqa: E402
from wdm_export.parallel import ALONE  # noqa: E402
from wdm_runtime import Downscaler, read_field, tiling  # noqa: E402
from wdm_runtime.bundle import Bundle  # noqa: E402
from wdm_runtime.conditioning import condition, finish, interpolated, look_at  # noqa: E402
from wdm_runtime.engines.numpy_transform import NumpyTransform  # noqa: E402
from wdm_runtime.grid import block_mean  # noqa: E402
from wdm_runtime.tiling import Tile  # noqa: E402
from wdm_runtime.transform import PrecipTransform, SubbandScale  # noqa: E402

STEPS = 20
DRY_MM_H = PrecipTransform().dry_threshold_mm_h


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return sample_store(tmp_path_factory.mktemp("store") / "store")


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    run_folder = tmp_path_factory.mktemp("db2") / "run"
    run(
        "wdm-export", "train", store.path, "-o", run_folder, "--wavelet", "db2", "--steps", STEPS,
        *NETWORK, "--threads", 1,
    )  # fmt: skip
    return run_folder / "weights.safetensors"


@pytest.fixture(scope="module")
def bundle(trained):
    target = trained.parent.with_name("db2")
    out = run("wdm-export", "export", trained, "-o", target, "--tile", TILE)
    assert "passed" in out and "FAILED" not in out
    return target


def with_wavelet(bundle, name):
    """Another wavelet around a bundle's network, which knows nothing of it."""
    spec = named_wavelet(name, 2)
    edit_manifest(bundle, wavelet=asdict(spec))
    for role, make in (("dwt", graphs.dwt_graph), ("idwt", graphs.idwt_graph)):
        model = make(spec)
        graphs.label(model, role)
        rewrite_graph(bundle, role, model.SerializeToString())
    return bundle


def north_first(field, rates):
    return rates if field.grid.north_first else rates[::-1]


def ensemble(bundle, members=2, **options):
    """The sample and members drawn from it, north first."""
    field = read_field(SAMPLE)
    with Downscaler.open(bundle) as downscaler:
        drawn = downscaler.downscale(field, members=members, steps=4, **options)
        rates = [north_first(field, sample.rate_mm_h) for sample in drawn]
    return north_first(field, field.frame(0)), rates


# --- training ------------------------------------------------------------------------------------


def test_weights_and_bundle_carry_the_filters(trained, bundle):
    filters = pywt.Wavelet("db2").filter_bank
    spec = Checkpoint.load(trained).model.network.wavelet
    assert (spec.name, spec.levels) == ("db2", 2)
    entry = json.loads((bundle / "manifest.json").read_text())["wavelet"]
    assert entry["name"] == "db2"
    assert [*entry["filters"].values()] == [list(taps) for taps in filters]
    assert Bundle.open(bundle).manifest.wavelet == spec
    assert "db2" in run("wdm-run", "info", bundle)
    assert "in the db2 wavelet domain" in (bundle / "MODEL_CARD.md").read_text()


def test_a_run_of_one_wavelet_is_not_continued_with_another(trained, store, tmp_path):
    arguments = ("wdm-export", "train", store.path, "-o", tmp_path / "next", "--steps", 1)
    message = run(*arguments, *NETWORK, "--weights", trained, code=2)
    assert "same network settings" in message
    message = run(*arguments[:4], trained.parent, "--resume", "--wavelet", "db2", code=2)
    assert "--resume" in message
    message = run(*arguments, *NETWORK, "--wavelet", "db200", code=2)
    assert "'db200'" in message and "db1 to db38" in message
    message = run(*arguments, *NETWORK, "--wavelet", "dmey", code=2)
    assert "perfect reconstruction" in message
    # 32 cells and 128 more on each side do not fit into patches of 64.
    message = run(*arguments, *NETWORK, "--wavelet", "db38", code=2)
    assert "256 cells wide" in message.replace("\n", " ") and "--crop" in message


@pytest.mark.parametrize("name", ["haar", "db2", "bior2.2", "sym4"])
def test_training_sees_the_coefficients_that_the_whole_patch_has(store, name):
    """A crop's border leaves no trace: the network meets none in the middle of a domain."""
    network = replace(SMALL, wavelet=named_wavelet(name, 2))
    margin = 4 * network.wavelet.margin
    coefficients = Coefficients(network.wavelet, PrecipTransform())
    patch = torch.from_numpy(np.array(store.fine[:1, None], np.float32))
    whole, _ = coefficients(patch, 0 * patch)
    part = patch[..., 8 : 40 + 2 * margin, 12 : 44 + 2 * margin]
    crop, _ = coefficients(part, 0 * part)
    np.testing.assert_allclose(crop[0], whole[0, :, 2:10, 3:11], atol=5e-6)
    (sampler,) = crop_samplers(store, TrainConfig(steps=1, crop_px=32), network, ALONE)
    drawn, _ = coefficients(*sampler.draw(np.random.default_rng(0), 3))
    assert drawn.shape == (3, 16, 8, 8)


# --- bundles -------------------------------------------------------------------------------------


def test_check_and_identity_hold(trained, bundle):
    out = run("wdm-export", "check", bundle, "--weights", trained)
    assert out.count("passed") == 9 and "FAILED" not in out
    out = run("wdm-export", "identity", bundle, TRUTH, "--tile", TILE)
    assert "passed" in out and "FAILED" not in out
    assert "above 8" in run("wdm-export", "identity", bundle, TRUTH, "--tile", 8, code=2)


@pytest.mark.parametrize("name", ["db4", "bior2.2", "sym4"])
def test_check_and_identity_hold_for_other_banks(tiny_copy, name):
    with_wavelet(tiny_copy, name)
    out = run("wdm-export", "check", tiny_copy)
    assert "passed" in out and "FAILED" not in out
    out = run("wdm-export", "identity", tiny_copy, TRUTH, "--tile", TILE)
    assert "passed" in out and "FAILED" not in out


def test_infer_keeps_block_means_and_repeats(bundle, tmp_path):
    found = []
    for name in ("a.nc", "b.nc"):
        run(
            "wdm-run", "infer", SAMPLE, "--bundle", bundle, "-o", tmp_path / name, "--steps", 4,
            "--members", 2, "--no-pixel-probe",
        )  # fmt: skip
        with xr.open_dataset(tmp_path / name) as result:
            (variable,) = [n for n, v in result.data_vars.items() if v.ndim >= 4]
            found.append(result[variable].values.squeeze())
    with xr.open_dataset(SAMPLE) as given:
        coarse = given["precipitation_rate"].values.squeeze()
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0][0], found[0][1])
    for member in found[0]:
        assert np.isfinite(member).all() and member.min() >= 0
        # As far as the file's rounding goes.
        np.testing.assert_allclose(block_mean(member, 10), coarse, rtol=2e-3, atol=2e-3)


def test_members_do_not_depend_on_batch_or_number(bundle):
    _, (first, second) = ensemble(bundle)
    _, (alone,) = ensemble(bundle, members=1)
    np.testing.assert_array_equal(alone, first)
    assert not np.array_equal(first, second)


def test_a_crop_draws_the_noise_of_the_whole(bundle):
    """Noise has its place on the ground, margin or not."""
    field = read_field(SAMPLE)
    with Downscaler.open(bundle) as downscaler:
        margin, stride = downscaler.manifest.wavelet.margin, downscaler.manifest.wavelet.stride
        assert (margin, stride) == (1, 4)
        assert downscaler._noise_origin(field) == (-1, -1)
        crop = field.crop(slice(4, 20), slice(8, 30))
        assert downscaler._noise_origin(crop) == (10 - 1, 20 - 1)


def borders_index(rate, tiles, spec):
    """The seam index at tiles whose places are counted from the domain's corner."""
    places = [Tile(t.row - spec.margin, t.column - spec.margin, t.size) for t in tiles]
    inside = [t for t in places if min(t.row, t.column) > 0]
    assert len(inside) > 50
    return seam_index(rate, inside, spec.stride)


def test_tile_borders_do_not_show(bundle):
    """Without the consistency step, whose blocks of ten cells have borders of their own."""
    manifest = Bundle.open(bundle).manifest
    coarse, drawn = ensemble(bundle, 4, consistency="none")
    tiles = look_at(coarse, manifest).tiling.tiles
    index = np.mean([borders_index(rate, tiles, manifest.wavelet) for rate in drawn])
    assert 0.9 < index <= 1.05


@pytest.mark.parametrize("name", ["haar", "db2", "bior2.2"])
def test_tiles_that_disagree_show_their_borders_without_windows_alone(tiny, name, monkeypatch):
    """Each tile wants another amount of rain: the worst that a network could do."""
    flat = SubbandScale((0.0,) * 16, (1.0,) * 16)
    spec = named_wavelet(name, 2)
    manifest = replace(Bundle.open(tiny).manifest, wavelet=spec, residual_scale=flat)
    dwt, idwt = (NumpyTransform(role, spec) for role in ("dwt", "idwt"))
    field = read_field(SAMPLE)
    coarse = north_first(field, field.frame(0))

    def index():
        frame = look_at(coarse, manifest)
        given = condition(frame, manifest, dwt)
        residual, rng = np.zeros_like(given.coeffs), np.random.default_rng(0)
        for number in range(len(frame.tiling.tiles)):
            tile = np.zeros((16, 16, 16), np.float32)
            tile[0] = rng.standard_normal()
            frame.tiling.blend(tile, number, residual)
        rate = finish(frame, given, residual, manifest, idwt)
        return borders_index(rate, frame.tiling.tiles, spec)

    smooth = index()
    monkeypatch.setattr(tiling, "bump", lambda size: np.ones(size, np.float32))
    # Long filters spread a step over cells beside it, which the index compares it with.
    assert smooth < 1.1 and index() > 1.2


def test_evaluate_scores_tiles_of_the_domain(bundle, tmp_path):
    run(
        "wdm-export", "evaluate", bundle, TRUTH, "--no-rainfarm", "--members", 2,
        "--steps", 3, "--engine", "ort-cpu", "--threads", 1, "--bootstrap", 20,
        "--json", tmp_path / "scores.json",
    )  # fmt: skip
    rows = json.loads((tmp_path / "scores.json").read_text())["rows"]
    (mean,) = (row for row in rows if row.pop("forecast") == "mean of 2 members")
    assert all(value is None or np.isfinite(value) for value in mean.values())


# --- without a residual --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["db2", "db4", "bior2.2"])
def test_without_a_residual_the_output_is_the_interpolated_field_to_the_borders(tiny_copy, name):
    with_wavelet(tiny_copy, name)
    edit_manifest(tiny_copy, residual_scale={"mean": [0.0] * 16, "std": [1e-12] * 16})
    coarse, (rate,) = ensemble(tiny_copy, members=1, consistency="none")
    smooth = interpolated(coarse, 10)
    expected = np.where(smooth < DRY_MM_H, 0, smooth)
    at_threshold = np.abs(smooth - DRY_MM_H) < 1e-5
    np.testing.assert_allclose(rate[~at_threshold], expected[~at_threshold], rtol=2e-5, atol=1e-6)
    borders = np.ones(rate.shape, bool)
    borders[8:-8, 8:-8] = False
    assert (rate[borders] > 0.5).sum() > 100 and at_threshold.mean() < 1e-3
