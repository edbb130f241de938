"""How members are drawn: a sampler, its calls at which times, and how much noise, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from wdm_runtime.diffusion import LOGSNR, VPSchedule, check_grid
from wdm_runtime.errors import InputError, check_number, whole
from wdm_runtime.records import OPTIONAL
from wdm_runtime.samplers import DETERMINISTIC, SAMPLERS, Step, get_sampler

FAST, BEST = "fast", "best"
_MOST_STEPS = 10_000  # a bundle may be anybody's
_MOST_NOISE = 10.0


@dataclass(frozen=True)
class Preset:
    """A way to draw members.

    Parameters
    ----------
    sampler
        A name from `wdm_runtime.samplers`.
    steps
        Network calls of a member, at least 2.
    noise_scale
        Factor of the noise that a stochastic sampler adds at each step. 1 is the reverse SDE
        itself; more widens an ensemble that is too narrow: few steps lose variance, and a denoiser
        that has not learnt all returns too little. Fit it on data that nothing is judged by.
    time_grid
        One of `wdm_runtime.diffusion.GRIDS`: at which times the network is called.
    """

    sampler: str = "second-order"
    steps: int = 8
    noise_scale: float = 1.0
    time_grid: str = field(default=LOGSNR, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        get_sampler(self.sampler)
        check_grid(self.time_grid)
        check_number("noise_scale", self.noise_scale)
        if not 2 <= whole("steps", self.steps) <= _MOST_STEPS:
            raise InputError(
                f"Got {self.steps} sampling steps; expected 2 to {_MOST_STEPS}. Correct --steps."
            )
        if not 0 < self.noise_scale <= _MOST_NOISE:  # neither is NaN
            raise InputError(
                f"Got the noise scale {self.noise_scale}; expected a number above 0 and up to "
                f"{_MOST_NOISE:g}, 1 for the SDE itself. Correct --noise-scale."
            )
        if self.sampler in DETERMINISTIC and self.noise_scale != 1:
            raise InputError(
                f"Got the noise scale {self.noise_scale} for the sampler '{self.sampler}', which "
                "adds no noise; expected 1. Leave out --noise-scale or choose another --sampler."
            )

    def plan(self, schedule: VPSchedule) -> tuple[Step, ...]:
        """The steps of a run."""
        steps = SAMPLERS[self.sampler](schedule, self.steps, self.time_grid)
        return tuple(replace(step, of_noise=self.noise_scale * step.of_noise) for step in steps)

    def __str__(self) -> str:
        scale = "" if self.noise_scale == 1 else f", noise x {self.noise_scale:g}"
        grid = "" if self.time_grid == LOGSNR else f", {self.time_grid} grid"
        return f"{self.sampler}, {self.steps} steps{grid}{scale}"


# What a bundle without presets of its own gets.
PRESETS = {FAST: Preset(), BEST: Preset(steps=20)}


def chosen(
    presets: Mapping[str, Preset],
    preset: str | Preset | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    noise_scale: float | None = None,
    time_grid: str | None = None,
) -> Preset:
    """A preset with what else is asked for.

    A preset's noise scale was fitted to its own sampler, steps and grid; if one of them is
    overridden it falls back to 1.

    Parameters
    ----------
    presets
        A bundle's own; `PRESETS` has those it lacks.
    preset
        A name among them, or one itself; None for the default, ``"fast"``.
    sampler, steps, noise_scale, time_grid
        Taken from the preset where None.

    Raises
    ------
    InputError
        The preset, sampler or grid is unknown, or a number out of range.
    """
    own = preset if isinstance(preset, Preset) else _named(presets, preset or FAST)
    asked = (
        sampler or own.sampler,
        own.steps if steps is None else steps,
        time_grid or own.time_grid,
    )
    if noise_scale is None:
        noise_scale = own.noise_scale if asked == (own.sampler, own.steps, own.time_grid) else 1.0
    return Preset(*asked[:2], noise_scale, asked[2])


def _named(presets: Mapping[str, Preset], name: str) -> Preset:
    known = {**PRESETS, **presets}
    if name not in known:
        raise InputError(
            f"Preset '{name}' is unknown; expected one of {', '.join(known)}. Choose one with "
            "--preset."
        )
    return known[name]
