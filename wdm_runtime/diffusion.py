"""The variance-preserving process: schedule, time grids, and what a v-prediction means.

x_t = alpha(t) x0 + sigma(t) eps with alpha^2 + sigma^2 = 1; the network predicts
v = alpha eps - sigma x0 (Salimans and Ho 2022, arXiv 2202.00512).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wdm_runtime.errors import InputError

Array = npt.NDArray[np.float32]

SCHEDULES = ("cosine",)
PREDICTIONS = ("v",)
LOGSNR = "logsnr"
GRIDS = (LOGSNR, "karras", "time")
KARRAS_RHO = 7.0  # Karras et al. 2022, arXiv 2206.00364, section 3
_MOST_LOGSNR = 100.0  # noise or signal e^50 times the other, far beyond what float32 tells apart


@dataclass(frozen=True)
class VPSchedule:
    """alpha(t) = cos(pi t / 2), sigma(t) = sin(pi t / 2) for t in [0, 1].

    Sampling runs from ``logsnr_start`` (nearly pure noise) to ``logsnr_end`` (nearly clean).
    """

    name: str = "cosine"
    logsnr_start: float = -6.0
    logsnr_end: float = 8.0

    def __post_init__(self) -> None:
        rising = -_MOST_LOGSNR <= self.logsnr_start < self.logsnr_end <= _MOST_LOGSNR
        if self.name not in SCHEDULES or not rising:
            raise InputError(
                f"Schedule '{self.name}' with log SNR from {self.logsnr_start} to "
                f"{self.logsnr_end} is unknown; expected one of {', '.join(SCHEDULES)} with a "
                f"rising log SNR within {_MOST_LOGSNR:g} of 0. Correct the schedule's settings."
            )

    @staticmethod
    def alpha(t: float) -> float:
        """Signal amplitude at time t."""
        return float(np.cos(0.5 * np.pi * t))

    @staticmethod
    def sigma(t: float) -> float:
        """Noise amplitude at time t."""
        return float(np.sin(0.5 * np.pi * t))

    @staticmethod
    def time_of_logsnr(logsnr: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Inverse of log(alpha^2 / sigma^2)."""
        return np.asarray(2.0 / np.pi * np.arctan(np.exp(-0.5 * logsnr)), dtype=np.float64)

    def times(self, steps: int, grid: str = LOGSNR) -> npt.NDArray[np.float64]:
        """Falling times at which the network is called, (steps,).

        Parameters
        ----------
        steps
            Network calls; at least 2.
        grid
            ``"logsnr"`` is even in log SNR, ``"karras"`` even in (sigma/alpha)^(1/7),
            ``"time"`` even in t.

        Raises
        ------
        InputError
            Fewer than 2 steps, or an unknown grid.
        """
        if steps < 2:
            raise InputError(f"Got {steps} sampling steps; expected at least 2. Raise --steps.")
        check_grid(grid)
        ends = np.array([self.logsnr_start, self.logsnr_end])
        fraction = np.linspace(0.0, 1.0, steps)
        if grid == LOGSNR:
            return self.time_of_logsnr(ends[0] + fraction * (ends[1] - ends[0]))
        if grid == "karras":
            first, last = np.exp(-0.5 * ends) ** (1.0 / KARRAS_RHO)
            ratio = (first + fraction * (last - first)) ** KARRAS_RHO
            return self.time_of_logsnr(-2.0 * np.log(ratio))
        first, last = self.time_of_logsnr(ends)
        return np.asarray(first + fraction * (last - first), dtype=np.float64)


def check_grid(name: str) -> None:
    """Whether there is such a time grid.

    Raises
    ------
    InputError
        There is none.
    """
    if name not in GRIDS:
        raise InputError(
            f"Time grid '{name}' is unknown; expected one of {', '.join(GRIDS)}. Choose one of "
            "them."
        )


def denoised_from_v(x: Array, v: Array, alpha: float, sigma: float) -> Array:
    """Tweedie's estimate of x0, D = alpha x - sigma v, in the place of v."""
    v *= np.float32(-sigma)
    v += np.float32(alpha) * x
    return v
