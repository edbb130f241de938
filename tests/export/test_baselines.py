"""What the model is compared with: interpolations, noise, RainFARM, a regression network."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from test_evaluate import FACTOR, field_of, showers

from wdm_export.baselines import DressedBicubic, RainFarm
from wdm_export.coarsen import coarsen
from wdm_export.methods import (
    bilinear,
    conservative_bicubic,
    interpolations,
    nearest,
)
from wdm_runtime.bundle import Bundle
from wdm_runtime.errors import InputError, MissingDependencyError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import block_mean, interpolate
from wdm_runtime.transform import SubbandScale
from wdm_runtime.wavelets import dwt

SIZE = 64
PLACES = [(0, 0), (64, 64)]


@pytest.fixture(scope="module")
def coarse() -> PrecipField:
    return coarsen(field_of(showers(0)), FACTOR)


def drawn(method, coarse, members=2, seed=3, places=PLACES) -> npt.NDArray[np.floating]:
    return np.stack(list(method.draw(coarse, places, SIZE, members, seed)))


# --- interpolation -------------------------------------------------------------------------------


def test_bilinear_gives_planes_back_and_ends_flat() -> None:
    rows, columns = np.mgrid[0:5, 0:7]
    plane = (3.0 + 2 * rows + columns).astype(np.float32)
    fine = bilinear(plane, 10)
    centres = [(np.arange(n * 10) + 0.5) / 10 - 0.5 for n in plane.shape]
    inside = np.s_[5:-5, 5:-5]
    expected = 3 + 2 * centres[0][:, None] + centres[1]
    assert fine.shape == (50, 70) and fine[inside] == pytest.approx(expected[inside], abs=1e-5)
    assert np.unique(fine[:5, 0]).tolist() == [3] and fine.min() == 3 and fine.max() == plane.max()


def test_bilinear_never_leaves_the_range_of_its_input_and_keeps_missing_cells() -> None:
    coarse = np.random.default_rng(0).gamma(0.4, 5, (9, 8)).astype(np.float32)
    fine = bilinear(coarse, 10)
    assert fine.min() >= coarse.min() and fine.max() <= coarse.max()
    coarse[4, 4] = np.nan
    missing = np.isnan(bilinear(coarse, 10))
    assert missing[40:50, 40:50].all() and not missing[:35].any() and not missing[:, 55:].any()


def test_the_nearest_cell_keeps_block_means(coarse: PrecipField) -> None:
    rates = coarse.frame(0)
    assert block_mean(nearest(rates, FACTOR), FACTOR) == pytest.approx(rates, rel=1e-6)


def test_interpolations_are_of_the_whole_domain_and_dry_below_the_threshold(
    coarse: PrecipField,
) -> None:
    whole = {
        "nearest cell": nearest,
        "bilinear": bilinear,
        "bicubic": interpolate,
        "conservative bicubic": conservative_bicubic,
    }
    for method in interpolations(FACTOR):
        (tiles,) = drawn(method, coarse)
        fine = whole[method.name](coarse.frame(0), FACTOR)
        fine[fine < 0.1] = 0
        assert not method.random and np.array_equal(tiles[1], fine[64:128, 64:128])
        assert ((tiles == 0) | (tiles >= 0.1)).all()


def test_conservative_bicubic_keeps_block_means_and_is_bicubic_where_these_agree(
    coarse: PrecipField,
) -> None:
    rates = coarse.frame(0)
    fine = conservative_bicubic(rates, FACTOR)
    assert block_mean(fine, FACTOR) == pytest.approx(rates, abs=1e-4)
    assert np.abs(block_mean(interpolate(rates, FACTOR), FACTOR) - rates).max() > 0.01
    even = np.full((6, 6), 2.5, np.float32)
    assert np.array_equal(conservative_bicubic(even, FACTOR), interpolate(even, FACTOR))


# --- noise without a network ---------------------------------------------------------------------


def test_dressed_members_differ_and_keep_the_inputs_block_means(tiny, coarse: PrecipField) -> None:
    method = DressedBicubic(Bundle.open(tiny).manifest)
    tiles = drawn(method, coarse, members=3)
    assert tiles.shape == (3, 2, SIZE, SIZE) and method.random
    for member in tiles:
        means = block_mean(member[0][:60, :60], FACTOR)
        assert means == pytest.approx(coarse.frame(0)[:6, :6], abs=2e-4)
    assert np.abs(tiles[0] - tiles[1]).mean() > 0.01
    assert np.array_equal(tiles[:2], drawn(method, coarse))  # whatever the number of members
    assert not np.array_equal(tiles[:2], drawn(method, coarse, seed=4))


def test_the_noise_has_the_residuals_own_mean_and_deviation(tiny, coarse: PrecipField) -> None:
    manifest = Bundle.open(tiny).manifest
    wet = replace(
        coarse, rate_mm_h=np.full((1, *coarse.grid.shape), 5.0, np.float32)
    )  # nothing is cut at 0
    (tile,) = next(DressedBicubic(manifest, "none").draw(wet, [(0, 0)], 120, 1, 0))
    smooth = np.full((120, 120), 5.0, np.float32)
    found, flat = (
        dwt(manifest.transform.forward(f)[None], manifest.wavelet) for f in (tile, smooth)
    )
    residual, scale = (found - flat).reshape(len(found), -1), manifest.residual_scale
    assert residual.std(axis=1) == pytest.approx(scale.std, rel=0.15)
    assert residual.mean(axis=1) == pytest.approx(scale.mean, abs=0.1 * max(scale.std))


def test_without_noise_it_is_conservative_bicubic(tiny, coarse: PrecipField) -> None:
    manifest = Bundle.open(tiny).manifest
    none = SubbandScale((0.0,) * 16, (1e-9,) * 16)
    tiles = drawn(DressedBicubic(replace(manifest, residual_scale=none)), coarse, members=1)
    bicubic = conservative_bicubic(coarse.frame(0), FACTOR)[:SIZE, :SIZE]
    assert tiles[0, 0] == pytest.approx(bicubic, abs=1e-3)


# --- RainFARM ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[0, 1], ids=["plain", "fusion"])
def rainfarm(request: pytest.FixtureRequest) -> RainFarm:
    pytest.importorskip("pysteps")
    return RainFarm.both(FACTOR)[request.param]


def test_fusion_follows_the_input_closer() -> None:
    """At the scales that the input has, two members then differ less."""
    pytest.importorskip("pysteps")
    field = coarsen(field_of(showers(0)), FACTOR)
    plain, fused = (drawn(method, field, members=2) for method in RainFarm.both(FACTOR))
    apart = [np.abs(np.subtract(*members)).mean() for members in (plain, fused)]
    assert 0 < apart[1] < apart[0]


def test_rainfarm_keeps_the_block_means_but_for_the_drizzle_it_drops(
    rainfarm: RainFarm, coarse: PrecipField
) -> None:
    tiles = drawn(rainfarm, coarse, places=[(0, 0)])
    for tile in tiles[:, 0]:
        means = block_mean(tile[:60, :60], FACTOR)
        lost = coarse.frame(0)[:6, :6] - means
        assert lost.min() > -1e-4 and lost.max() < 0.1
    assert np.abs(tiles[0] - tiles[1]).max() > 1


def test_rainfarm_tiles_are_their_own_whatever_is_drawn_before(
    rainfarm: RainFarm, coarse: PrecipField
) -> None:
    both = drawn(rainfarm, coarse, members=3)
    alone = drawn(rainfarm, coarse, members=1, places=PLACES[1:])
    assert np.array_equal(both[0, 1], alone[0, 0])
    assert not np.array_equal(both, drawn(rainfarm, coarse, members=3, seed=4))


def test_rainfarm_leaves_the_global_generator_as_it_was(
    rainfarm: RainFarm, coarse: PrecipField
) -> None:
    np.random.seed(12)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(12)  # noqa: NPY002
    drawn(rainfarm, coarse)
    assert np.array_equal(np.random.random(3), expected)  # noqa: NPY002


def test_rainfarm_takes_missing_input_as_dry(rainfarm: RainFarm, coarse: PrecipField) -> None:
    holed = coarsen(field_of(showers(0)), FACTOR)
    holed.rate_mm_h[0, 2, 2] = np.nan
    tile = drawn(rainfarm, holed)[0, 0]
    assert np.isfinite(tile).all() and (tile[20:30, 20:30] == 0).all()


def test_rainfarm_refuses_fields_too_small_for_a_slope(rainfarm: RainFarm) -> None:
    small = coarsen(field_of(showers(0)[:30, :64]), FACTOR)
    with pytest.raises(InputError, match=r"3 x 6 coarse cells; expected at least 4 x 4"):
        drawn(rainfarm, small, places=[(0, 0)])


def test_rain_that_is_the_same_everywhere_has_no_detail_in_rainfarm(rainfarm: RainFarm) -> None:
    level = coarsen(field_of(np.full((135, 207), 2.5, np.float32)), FACTOR)
    assert (drawn(rainfarm, level, places=[(0, 0)]) == 2.5).all()


def test_without_pysteps_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pysteps.downscaling.rainfarm", None)
    with pytest.raises(MissingDependencyError, match=r"'\.\[verify\]' in the clone") as caught:
        RainFarm.both(FACTOR)
    assert caught.value.extra == "verify"


# --- regression ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regression_run(tmp_path_factory):
    """A short run with the objective of a regression: its folder and the store."""
    pytest.importorskip("torch")
    from small_training import SMALL, sample_store

    from wdm_export.config import TrainConfig
    from wdm_export.train import Trainer

    folder = tmp_path_factory.mktemp("regression")
    store = sample_store(folder / "store")
    config = TrainConfig(
        steps=300, batch=8, crop_px=32, learning_rate=1e-2, warmup_steps=5, threads=1,
        objective="regression", tv_weight=0.0,
    )  # fmt: skip
    Trainer.start(store, folder / "run", SMALL, config).run()
    return folder / "run", store


def test_a_regression_learns_the_mean(regression_run) -> None:
    """On the same crops its answer is nearer than 0, which is the mean of all residuals."""
    import torch

    from wdm_export.checkpoint import Checkpoint
    from wdm_export.crops import Coefficients, CropSampler

    run, store = regression_run
    checkpoint = Checkpoint.load(run / "weights.safetensors")
    model = checkpoint.model
    crops = CropSampler(store, 32, 4).draw(np.random.default_rng(99), 256)
    standardised = [
        torch.from_numpy(np.stack([scale.standardise(coeffs) for coeffs in values.numpy()]))
        for values, scale in zip(
            Coefficients(model.network.wavelet, model.transform)(*crops),
            (model.residual_scale, model.condition_scale),
            strict=True,
        )
    ]
    x0, condition = standardised
    with torch.no_grad():
        mean = -checkpoint.network()(torch.zeros_like(x0), condition, torch.ones(1))
    assert float((x0 - mean).square().mean() / x0.square().mean()) < 0.95


def test_a_regression_never_sees_noise_or_what_it_has_to_predict(regression_run) -> None:
    import torch

    from wdm_export.train import CHECKPOINT_NAME, Trainer

    run, store = regression_run
    trainer = Trainer.resume(store, run, steps=200)
    seen = []
    network = trainer.parallel

    def spy(x, condition, t):
        seen.append((x.clone(), t.clone()))
        return network(x, condition, t)

    trainer.parallel = spy
    trainer._train_step()
    ((x, t),) = seen
    assert torch.equal(x, torch.zeros_like(x)) and torch.equal(t, torch.ones_like(t))
    assert (run / CHECKPOINT_NAME).exists()


def test_a_regression_is_one_field_with_the_inputs_block_means(
    regression_run, coarse: PrecipField
) -> None:
    from wdm_export.regression import Regression

    run, _ = regression_run
    method = Regression.load(run / "weights.safetensors", SIZE)
    tiles = drawn(method, coarse, places=[(0, 0)])
    assert tiles.shape == (1, 1, SIZE, SIZE) and not method.random
    assert method.name == "regression run"
    means = block_mean(tiles[0, 0][:60, :60], FACTOR)
    assert means == pytest.approx(coarse.frame(0)[:6, :6], abs=2e-4)
    smooth = interpolate(coarse.frame(0), FACTOR)[:SIZE, :SIZE]
    assert np.abs(tiles[0, 0] - smooth).max() > 0.1  # the network did something
    assert np.array_equal(tiles, drawn(method, coarse, places=[(0, 0)], seed=9))


def test_the_regression_says_what_the_runtime_would_of_the_same_network(
    regression_run, coarse: PrecipField
) -> None:
    """Minus v at x = 0, t = 1, through NumPy's transforms, is the residual of the field."""
    import torch

    from wdm_export.checkpoint import Checkpoint
    from wdm_export.regression import Regression
    from wdm_runtime.grid import interpolate
    from wdm_runtime.wavelets import dwt, idwt

    weights = regression_run[0] / "weights.safetensors"
    checkpoint = Checkpoint.load(weights)
    model = checkpoint.model
    method = Regression.load(weights, SIZE, consistency="none")
    square = coarsen(field_of(showers(0)[:60, :60]), FACTOR)
    square.rate_mm_h[:] = np.maximum(square.rate_mm_h, 1)  # rain everywhere: nothing is cut out
    (found,) = method.draw(square, [(0, 0)], 60, 1, 0)
    smooth = interpolate(square.frame(0), FACTOR)
    z = model.transform.forward(np.pad(smooth, (0, 4), mode="edge"))[None]
    given = dwt(z, model.network.wavelet)
    condition = torch.from_numpy(model.condition_scale.standardise(given))[None]
    with torch.no_grad():
        v = checkpoint.network()(torch.zeros_like(condition), condition, torch.ones(1))
    coeffs = model.residual_scale.restore(-v[0].numpy()) + given
    expected = model.transform.inverse(idwt(coeffs, model.network.wavelet))[0, :60, :60]
    assert found[0] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_weights_of_a_diffusion_model_are_no_regression(tmp_path) -> None:
    from small_training import random_checkpoint

    from wdm_export.config import TrainConfig
    from wdm_export.regression import Regression

    path = tmp_path / "weights.safetensors"
    random_checkpoint().save(path)
    with pytest.raises(InputError, match="weights of a diffusion model; expected"):
        Regression.load(path, SIZE)
    with pytest.raises(InputError, match=r"--objective got 'mse'.*diffusion, regression"):
        TrainConfig(steps=1, objective="mse")
