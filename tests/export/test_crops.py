"""How crops are drawn from a store, and what of them the network is shown."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_training import CROP, DOMAIN, SMALL, sample_store  # noqa: E402

from wdm_export.config import NetworkConfig, TrainConfig  # noqa: E402
from wdm_export.crops import (  # noqa: E402
    Coefficients,
    CropSampler,
    crop_samplers,
    measure_scales,
)
from wdm_export.data import PatchStore, Source  # noqa: E402
from wdm_export.parallel import ALONE  # noqa: E402
from wdm_runtime import wavelets  # noqa: E402
from wdm_runtime.errors import InputError  # noqa: E402
from wdm_runtime.transform import TRANSFORMS, PrecipTransform  # noqa: E402


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return sample_store(tmp_path_factory.mktemp("data") / "store")


def unequal_days(many=30):
    """One day of ``many`` patches holding 1 .. many, another with a single patch of 999."""
    values = np.append(np.arange(1, many + 1), 999).astype(np.float16)
    fine = np.broadcast_to(values[:, None, None], (many + 1, 16, 16))
    sources = (
        Source("a", "", "2019-06-10T00:00:00", 0, 10),
        Source("b", "", "2022-06-02T12:00:00", many, 1),
        Source("c", "", "2019-06-10T00:02:00", 10, many - 10),
    )
    return PatchStore(Path(), 10, DOMAIN, sources, fine, fine)


def test_days_are_drawn_evenly_however_many_patches_they_have():
    sampler = CropSampler(unequal_days(), 8, 4)
    fine, _ = sampler.draw(np.random.default_rng(0), 4000)
    drawn = fine[:, 0, 0, 0].numpy()
    rare = int((drawn == 999).sum())
    assert abs(rare - 2000) < 4 * np.sqrt(4000 * 0.25)
    # within a day patches are even too: chi-square of 30 cells, far beyond its 0.1 % bound of 58
    counts = np.bincount(drawn[drawn != 999].astype(int), minlength=31)[1:]
    expected = counts.sum() / 30
    assert (counts > 0).all() and ((counts - expected) ** 2 / expected).sum() < 70


def test_patches_may_be_drawn_evenly_instead():
    config = TrainConfig(steps=1, crop_px=8, even_days=False)
    (sampler,) = crop_samplers(unequal_days(), config, NetworkConfig(), ALONE)
    fine, _ = sampler.draw(np.random.default_rng(0), 4000)
    rare = int((fine[:, 0, 0, 0] == 999).sum())
    assert abs(rare - 4000 / 31) < 4 * np.sqrt(4000 / 31)


def test_crops_of_one_coefficient_are_refused():
    """Their total variation is the mean of nothing: the loss would be NaN."""
    with pytest.raises(InputError, match="--crop got 4 cells; expected at least 8"):
        crop_samplers(unequal_days(), TrainConfig(steps=1, crop_px=4), NetworkConfig(), ALONE)


def test_crops_may_lie_as_in_the_field():
    patch = np.arange(256, dtype=np.float16).reshape(1, 16, 16)
    source = (Source("a", "", "2019-06-10T00:00:00", 0, 1),)
    sampler = CropSampler(PatchStore(Path(), 10, DOMAIN, source, patch, patch), 8, 4)
    turned, plain = (sampler.draw(np.random.default_rng(0), 50, 0.0, t)[0] for t in (True, False))
    assert (plain[:, 0, 1:] - plain[:, 0, :-1] == 16).all()
    assert (plain[:, 0, :, 1:] - plain[:, 0, :, :-1] == 1).all()
    # the same windows of the field, so that only turning differs
    assert torch.equal(turned.amin(dim=(1, 2, 3)), plain.amin(dim=(1, 2, 3)))


def test_crops_are_windows_on_the_stride_turned_alike_for_truth_and_condition():
    patch = np.arange(256, dtype=np.float16).reshape(1, 16, 16)
    source = (Source("a", "", "2019-06-10T00:00:00", 0, 1),)
    store = PatchStore(Path(), 10, DOMAIN, source, patch, patch + 256)
    fine, coarse = CropSampler(store, 8, 4).draw(np.random.default_rng(0), 400)
    assert fine.shape == coarse.shape == (400, 1, 8, 8) and fine.dtype == torch.float32
    np.testing.assert_array_equal(coarse, fine + 256)
    windows = {
        (r, c): patch[0, r : r + 8, c : c + 8].astype(float) for r in (0, 4, 8) for c in (0, 4, 8)
    }
    turned = {}
    for place, window in windows.items():
        for flip_y in (1, -1):
            for flip_x in (1, -1):
                for swap in (False, True):
                    view = window[::flip_y, ::flip_x]
                    view = view.T if swap else view
                    turned[view.tobytes()] = (place, flip_y, flip_x, swap)
    kinds = {turned[crop[0].numpy().astype(float).tobytes()] for crop in fine}
    assert len(turned) == 72 and len(kinds) > 65  # all nine places and eight symmetries occur


def test_draws_repeat_with_their_generator():
    sampler = CropSampler(unequal_days(), 8, 4)
    a, b = (sampler.draw(np.random.default_rng(5), 20)[0] for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, sampler.draw(np.random.default_rng(6), 20)[0])


@pytest.mark.parametrize("crop", [20, 6, 0, -4])
def test_crops_that_do_not_fit_are_refused(crop):
    with pytest.raises(InputError, match="--crop"):
        CropSampler(unequal_days(), crop, 4)


def test_shards_hold_all_files_once_and_rare_days_apart():
    store = unequal_days()
    shards = [store.by_day(shard, 2) for shard in (0, 1)]
    numbers = np.concatenate([n for days in shards for n in days.values()])
    assert sorted(numbers) == list(range(31))
    # The day of one file goes to one shard, the other day's files to both.
    assert sorted(map(len, shards)) == [1, 2]


@pytest.mark.parametrize(("shards", "even"), [(1, True), (2, True), (4, False)])
def test_days_stay_as_even_over_shards_as_whole_files_allow(shards, even):
    """Three days of a file each and one of as many as there are shards."""
    days = ["2004-09-26", "2017-01-02", "2022-06-02", *["2019-06-10"] * 5]
    sources = tuple(Source(str(i), "", f"{day}T00:00:00", i, 1) for i, day in enumerate(days))
    fine = np.broadcast_to(np.arange(8, dtype=np.float16)[:, None, None], (8, 16, 16))
    store = PatchStore(Path(), 10, DOMAIN, sources, fine, fine)
    drawn = np.zeros(8)
    for shard in range(shards):
        crops, _ = CropSampler(store, 8, 4, shard, shards).draw(np.random.default_rng(shard), 2000)
        drawn += np.bincount(crops[:, 0, 0, 0].numpy().astype(int), minlength=8)
    common = drawn[3:].sum() / drawn.sum()
    # With four shards one of them holds no other day: a quarter of all crops is the common day's.
    assert abs(common - 0.25) < (0.05 if even else 0.25)
    assert (drawn > 0).all()


def test_more_shards_than_fields_are_refused():
    with pytest.raises(InputError, match="no field for data shard 4 of 4"):
        CropSampler(unequal_days(), 8, 4, 3, 4)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inputs_are_standardised_as_the_runtime_does_it(store, name):
    sampler, transform = CropSampler(store, CROP, 4), PrecipTransform.zero_where_dry(name)
    coefficients = Coefficients(SMALL.wavelet, transform)
    residual_scale, condition_scale = measure_scales([sampler], coefficients, seed=0)
    fine, coarse = sampler.draw(np.random.default_rng(1), 300)
    residual, condition = coefficients(fine, coarse)
    scaled = []
    for i in range(len(fine)):
        ours, theirs = (
            wavelets.dwt(transform.forward(f[i].numpy()), SMALL.wavelet) for f in (coarse, fine)
        )
        np.testing.assert_allclose(condition[i], ours, atol=1e-5)
        np.testing.assert_allclose(residual[i], theirs - ours, atol=1e-5)
        scaled.append(
            (condition_scale.standardise(ours), residual_scale.standardise(theirs - ours))
        )
    for values in np.moveaxis(np.array(scaled), 1, 0):
        # other crops than those measured: the same within sampling error
        mean, std = values.mean(axis=(0, 2, 3)), values.std(axis=(0, 2, 3))
        assert np.abs(mean).max() < 0.2 and std.min() > 0.75 and std.max() < 1.3


def test_truth_can_be_restored_from_residual_and_condition(store):
    transform = PrecipTransform()
    fine, coarse = CropSampler(store, CROP, 4).draw(np.random.default_rng(1), 1)
    residual, condition = Coefficients(SMALL.wavelet, transform)(fine, coarse)
    z = wavelets.idwt((residual + condition)[0].numpy(), SMALL.wavelet)
    np.testing.assert_allclose(transform.inverse(z), fine[0].numpy(), rtol=1e-3, atol=1e-4)


def test_intensity_multiplies_a_crop_by_one_factor(store):
    sampler = CropSampler(store, CROP, 4)
    plain, other = (sampler.draw(np.random.default_rng(1), 200, spread) for spread in (0.0, 0.5))
    peaks = [torch.cat(pair, dim=1).amax(dim=(1, 2, 3)) for pair in (plain, other)]
    factors = torch.where(peaks[0] > 0, peaks[1] / peaks[0], 1.0)
    for before, after in zip(plain, other, strict=True):
        torch.testing.assert_close(after, before * factors[:, None, None, None])
    factors = factors[peaks[0] > 0]
    assert len(factors) > 100
    assert factors.log().std() == pytest.approx(0.5, rel=0.15)
    assert abs(factors.log().mean()) < 0.12
