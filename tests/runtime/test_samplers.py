"""Samplers on Gaussians, whose score is known: mean and spread must come back."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from wdm_runtime.bundle import Bundle
from wdm_runtime.diffusion import GRIDS, VPSchedule, denoised_from_v
from wdm_runtime.errors import InputError
from wdm_runtime.presets import BEST, FAST, PRESETS, Preset, chosen
from wdm_runtime.samplers import DETERMINISTIC, SAMPLERS, get_sampler, integrate

SCHEDULE = VPSchedule()
MEAN = 0.5


def sample(name, std, steps, cells=200_000, scale=1.0, grid="logsnr", unit_start=False):
    rng = np.random.default_rng(0)

    def network(x, t):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        denoised = MEAN + gain * (x - alpha * MEAN)
        return (alpha * (x - alpha * denoised) / sigma - sigma * denoised).astype(np.float32)

    def noise(step):
        return rng.standard_normal(cells, dtype=np.float32)

    calls = []
    sampler_steps = Preset(name, steps, scale, grid).plan(SCHEDULE)
    start = noise(-1)
    if (
        name in DETERMINISTIC and not unit_start
    ):  # an ODE does not forget that a run starts without alpha MEAN
        alpha, sigma = SCHEDULE.alpha(sampler_steps[0].t), SCHEDULE.sigma(sampler_steps[0].t)
        start = np.float32(alpha * MEAN) + np.float32(np.hypot(alpha * std, sigma)) * start
    result = integrate(network, start, sampler_steps, noise, calls.append)
    assert calls == list(range(steps))
    return result.astype(np.float64)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("std", [0.3, 1.0])
def test_mean_and_spread_at_a_thousand_calls(name, std):
    result = sample(name, std, 1000, cells=60_000)
    assert result.mean() == pytest.approx(MEAN, rel=0.02)
    assert result.std() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid != "logsnr"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_time_grid_comes_to_the_same_mean_and_spread(name, grid):
    result = sample(name, 0.6, 300, cells=60_000, grid=grid)
    assert result.mean() == pytest.approx(MEAN, rel=0.02)
    assert result.std() == pytest.approx(0.6, rel=0.02)


@pytest.mark.parametrize("name", sorted(DETERMINISTIC))
def test_an_ode_from_unit_noise_falls_short_of_the_mean_by_what_its_start_lacks(name):
    std, first = 1.0, SCHEDULE.times(2, "logsnr")[0]
    lack = (
        SCHEDULE.alpha(first) * std / np.hypot(SCHEDULE.alpha(first) * std, SCHEDULE.sigma(first))
    )
    result = sample(name, std, 200, unit_start=True)
    assert result.mean() == pytest.approx(MEAN * (1 - lack), rel=0.01)
    assert lack < 0.05


@pytest.mark.parametrize("std", [0.3, 0.6, 1.0])
def test_the_shipped_noise_scale_mends_what_its_few_calls_lose_and_a_little_more(std):
    way = Bundle.open().manifest.presets[FAST]
    bare = sample(way.sampler, std, way.steps, grid=way.time_grid).std() / std
    result = sample(way.sampler, std, way.steps, scale=way.noise_scale, grid=way.time_grid)
    assert 0.9 < bare < 1 < result.std() / std < 1.1
    assert result.mean() == pytest.approx(MEAN, rel=0.02)


@pytest.mark.parametrize("std", [0.3, 0.6, 1.0])
def test_default_sampler_keeps_the_spread_at_its_default_calls(std):
    result = sample(PRESETS[FAST].sampler, std, PRESETS[FAST].steps)
    assert result.mean() == pytest.approx(MEAN, rel=0.02)
    assert result.std() == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_noise_is_drawn_for_the_last_call(name):
    drawn = []

    def noise(step):
        drawn.append(step)
        return np.zeros(3, dtype=np.float32)

    x = np.ones(3, dtype=np.float32)
    steps = SAMPLERS[name](SCHEDULE, 5, "logsnr")
    integrate(lambda x, t: 0 * x, x, steps, noise, lambda _: None)
    assert drawn == ([] if name in DETERMINISTIC else [0, 1, 2, 3])
    np.testing.assert_array_equal(x, 1)  # the caller's state is not written


def test_noise_is_drawn_while_the_network_computes():
    steps = SAMPLERS["exponential"](VPSchedule(), 3, "logsnr")
    drawn = [threading.Event() for _ in steps]

    def noise(step):
        drawn[step].set()
        return np.ones((1, 1, 4, 4), np.float32)

    def network(x, t):
        step = [s.t for s in steps].index(t)
        if steps[step].of_noise:
            assert drawn[step].wait(30), "the loop draws noise only after the network is done"
        return np.zeros_like(x)

    integrate(network, np.zeros((1, 1, 4, 4), np.float32), steps, noise, lambda step: None)


def test_noise_that_cannot_be_drawn_ends_the_run():
    def noise(step):
        raise MemoryError("no room for noise")

    with pytest.raises(MemoryError, match="no room for noise"):
        integrate(
            lambda x, t: np.zeros_like(x),
            np.zeros((1, 1, 4, 4), np.float32),
            SAMPLERS["exponential"](VPSchedule(), 3, "logsnr"),
            noise,
            lambda step: None,
        )


def test_tweedie_is_exact_for_an_exact_v():
    rng = np.random.default_rng(1)
    x0, eps = rng.standard_normal((2, 1000), dtype=np.float32)
    for t in (0.01, 0.4, 0.97):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        x, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
        np.testing.assert_allclose(denoised_from_v(x, v, alpha, sigma), x0, atol=1e-5)


@pytest.mark.parametrize("ends", [(2, 1), (-6, 1600), (-np.inf, 8), (-6, np.nan)])
def test_schedules_that_no_sampler_can_step_through_are_refused(ends):
    with pytest.raises(InputError, match="rising log SNR within 100 of 0"):
        VPSchedule("cosine", *ends)


@pytest.mark.parametrize("grid", GRIDS)
def test_time_grids_fall_between_the_schedules_ends(grid):
    times = SCHEDULE.times(12, grid)
    assert np.all(np.diff(times) < 0)
    logsnr = [2 * np.log(SCHEDULE.alpha(t) / SCHEDULE.sigma(t)) for t in times[[0, -1]]]
    np.testing.assert_allclose(logsnr, [SCHEDULE.logsnr_start, SCHEDULE.logsnr_end], rtol=1e-6)


def heun(network, x, times, calls):
    """Algorithm 1 of Karras et al. 2022 in y = x / alpha and s = sigma / alpha, float64."""

    def denoised(y, t):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        v = network((alpha * y).astype(np.float32), t).astype(np.float64)
        return alpha * alpha * y - sigma * v

    level = [SCHEDULE.sigma(t) / SCHEDULE.alpha(t) for t in times]
    y, left = x / SCHEDULE.alpha(times[0]), calls - 1
    for i, t in enumerate(times[:-1]):
        slope, width = (y - denoised(y, t)) / level[i], level[i + 1] - level[i]
        ahead, left = y + width * slope, left - 1
        if left:
            there = (ahead - denoised(ahead, times[i + 1])) / level[i + 1]
            ahead, left = y + width * (slope + there) / 2, left - 1
        y = ahead
    assert left == 0
    return denoised(y, times[-1])


def published(name, network, x, times, noise):
    """Each other sampler as its paper writes it, in float64."""
    previous = h_previous = None
    for i, t in enumerate(times):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        v = network(x.astype(np.float32), t).astype(np.float64)
        denoised, eps = alpha * x - sigma * v, sigma * x + alpha * v
        if i + 1 == len(times):
            return denoised
        alpha_next, sigma_next = SCHEDULE.alpha(times[i + 1]), SCHEDULE.sigma(times[i + 1])
        if name == "euler-maruyama":
            beta, score = 2 * np.log(alpha_next / alpha), (alpha * denoised - x) / sigma**2
            x = x + beta * (x / 2 + score) + np.sqrt(beta) * noise(i)
        elif name == "exponential":  # the ancestral step of DDIM with eta 1
            fresh = sigma_next / sigma * np.sqrt(1 - (alpha / alpha_next) ** 2)
            kept = np.sqrt(sigma_next**2 - fresh**2)
            x = alpha_next * denoised + kept * eps + fresh * noise(i)
        else:
            h = np.log(alpha_next / sigma_next) - np.log(alpha / sigma)
            estimate = denoised
            if previous is not None:
                estimate = denoised + (denoised - previous) * h / (2 * h_previous)
            if name == "dpm-solver-2m":
                x = sigma_next / sigma * x - alpha_next * np.expm1(-h) * estimate
            else:
                x = sigma_next / sigma * np.exp(-h) * x - alpha_next * np.expm1(-2 * h) * estimate
                x = x + sigma_next * np.sqrt(-np.expm1(-2 * h)) * noise(i)
            previous, h_previous = denoised, h


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [2, 3, 8, 32])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_factors_are_those_of_the_published_steps(name, grid, steps):
    z = np.random.default_rng(2).standard_normal((steps, 5000), dtype=np.float32)

    def network(x, t):
        return np.tanh(x * np.float32(1 + t))

    found = integrate(
        network, z[-1], SAMPLERS[name](SCHEDULE, steps, grid), z.__getitem__, lambda _: None
    )
    start = z[-1].astype(np.float64)
    if name == "heun":
        expected = heun(network, start, SCHEDULE.times(steps // 2 + 1, grid), steps)
    else:
        times = SCHEDULE.times(steps, grid)
        expected = published(name, network, start, times, z.__getitem__)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_only_denoises(name):
    *others, last = SAMPLERS[name](SCHEDULE, 5, "logsnr")
    assert not last.scalars[2:].any() and all(step.scalars[2:4].all() for step in others)
    assert all((step.of_noise > 0) is (name not in DETERMINISTIC) for step in others)
    np.testing.assert_allclose(last.scalars[0] ** 2 + last.scalars[1] ** 2, 1, rtol=1e-6)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_members_of_a_deterministic_sampler_differ_by_their_first_noise_alone(name):
    one, same = sample(name, 0.6, 9, cells=100), sample(name, 0.6, 9, cells=100)
    np.testing.assert_array_equal(one, same)
    assert one.std() > 0.3


@pytest.mark.parametrize("std", [0.3, 1.0])
def test_the_noise_scale_sets_the_spread_and_leaves_the_mean(std):
    spreads = []
    for scale in (0.8, 1.0, 1.2):
        result = sample("second-order", std, 8, scale=scale)
        assert result.mean() == pytest.approx(MEAN, rel=0.02)
        spreads.append(result.std())
    assert spreads[0] < 0.97 * spreads[1] and spreads[2] > 1.03 * spreads[1]


def test_a_bundles_presets_come_first_and_what_is_asked_for_before_them():
    own = {FAST: Preset("second-order", 8, 1.1)}
    assert chosen({}) == PRESETS[FAST] and chosen(own) == own[FAST]
    assert chosen(own, BEST) == PRESETS[BEST]
    assert chosen(own, FAST, noise_scale=1.3) == Preset("second-order", 8, 1.3)
    assert chosen(own, steps=8, sampler="second-order") == own[FAST]
    # its scale was fitted for its own steps, sampler and grid
    assert chosen(own, steps=12) == Preset("second-order", 12, 1.0)
    assert chosen(own, sampler="heun") == Preset("heun", 8, 1.0)
    assert chosen(own, time_grid="karras") == Preset("second-order", 8, 1.0, "karras")
    one = Preset("heun", 9, time_grid="time")
    assert chosen(own, one) == one and chosen(own, one, steps=5) == replace(one, steps=5)
    with pytest.raises(InputError, match="fast, best"):
        chosen(own, "slow")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sampler": "ddim"}, "euler-maruyama"),
        ({"steps": 1}, "expected 2 to"),
        ({"time_grid": "linear"}, "logsnr, karras, time"),
        ({"steps": 10**6}, "expected 2 to"),
        ({"noise_scale": 0.0}, "above 0"),
        ({"noise_scale": float("nan")}, "above 0"),
        ({"sampler": "heun", "noise_scale": 1.1}, "adds no noise"),
    ],
)
def test_ways_that_cannot_be_are_refused(values, says):
    with pytest.raises(InputError, match=says):
        Preset(**values)


def test_unknown_names_and_too_few_steps():
    with pytest.raises(InputError, match="euler-maruyama"):
        get_sampler("ddim")
    with pytest.raises(InputError, match="at least 2"):
        SCHEDULE.times(1)
    with pytest.raises(InputError, match="karras"):
        SCHEDULE.times(8, "linear")
