"""Samplers on Gaussians, whose score is known: mean and spread must come back."""

import numpy as np
import pytest

from wdm_runtime.diffusion import GRIDS, VPSchedule, denoised_from_v
from wdm_runtime.errors import InputError
from wdm_runtime.samplers import DEFAULT_SAMPLER, DEFAULT_STEPS, SAMPLERS, get_sampler, integrate

SCHEDULE = VPSchedule()
MEAN = 0.5


def sample(name, std, steps, cells=200_000, grid="logsnr"):
    rng = np.random.default_rng(0)

    def network(x, t):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        denoised = MEAN + gain * (x - alpha * MEAN)
        return (alpha * (x - alpha * denoised) / sigma - sigma * denoised).astype(np.float32)

    def noise(step):
        return rng.standard_normal(cells, dtype=np.float32)

    calls = []
    times = SCHEDULE.times(steps, grid)
    sampler_steps = get_sampler(name)(times, SCHEDULE)
    result = integrate(network, noise(-1), sampler_steps, noise, calls.append)
    assert calls == list(range(steps))
    return result.astype(np.float64)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("std", [0.3, 1.0])
def test_mean_and_spread_at_a_thousand_calls(name, std):
    result = sample(name, std, 1000, cells=60_000)
    assert result.mean() == pytest.approx(MEAN, rel=0.02)
    assert result.std() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("std", [0.3, 0.6, 1.0])
def test_default_sampler_keeps_the_spread_at_its_default_calls(std):
    result = sample(DEFAULT_SAMPLER, std, DEFAULT_STEPS)
    assert result.mean() == pytest.approx(MEAN, rel=0.02)
    assert result.std() == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_noise_is_drawn_for_the_last_call(name):
    drawn = []

    def noise(step):
        drawn.append(step)
        return np.zeros(3, dtype=np.float32)

    x = np.ones(3, dtype=np.float32)
    steps = SAMPLERS[name](SCHEDULE.times(5), SCHEDULE)
    integrate(lambda x, t: 0 * x, x, steps, noise, lambda _: None)
    assert drawn == [0, 1, 2, 3]
    np.testing.assert_array_equal(x, 1)  # the caller's state is not written


def test_tweedie_is_exact_for_an_exact_v():
    rng = np.random.default_rng(1)
    x0, eps = rng.standard_normal((2, 1000), dtype=np.float32)
    for t in (0.01, 0.4, 0.97):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        x, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
        np.testing.assert_allclose(denoised_from_v(x, v, alpha, sigma), x0, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_time_grids_fall_between_the_schedules_ends(grid):
    times = SCHEDULE.times(12, grid)
    assert np.all(np.diff(times) < 0)
    logsnr = [2 * np.log(SCHEDULE.alpha(t) / SCHEDULE.sigma(t)) for t in times[[0, -1]]]
    np.testing.assert_allclose(logsnr, [SCHEDULE.logsnr_start, SCHEDULE.logsnr_end], rtol=1e-6)


def published(name, network, x, times, noise):
    """Each sampler as its paper writes it, in float64."""
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
            x = sigma_next / sigma * np.exp(-h) * x - alpha_next * np.expm1(-2 * h) * estimate
            x = x + sigma_next * np.sqrt(-np.expm1(-2 * h)) * noise(i)
            previous, h_previous = denoised, h


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [2, 8, 32])
def test_the_factors_are_those_of_the_published_steps(name, steps):
    z = np.random.default_rng(2).standard_normal((steps, 5000), dtype=np.float32)
    times = SCHEDULE.times(steps)

    def network(x, t):
        return np.tanh(x * np.float32(1 + t))

    found = integrate(
        network, z[-1], get_sampler(name)(times, SCHEDULE), z.__getitem__, lambda _: None
    )
    expected = published(name, network, z[-1].astype(np.float64), times, z.__getitem__)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_only_denoises(name):
    *others, last = get_sampler(name)(SCHEDULE.times(5), SCHEDULE)
    assert not last.scalars[2:].any() and all(step.scalars[[2, 3, 5]].all() for step in others)
    np.testing.assert_allclose(last.scalars[0] ** 2 + last.scalars[1] ** 2, 1, rtol=1e-6)


def test_unknown_names_and_too_few_steps():
    with pytest.raises(InputError, match="euler-maruyama"):
        get_sampler("ddim")
    with pytest.raises(InputError, match="at least 2"):
        SCHEDULE.times(1)
    with pytest.raises(InputError, match="karras"):
        SCHEDULE.times(8, "linear")
