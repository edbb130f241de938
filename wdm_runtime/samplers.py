"""Reverse-time samplers: what they do is a few numbers a step, and one loop that applies them.

Every sampler here is linear in the state x, the denoised estimate D, the previous one and the
noise z. So a sampler is a pure function of times and schedule that gives the factors of each step,
and `integrate` is the loop in NumPy, which knows no files, engines or tiles.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from wdm_runtime.diffusion import VPSchedule, denoised_from_v
from wdm_runtime.errors import InputError

State = npt.NDArray[np.float32]
Network = Callable[[State, float], State]
Noise = Callable[[int], State]
OnStep = Callable[[int], None]


@dataclass(frozen=True)
class Step:
    """One network call at time t and the update after it.

    D = alpha x - sigma v; x <- of_state x + of_denoised D + of_previous D_prev + of_noise z. The
    last step only gives D: all its factors of the update are 0.
    """

    t: float
    alpha: float
    sigma: float
    of_state: float = 0.0
    of_denoised: float = 0.0
    of_previous: float = 0.0
    of_noise: float = 0.0

    @property
    def scalars(self) -> State:
        """All but the time as float32, (6,), in the order of the fields."""
        return np.array(dataclasses.astuple(self)[1:], dtype=np.float32)


Sampler = Callable[[npt.NDArray[np.float64], VPSchedule], tuple[Step, ...]]


def euler_maruyama(times: npt.NDArray[np.float64], schedule: VPSchedule) -> tuple[Step, ...]:
    """Plain Euler-Maruyama on the reverse SDE (Song et al. 2021, arXiv 2011.13456).

    With B the integral of beta over the step: x <- x + B (x / 2 + score) + sqrt(B) z.
    """
    steps = []
    for t, after in pairwise(times):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        beta = 2.0 * math.log(schedule.alpha(after) / alpha)
        # x + B (x / 2 + (alpha D - x) / sigma^2) with the factors of x and D gathered
        of_state = 1.0 + beta * (0.5 - sigma**-2)
        of_denoised = beta * alpha / sigma**2
        steps.append(Step(float(t), alpha, sigma, of_state, of_denoised, of_noise=math.sqrt(beta)))
    return (*steps, _last(times, schedule))


def exponential(times: npt.NDArray[np.float64], schedule: VPSchedule) -> tuple[Step, ...]:
    """First-order exponential Euler-Maruyama: the linear part solved exactly (ancestral step).

    With h half the log SNR increment:
    x <- (sigma' / sigma) exp(-h) x + alpha' (1 - exp(-2 h)) D + sigma' sqrt(1 - exp(-2 h)) z.
    """
    return _exponential(times, schedule, order=1)


def second_order(times: npt.NDArray[np.float64], schedule: VPSchedule) -> tuple[Step, ...]:
    """Second-order exponential Euler-Maruyama: DPM-Solver++ 2M in SDE form (arXiv 2211.01095).

    `exponential` with E = D + (D - D_prev) h / (2 h_prev) for D from the second step on.
    """
    return _exponential(times, schedule, order=2)


def _exponential(
    times: npt.NDArray[np.float64], schedule: VPSchedule, order: int
) -> tuple[Step, ...]:
    steps: list[Step] = []
    h_previous = 0.0
    for t, after in pairwise(times):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        alpha_next, sigma_next = schedule.alpha(after), schedule.sigma(after)
        h = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)
        decay = -math.expm1(-2.0 * h)
        ahead = h / (2.0 * h_previous) if order == 2 and steps else 0.0
        steps.append(
            Step(
                float(t),
                alpha,
                sigma,
                of_state=sigma_next / sigma * math.exp(-h),
                of_denoised=alpha_next * decay * (1.0 + ahead),
                of_previous=-alpha_next * decay * ahead,
                of_noise=sigma_next * math.sqrt(decay),
            )
        )
        h_previous = h
    return (*steps, _last(times, schedule))


def _last(times: npt.NDArray[np.float64], schedule: VPSchedule) -> Step:
    t = float(times[-1])
    return Step(t, schedule.alpha(t), schedule.sigma(t))


def integrate(
    network: Network, x: State, steps: Sequence[Step], noise: Noise, on_step: OnStep
) -> State:
    """Apply steps in NumPy: one network call each, and no noise after the last.

    Parameters
    ----------
    network
        The v-prediction of a state at a time.
    x
        The state at the first step's time; it is not written.
    steps
        What a sampler gave.
    noise
        Standard normals of a step, shaped like ``x``.
    on_step
        Called after each step.

    Returns
    -------
    The last denoised estimate, shaped like ``x``.
    """
    previous: State | None = None
    for i, step in enumerate(steps):
        denoised = denoised_from_v(x, network(x, step.t), step.alpha, step.sigma)
        if i + 1 < len(steps):
            x = np.float32(step.of_state) * x
            x += np.float32(step.of_denoised) * denoised
            if step.of_previous:
                x += np.float32(step.of_previous) * previous
            x += np.float32(step.of_noise) * noise(i)
            previous = denoised
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
