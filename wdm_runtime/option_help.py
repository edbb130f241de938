"""Help of options that commands of both packages share."""

from typing import Final

from wdm_runtime.diffusion import GRIDS
from wdm_runtime.presets import FAST, PRESETS

PRESET_HELP: Final = f"Sampler, steps and noise: {' | '.join(PRESETS)}; default: {FAST}"
STEPS_HELP: Final = "Network calls a member; default: the preset's"
NOISE_SCALE_HELP: Final = (
    "Factor of the noise, more widens the ensemble; default: the preset's, or 1 with other steps, "
    "sampler or times"
)
TIME_GRID_HELP: Final = (
    f"Times of network calls: {' | '.join(GRIDS)} (even in log SNR, Karras's, even in t); default: "
    "the preset's"
)
VARIABLE_HELP: Final = (
    "Name of the variable, in GRIB2 also ecCodes' short name; default: the only precipitation"
)
ACCUMULATION_HELP: Final = (
    "Period of amounts where the file does not say it, for example 1h or 30min"
)
