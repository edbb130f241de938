"""Reverse-time samplers: what they do is a few numbers a step, and one loop that applies them.

Every sampler here is linear in the state x, the denoised estimate D, the previous one and the
noise z. So a sampler is a pure function of the schedule, the number of network calls and a time
grid that gives the factors of each step, and `integrate` is the loop in NumPy, which knows no
files, engines or tiles.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from wdm_runtime.diffusion import LOGSNR, VPSchedule, denoised_from_v
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


Sampler = Callable[[VPSchedule, int, str], tuple[Step, ...]]


def euler_maruyama(schedule: VPSchedule, calls: int, grid: str = LOGSNR) -> tuple[Step, ...]:
    """Plain Euler-Maruyama on the reverse SDE (Song et al. 2021, arXiv 2011.13456).

    With B the integral of beta over the step: x <- x + B (x / 2 + score) + sqrt(B) z.
    """
    times = schedule.times(calls, grid)
    steps = []
    for t, after in pairwise(times):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        beta = 2.0 * math.log(schedule.alpha(after) / alpha)
        # x + B (x / 2 + (alpha D - x) / sigma^2) with the factors of x and D gathered
        of_state = 1.0 + beta * (0.5 - sigma**-2)
        of_denoised = beta * alpha / sigma**2
        steps.append(Step(float(t), alpha, sigma, of_state, of_denoised, of_noise=math.sqrt(beta)))
    return (*steps, _last(schedule, times))


def exponential(schedule: VPSchedule, calls: int, grid: str = LOGSNR) -> tuple[Step, ...]:
    """First-order exponential Euler-Maruyama: the linear part solved exactly (ancestral step).

    With h half the log SNR increment:
    x <- (sigma' / sigma) exp(-h) x + alpha' (1 - exp(-2 h)) D + sigma' sqrt(1 - exp(-2 h)) z.
    """
    return _exponential(schedule, schedule.times(calls, grid), order=1, noise=True)


def second_order(schedule: VPSchedule, calls: int, grid: str = LOGSNR) -> tuple[Step, ...]:
    """Second-order exponential Euler-Maruyama: DPM-Solver++ 2M in SDE form (arXiv 2211.01095).

    `exponential` with E = D + (D - D_prev) h / (2 h_prev) for D from the second step on.
    """
    return _exponential(schedule, schedule.times(calls, grid), order=2, noise=True)


def dpm_solver_2m(schedule: VPSchedule, calls: int, grid: str = LOGSNR) -> tuple[Step, ...]:
    """DPM-Solver++ 2M on the probability-flow ODE (Lu et al. 2022, arXiv 2211.01095).

    With E of `second_order`: x <- (sigma' / sigma) x + alpha' (1 - exp(-h)) E. An ODE remembers
    where a run starts: unit noise lacks the mean's alpha m there, so that of Gaussian data with
    standard deviation s a mean of m (1 - alpha s / sqrt(alpha^2 s^2 + sigma^2)) comes out.
    """
    return _exponential(schedule, schedule.times(calls, grid), order=2, noise=False)


def _exponential(
    schedule: VPSchedule, times: npt.NDArray[np.float64], order: int, noise: bool
) -> tuple[Step, ...]:
    # The SDE removes noise twice as fast as the ODE, and puts half of it back anew.
    rate = 2.0 if noise else 1.0
    steps: list[Step] = []
    h_previous = 0.0
    for t, after in pairwise(times):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        alpha_next, sigma_next = schedule.alpha(after), schedule.sigma(after)
        h = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)
        decay = -math.expm1(-rate * h)
        ahead = h / (2.0 * h_previous) if order == 2 and steps else 0.0
        steps.append(
            Step(
                float(t),
                alpha,
                sigma,
                of_state=sigma_next / sigma * math.exp(h - rate * h),
                of_denoised=alpha_next * decay * (1.0 + ahead),
                of_previous=-alpha_next * decay * ahead,
                of_noise=sigma_next * math.sqrt(decay) if noise else 0.0,
            )
        )
        h_previous = h
    return (*steps, _last(schedule, times))


def heun(schedule: VPSchedule, calls: int, grid: str = LOGSNR) -> tuple[Step, ...]:
    """Heun's method on the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364, alg. 1).

    With y = x / alpha, s = sigma / alpha and r = s' / s, Euler's step is y' = r y + (1 - r) D.
    D' there corrects it: y' <- y' + (1 - r) / (2 r) (D' - D). So an interval takes two calls; of an
    even number the last interval gets one and is Euler's. Unit noise as in `dpm_solver_2m`.
    """
    times = schedule.times(calls // 2 + 1, grid)
    steps: list[Step] = []
    for t, after in pairwise(times):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        alpha_next, sigma_next = schedule.alpha(after), schedule.sigma(after)
        r = sigma_next * alpha / (alpha_next * sigma)
        kept = sigma_next / sigma  # alpha_next / alpha r
        steps.append(Step(float(t), alpha, sigma, kept, alpha_next * (1.0 - r)))
        if len(steps) + 1 < calls:
            gain = alpha_next * (1.0 - r) / (2.0 * r)
            steps.append(Step(float(after), alpha_next, sigma_next, 1.0, gain, -gain))
    return (*steps, _last(schedule, times))


def _last(schedule: VPSchedule, times: npt.NDArray[np.float64]) -> Step:
    t = float(times[-1])
    return Step(t, schedule.alpha(t), schedule.sigma(t))


def integrate(
    network: Network, x: State, steps: Sequence[Step], noise: Noise, on_step: OnStep
) -> State:
    """Apply steps in NumPy: one network call each, and no noise after the last.

    Parameters
    ----------
    network
        The v-prediction of a state at a time, in an array of its own: the estimate takes its place.
    x
        The state at the first step's time; it is not written.
    steps
        What a sampler gave.
    noise
        Standard normals of a step, shaped like ``x``. Called on a thread of its own, so that they
        are drawn while the network computes.
    on_step
        Called after each step.

    Returns
    -------
    The last denoised estimate, shaped like ``x``.
    """
    previous: State | None = None
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="noise") as beside:
        for i, step in enumerate(steps):
            drawing = beside.submit(noise, i) if step.of_noise else None
            denoised = denoised_from_v(x, network(x, step.t), step.alpha, step.sigma)
            if i + 1 < len(steps):
                # In place where the array is the loop's own: a domain's may be 100 MB.
                x = np.multiply(x, np.float32(step.of_state), out=x if i else None)
                x += np.float32(step.of_denoised) * denoised
                if previous is not None and step.of_previous:
                    previous *= np.float32(step.of_previous)
                    x += previous
                if drawing:
                    x += np.float32(step.of_noise) * drawing.result()
                    drawing = None  # or its numbers would live beside the next step's
                previous = denoised
            on_step(i)
    return denoised


SAMPLERS: dict[str, Sampler] = {
    "euler-maruyama": euler_maruyama,
    "exponential": exponential,
    "second-order": second_order,
    "heun": heun,
    "dpm-solver-2m": dpm_solver_2m,
}
DETERMINISTIC = ("heun", "dpm-solver-2m")  # only the first noise makes members differ


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
