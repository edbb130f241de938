"""What `wdm-export check` measured of a bundle in reduced precision, as its manifest keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field

from wdm_runtime.diffusion import LOGSNR
from wdm_runtime.errors import InputError
from wdm_runtime.presets import Preset
from wdm_runtime.records import OPTIONAL


@dataclass(frozen=True)
class Peak:
    """The largest magnitude of a tensor, the op that makes it, and the part of the network."""

    tensor: str
    op: str
    part: str
    largest: float


@dataclass(frozen=True)
class Ranges:
    """What fp16 has to hold: magnitudes over whole sampling runs, computed in fp32.

    ``tensors`` is how many were looked at, ``largest`` the largest ones in falling order, and
    ``norm_input`` the largest among inputs of norms, whose squares are summed.
    """

    tensors: int
    largest: tuple[Peak, ...]
    norm_input: Peak

    def __post_init__(self) -> None:
        if not self.largest:
            raise InputError("The ranges name no tensor; expected the largest. Check again.")


@dataclass(frozen=True)
class PrecisionRun:
    """Sampling runs in a reduced precision against fp32 with the same noise.

    Parameters
    ----------
    precision, engine
        What it computed in, and how.
    mean_rate_mm_h, largest_rate_mm_h
        Of fp32, over the cells that are wet in either [mm h-1].
    mean_difference_mm_h, max_difference_mm_h
        Of the absolute difference over the same cells [mm h-1].
    spread_share
        Mean absolute difference over that of two members in fp32.
    spectrum_db
        Log ratio of the radially averaged power spectra by wavelength band [km], a mean of tiles.
    wet_fraction_fp32, wet_fraction
        Share of all cells at or above the dry threshold.
    cells_fp32, cells
        Number of cells at or above each rate [mm h-1].
    fp32_reruns
        Batches that were not finite and had to be computed again in fp32.
    """

    precision: str
    engine: str
    mean_rate_mm_h: float
    largest_rate_mm_h: float
    mean_difference_mm_h: float
    max_difference_mm_h: float
    spread_share: float
    spectrum_db: dict[str, float]
    wet_fraction_fp32: float
    wet_fraction: float
    cells_fp32: dict[str, int]
    cells: dict[str, int]
    fp32_reruns: int


@dataclass(frozen=True)
class PrecisionCheck:
    """A check that passed, with all it takes to make it again.

    ``tiles`` were the wettest of ``files``; ``not_measured`` gives the reason for each precision
    that could not be had. ``noise_scale`` is None in older records, which lack it as they lack the
    time grid.
    """

    command: str
    files: tuple[str, ...]
    versions: dict[str, str]
    tiles: int
    members: int
    seed: int
    steps: int
    sampler: str
    consistency: str
    ranges: Ranges
    runs: tuple[PrecisionRun, ...]
    not_measured: dict[str, str]
    noise_scale: float | None = field(default=None, metadata=OPTIONAL)
    time_grid: str = field(default=LOGSNR, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        _ = self.way  # refuses a sampler that there is not

    @property
    def way(self) -> Preset:
        """How the members were drawn."""
        return Preset(self.sampler, self.steps, self.noise_scale or 1.0, self.time_grid)
