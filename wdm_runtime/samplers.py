"""Reverse-time samplers: pure NumPy loops that know no files, engines or tiles.

All share one contract: ``sampler(network, x, times, schedule, noise, on_step)`` where
``network(x, t)`` is the v-prediction, ``x`` the state at ``times[0]``, ``noise(i)`` the standard
normals of step ``i`` and ``on_step(i)`` is called after each step. They return the last denoised
estimate, shaped like ``x``. One network call a time; no noise after the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wdm_runtime.diffusion import VPSchedule, denoised_from_v, noise_from_v
from wdm_runtime.errors import InputError

State = npt.NDArray[np.float32]
Network = Callable[[State, float], State]
Noise = Callable[[int], State]
OnStep = Callable[[int], None]


class Sampler(Protocol):
    """The contract of every sampler."""

    def __call__(
        self,
        network: Network,
        x: State,
        times: npt.NDArray[np.float64],
        schedule: VPSchedule,
        noise: Noise,
        on_step: OnStep,
    ) -> State:
        """Integrate from ``times[0]`` and return the denoised estimate at ``times[-1]``."""
        ...


def euler_maruyama(
    network: Network,
    x: State,
    times: npt.NDArray[np.float64],
    schedule: VPSchedule,
    noise: Noise,
    on_step: OnStep,
) -> State:
    """Plain Euler-Maruyama on the reverse SDE (Song et al. 2021, arXiv 2011.13456).

    With B the integral of beta over the step: x <- x + B (x / 2 + score) + sqrt(B) z.
    """
    for i, t in enumerate(times):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        denoised = denoised_from_v(x, network(x, float(t)), alpha, sigma)
        if i + 1 < len(times):
            beta = 2.0 * math.log(schedule.alpha(times[i + 1]) / alpha)
            # x + B (x / 2 + (alpha D - x) / sigma^2) with the factors of x and D gathered
            x = np.float32(1.0 + beta * (0.5 - sigma**-2)) * x
            x += np.float32(beta * alpha / sigma**2) * denoised
            x += np.float32(math.sqrt(beta)) * noise(i)
        on_step(i)
    return denoised


def exponential(
    network: Network,
    x: State,
    times: npt.NDArray[np.float64],
    schedule: VPSchedule,
    noise: Noise,
    on_step: OnStep,
) -> State:
    """First-order exponential Euler-Maruyama: the linear part solved exactly (ancestral step).

    With s = (sigma' / sigma) sqrt(1 - (alpha / alpha')^2):
    x <- alpha' D + sqrt(sigma'^2 - s^2) eps + s z.
    """
    for i, t in enumerate(times):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        v = network(x, float(t))
        denoised = denoised_from_v(x, v, alpha, sigma)
        if i + 1 < len(times):
            alpha_next, sigma_next = schedule.alpha(times[i + 1]), schedule.sigma(times[i + 1])
            fresh = sigma_next / sigma * math.sqrt(1.0 - (alpha / alpha_next) ** 2)
            kept = math.sqrt(max(0.0, sigma_next**2 - fresh**2))
            x = np.float32(kept) * noise_from_v(x, v, alpha, sigma)
            x += np.float32(alpha_next) * denoised
            x += np.float32(fresh) * noise(i)
        on_step(i)
    return denoised


def second_order(
    network: Network,
    x: State,
    times: npt.NDArray[np.float64],
    schedule: VPSchedule,
    noise: Noise,
    on_step: OnStep,
) -> State:
    """Second-order exponential Euler-Maruyama: DPM-Solver++ 2M in SDE form (arXiv 2211.01095).

    With h half the log SNR increment and E = D + (D - D_prev) h / (2 h_prev), at first E = D:
    x <- (sigma' / sigma) exp(-h) x + alpha' (1 - exp(-2 h)) E + sigma' sqrt(1 - exp(-2 h)) z.
    """
    previous: State | None = None
    h_previous = 0.0
    for i, t in enumerate(times):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        denoised = denoised_from_v(x, network(x, float(t)), alpha, sigma)
        if i + 1 < len(times):
            alpha_next, sigma_next = schedule.alpha(times[i + 1]), schedule.sigma(times[i + 1])
            h = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)
            decay = -math.expm1(-2.0 * h)
            x = np.float32(sigma_next / sigma * math.exp(-h)) * x
            ahead = 0.0 if previous is None else h / (2.0 * h_previous)
            x += np.float32(alpha_next * decay * (1.0 + ahead)) * denoised
            if previous is not None:
                x -= np.float32(alpha_next * decay * ahead) * previous
            x += np.float32(sigma_next * math.sqrt(decay)) * noise(i)
            previous, h_previous = denoised, h
        on_step(i)
    return denoised


SAMPLERS: dict[str, Sampler] = {
    "euler-maruyama": euler_maruyama,
    "exponential": exponential,
    "second-order": second_order,
}
DEFAULT_SAMPLER = "second-order"
DEFAULT_STEPS = 8


def get_sampler(name: str) -> Sampler:
    """A sampler by name.

    Raises
    ------
    InputError
        The name is unknown.
    """
    if name not in SAMPLERS:
        raise InputError(
            f"Sampler '{name}' is unknown; expected one of {', '.join(SAMPLERS)}. "
            "Choose one with --sampler."
        )
    return SAMPLERS[name]
