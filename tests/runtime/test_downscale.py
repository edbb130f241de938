"""`Downscaler` on the real CPU engine: reproducibility, missing cells, any size, orientation."""

from dataclasses import replace

import numpy as np
import pytest

from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import Grid, block_mean
from wdm_runtime.samplers import SAMPLERS

STEPS = 3


def ensemble(bundle, field, batch=None, **options):
    with Downscaler.open(bundle, options=EngineOptions(batch=batch)) as downscaler:
        options = {"members": 2, "steps": STEPS, **options}
        return {
            (s.time_index, s.member): s.rate_mm_h for s in downscaler.downscale(field, **options)
        }


def only_frame(field, index):
    return PrecipField(
        field.rate_mm_h[index : index + 1], field.grid, (field.valid_times[index],), field.source
    )


@pytest.fixture
def reference(tiny, field):
    return ensemble(tiny, field)


def test_shape_units_and_dry_floor(tiny, field):
    drawn = ensemble(tiny, field, consistency="none")
    assert set(drawn) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    for rate in drawn.values():
        assert rate.shape == (130, 170) and rate.dtype == np.float32
        assert np.all(np.isfinite(rate))
        wet = rate[rate > 0]
        assert wet.size and wet.min() >= np.float32(0.1) and rate.min() == 0


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
def test_same_bytes_for_any_tile_batch(tiny, field, reference, batch):
    for key, rate in ensemble(tiny, field, batch).items():
        np.testing.assert_array_equal(rate, reference[key])


def test_growing_the_ensemble_keeps_the_first_members(tiny, field, reference):
    grown = ensemble(tiny, field, members=3)
    for key, rate in reference.items():
        np.testing.assert_array_equal(grown[key], rate)
    assert not np.array_equal(grown[0, 2], grown[0, 0])


def test_a_frame_alone_equals_the_frame_in_a_file(tiny, field, reference):
    alone = ensemble(tiny, only_frame(field, 1))
    for member in (0, 1):
        np.testing.assert_array_equal(alone[0, member], reference[1, member])


def test_frames_do_not_share_noise(tiny, field):
    twice = replace(field, rate_mm_h=np.repeat(field.rate_mm_h[:1], 2, axis=0))
    drawn = ensemble(tiny, twice, members=1)
    assert not np.array_equal(drawn[0, 0], drawn[1, 0])


def test_seeds_differ_and_repeat(tiny, field, reference):
    other = ensemble(tiny, field, seed=1, members=1)
    assert not np.array_equal(other[0, 0], reference[0, 0])
    again = ensemble(tiny, field, seed=1, members=1)
    np.testing.assert_array_equal(other[0, 0], again[0, 0])


def test_row_order_of_the_input_is_given_back(tiny, field, reference):
    grid = Grid(field.grid.y[::-1], field.grid.x, field.grid.names, field.grid.attributes)
    flipped = PrecipField(field.rate_mm_h[:, ::-1], grid, field.valid_times)
    for key, rate in ensemble(tiny, flipped).items():
        np.testing.assert_array_equal(rate[::-1], reference[key])
        assert rate.flags.c_contiguous  # torch, for one, takes no negative strides


def test_missing_never_becomes_dry_nor_spreads_far(tiny, field):
    rate = field.rate_mm_h.copy()
    rate[:, 6, 8] = np.nan
    drawn = ensemble(tiny, replace(field, rate_mm_h=rate), members=1)[0, 0]
    assert np.isnan(drawn[60:70, 80:90]).all()
    missing = np.isnan(drawn)
    missing[40:90, 60:110] = False
    assert not missing.any()


def test_frames_without_rain_or_without_values_need_no_engine(tiny, field):
    rate = field.rate_mm_h.copy()
    rate[0], rate[1] = 0.0, np.nan
    seen = []
    drawn = ensemble(tiny, replace(field, rate_mm_h=rate), members=2, on_step=seen.append)
    assert seen == []
    for member in (0, 1):
        assert np.all(drawn[0, member] == 0) and np.isnan(drawn[1, member]).all()


def test_far_from_rain_it_is_exactly_dry_and_no_tile_is_spent(tiny, field):
    rate = np.zeros((1, 60, 60), np.float32)
    rate[0, 40, 45] = 8.0
    grid = Grid(np.arange(60) * -0.1, np.arange(60) * 0.1)
    alone = PrecipField(rate, grid, ("none-0",))
    with Downscaler.open(tiny) as downscaler:
        assert downscaler.plan(alone).tiles == (4,)  # 50 x 50 cells: a core has 48
        (sample,) = downscaler.downscale(alone, steps=STEPS, consistency="none")
    fine = sample.rate_mm_h
    assert fine[380:430, 430:480].any()
    fine[380:430, 430:480] = 0
    assert not fine.any()


def test_drizzle_below_one_wet_cell_a_block_is_dry(tiny):
    grid = Grid(np.arange(20) * -0.1, np.arange(20) * 0.1)
    with Downscaler.open(tiny) as downscaler:
        for rate, wet in ((0.0004, False), (0.0011, True)):
            frame = PrecipField(np.full((1, 20, 20), rate, np.float32), grid, ("none-0",))
            assert bool(downscaler.plan(frame).tiles[0]) is wet


@pytest.mark.parametrize("shape", [(2, 2), (2, 31), (7, 6), (13, 17)])
def test_any_domain_size(tiny, shape):
    rate = np.full((1, *shape), 4.0, np.float32)
    grid = Grid(np.arange(shape[0]) * -0.1, np.arange(shape[1]) * 0.1)
    drawn = ensemble(tiny, PrecipField(rate, grid, ("none-0",)), members=1)[0, 0]
    assert drawn.shape == (10 * shape[0], 10 * shape[1]) and np.all(np.isfinite(drawn))


def test_wanted_leaves_out_tiles_and_changes_nothing_where_it_computes_all(tiny, field, reference):
    everything = np.ones((130, 170), bool)
    same = ensemble(tiny, field, wanted=everything)
    np.testing.assert_array_equal(same[0, 0], reference[0, 0])
    corner = np.zeros((130, 170), bool)
    corner[:8, :8] = True
    part = ensemble(tiny, field, wanted=corner, members=1)[0, 0]
    assert np.isfinite(part[:8, :8]).all() and np.isnan(part[100:, 100:]).any()
    assert np.all(part[64:][np.isfinite(part[64:])] == 0)


@pytest.mark.parametrize("shape", [(13, 17), (130, 100), (200, 200)])
def test_a_mask_of_another_shape_is_refused_at_once(tiny, field, shape):
    with Downscaler.open(tiny) as downscaler, pytest.raises(InputError, match=r"\(130, 170\)"):
        downscaler.downscale(field, wanted=np.ones(shape, bool))


def test_masked_cells_are_missing(tiny, field):
    mask = np.zeros(field.rate_mm_h.shape, bool)
    mask[:, 4:7, 4:7] = True
    masked = replace(
        field, rate_mm_h=np.ma.array(np.where(mask, -9999, field.rate_mm_h), mask=mask)
    )
    missing = replace(field, rate_mm_h=np.where(mask, np.nan, field.rate_mm_h))
    expected = ensemble(tiny, missing)
    for key, rate in ensemble(tiny, masked).items():
        np.testing.assert_array_equal(rate, expected[key])


def test_a_crop_draws_the_noise_of_the_whole(tiny, field):
    # One tile either way, so that only noise and context could differ: none does far inside.
    rate = np.zeros((1, 40, 40), np.float32)
    rate[0, 30:33, 30:33] = 6.0
    grid = Grid(np.arange(40) * -0.1, np.arange(40) * 0.1)
    whole = PrecipField(rate, grid, ("2022-08-09T15:00:00",))
    crop = whole.crop(slice(26, 40), slice(26, 40))
    assert crop.origin == (26, 26)
    a = ensemble(tiny, whole, members=1)[0, 0][260:, 260:]
    b = ensemble(tiny, crop, members=1)[0, 0]
    elsewhere = ensemble(tiny, replace(crop, origin=(0, 0)), members=1)[0, 0]
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert abs(elsewhere - a).max() > 0.1
    with pytest.raises(InputError, match="--bbox"):
        ensemble(tiny, whole.crop(slice(25, 40), slice(26, 40)))


def test_members_of_an_evolving_ensemble_resemble_their_last_frame(tiny, field):
    times = ("2022-08-09T15:00:00", "2022-08-09T15:02:00")
    still = replace(field, rate_mm_h=np.repeat(field.rate_mm_h[:1], 2, 0), valid_times=times)
    independent = ensemble(tiny, still, members=1)
    slow = ensemble(tiny, still, members=1, noise_decorrelation_min=30.0)
    fresh, kept = (np.corrcoef(d[0, 0].ravel(), d[1, 0].ravel())[0, 1] for d in (independent, slow))
    assert kept > 0.97 and kept > fresh + 0.05
    alone = ensemble(tiny, only_frame(still, 1), members=1, noise_decorrelation_min=30.0)
    np.testing.assert_array_equal(alone[0, 0], slow[1, 0])


def test_memory_asked_for_is_bounded_by_what_is_given(tiny, field):
    with Downscaler.open(tiny, options=EngineOptions(batch=64)) as downscaler:
        generous, tight = downscaler.plan(field), downscaler.plan(field, max_bytes=15_000_000)
        assert tight.memory_bytes <= 15_000_000 < generous.memory_bytes
        with pytest.raises(InputError, match="--max-memory"):
            downscaler.plan(field, max_bytes=12_000_000)
        few = list(downscaler.downscale(field, 3, steps=STEPS, max_bytes=15_000_000))
        many = list(downscaler.downscale(field, 3, steps=STEPS))
    assert [(s.time_index, s.member) for s in few] == [(t, m) for t in (0, 1) for m in (0, 1, 2)]
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a.rate_mm_h, b.rate_mm_h)


@pytest.mark.parametrize("mode", ["additive", "multiplicative"])
def test_block_means_are_the_input(tiny, field, mode):
    with Downscaler.open(tiny) as downscaler:
        (sample,) = downscaler.downscale(only_frame(field, 0), steps=STEPS, consistency=mode)
    means = block_mean(sample.rate_mm_h, 10)
    np.testing.assert_allclose(means, field.rate_mm_h[0], atol=1e-4)
    assert sample.rate_mm_h.min() >= 0
    balance = sample.balance
    assert balance.max_residual_mm_h > balance.residual_mm_h > 1e-3
    assert 0 < balance.wet_fraction_before < 1 and 0 < balance.wet_fraction_after < 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_and_counts_its_steps(tiny, field, name):
    seen = []
    with Downscaler.open(tiny) as downscaler:
        frame = only_frame(field, 0)
        (sample,) = downscaler.downscale(frame, steps=4, sampler=name, on_step=seen.append)
        assert len(seen) == 4
        assert all(s.tiles == downscaler.plan(frame).tiles[0] for s in seen)
        assert all(0 < s.engine_seconds <= s.seconds for s in seen)
        assert np.isfinite(sample.rate_mm_h).all()


def test_fp16_graph_is_close_to_fp32(tiny, field, reference):
    with Downscaler.open(tiny, precision="fp16") as downscaler:
        (sample,) = downscaler.downscale(only_frame(field, 0), steps=STEPS)
    # A wet cell may fall to the other side of the dry floor: compare the mean, not each cell.
    assert np.abs(sample.rate_mm_h - reference[0, 0]).mean() < 0.02 * reference[0, 0].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "0 members"),
        ({"members": 1.5}, "Got members = 1.5; expected a whole number"),
        ({"steps": 1}, "1 sampling steps"),
        ({"steps": "8"}, "Got steps = '8'; expected a whole number"),
        ({"seed": 1.0}, "Got seed = 1.0; expected a whole number"),
        ({"sampler": "x"}, "'x'"),
        ({"noise_scale": "1"}, "Got noise_scale = '1'; expected a number"),
        (
            {"noise_decorrelation_min": None},
            "Got noise_decorrelation_min = None; expected a number",
        ),
    ],
)
def test_bad_options_are_input_errors(tiny, field, options, message):
    with pytest.raises(InputError, match=message):
        ensemble(tiny, field, **options)


def test_a_seed_of_another_integer_type_is_the_same_seed(tiny, field):
    drawn = [ensemble(tiny, field, seed=seed, members=1) for seed in (1, np.int64(1), True)]
    for other in drawn[1:]:
        np.testing.assert_array_equal(other[0, 0], drawn[0][0, 0])


@pytest.mark.parametrize("name", ["batch", "threads"])
def test_a_number_of_tiles_or_threads_that_is_none_is_an_input_error(name):
    with pytest.raises(InputError, match=f"Got {name} 0; expected 1 to"):
        EngineOptions(**{name: 0})
    with pytest.raises(InputError, match=f"Got {name} = 2.5; expected a whole number"):
        EngineOptions(**{name: 2.5})


def test_what_is_drawn_after_the_end_says_so(tiny, field):
    with Downscaler.open(tiny) as downscaler:
        samples = downscaler.downscale(field, steps=STEPS)
        next(samples)
    with pytest.raises(InputError, match="closed; expected an open one"):
        list(samples)
    with pytest.raises(InputError, match="inside its 'with' block"):
        downscaler.downscale(field)


@pytest.mark.parametrize("rate", [-0.5, np.inf, -np.inf])
def test_rates_that_are_none_are_refused(tiny, field, rate):
    rates = field.rate_mm_h.copy()
    rates[0, 2, 2] = rate
    with pytest.raises(InputError, match="expected finite ones of at least 0"):
        ensemble(tiny, replace(field, rate_mm_h=rates))


def test_what_resampling_leaves_below_zero_is_dry(tiny, field):
    rates = field.rate_mm_h.copy()
    rates[:, 2:4, 2:5] = 0
    dry = ensemble(tiny, replace(field, rate_mm_h=rates))
    below = rates.copy()
    below[:, 2:4, 2:5] = -0.0009
    for key, rate in ensemble(tiny, replace(field, rate_mm_h=below)).items():
        np.testing.assert_array_equal(rate, dry[key])
        assert np.nanmin(rate) >= 0
    assert below.min() < 0, "what was handed in stays as it was"
