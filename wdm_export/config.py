"""What a network is and how it is trained: the facts a checkpoint carries."""

from __future__ import annotations

from dataclasses import dataclass, field

from wdm_runtime.diffusion import VPSchedule
from wdm_runtime.errors import InputError
from wdm_runtime.transform import PrecipTransform, SubbandScale
from wdm_runtime.wavelets import WaveletSpec

DIFFUSION, REGRESSION = "diffusion", "regression"
OBJECTIVES = (DIFFUSION, REGRESSION)
TIME_SAMPLINGS = ("uniform", "logsnr")
V, EPS, X0 = LOSS_TARGETS = ("v", "eps", "x0")
COSINE, LINEAR, CONSTANT = RATE_SCHEDULES = ("cosine", "linear", "constant")
# After 90 minutes, what `build` trains for, better than the cube root: benches/README.
DEFAULT_TRANSFORM = PrecipTransform()
_MOST = 2.0**63  # of torch's seeds, and of anything else
# Norms have at least two groups, of two channels or more: of one alone a norm would subtract what
# the time adds to it. The sinusoids of the time come in pairs.
_CHANNEL_MULTIPLE = 4
_NORM_MULTIPLE = 2


@dataclass(frozen=True)
class NetworkConfig:
    """The conditional U-Net on the coefficients of one wavelet.

    ``wavelet.levels`` 2 and 1 are WDM-2 and WDM-1, 0 is the pixel model. ``norm_channels`` are
    those of a group of a norm: with 8 of them, all but the finest depth of a 288-cell tile has
    groups that a GPU normalises in one kernel. ``attention`` follows the coarsest encoder blocks.
    """

    wavelet: WaveletSpec = field(default_factory=WaveletSpec)
    base_channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: bool = True
    head_channels: int = 64
    norm_channels: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        least = min((self.norm_channels, self.head_channels, self.blocks, *self.multipliers))
        channels_fit = (
            self.base_channels > 0
            and self.base_channels % _CHANNEL_MULTIPLE == 0
            and self.norm_channels % _NORM_MULTIPLE == 0
        )
        if not channels_fit or not self.multipliers or least < 1:
            raise InputError(
                f"The network has {self.base_channels} base channels, multipliers "
                f"{self.multipliers}, {self.blocks} blocks, norms of {self.norm_channels} and "
                f"heads of {self.head_channels} channels; expected a multiple of "
                f"{_CHANNEL_MULTIPLE} base channels, an even number in a norm, and 1 or more of "
                "the others. Correct the network's settings."
            )
        if self.attention and self.base_channels * self.multipliers[-1] % self.head_channels:
            raise InputError(
                f"Attention over {self.base_channels * self.multipliers[-1]} channels cannot have "
                f"heads of {self.head_channels}; expected a divisor. Set head_channels, or leave "
                "attention out."
            )

    def check_edge(self, edge_px: int, option: str) -> None:
        """Refuse crops and tiles that cannot be halved once for each level and each depth.

        Raises
        ------
        InputError
            ``edge_px`` is no such size; the message names ``option``.
        """
        multiple = self.wavelet.stride * 2 ** (len(self.multipliers) - 1)
        if edge_px < 1 or edge_px % multiple:
            raise InputError(
                f"{option} got {edge_px} cells; expected a multiple of {multiple}, which "
                f"{self.wavelet.levels} wavelet levels and {len(self.multipliers)} depths halve "
                f"evenly. Correct {option}."
            )


@dataclass(frozen=True)
class TrainConfig:
    """One training run. ``minutes`` of computing or ``steps``, whichever is given, ends it.

    ``batch`` counts the crops of a step over all processes. ``shards`` splits the data by field,
    and each shard gives an equal part of the batch: however many processes share them, a run draws
    the same crops.

    ``rain_weight`` p weighs errors by ((rate + offset) / (1 + offset))^p of the interpolated coarse
    rate [mm h-1]: with 0 errors of the transformed rate count alike in light and heavy rain, with
    2 those of the rate, of the cube root with 4/3.

    ``ema_decay`` is the most that the averaged weights keep of themselves in a step: they span a
    ninth of the steps so far until then, which takes 9000 of them with 0.999.

    ``time_sampling`` draws times evenly in t or in log SNR between the schedule's ends.
    ``loss_target`` is whose error the loss measures: of v, or of the noise or the clean
    coefficients that follow from v, which count late or early times less. ``intensity_spread`` is
    the standard deviation of the logarithm of a factor that each crop's rates are multiplied by.

    ``rate_schedule`` is how the learning rate falls after its linear warm-up: by half a cosine or a
    line to 0 at the end of the run, or not at all. ``even_days`` draws storm days evenly, however
    many patches each has; ``turns`` flips and transposes crops at random.

    ``threads`` None takes torch's own number, OMP_NUM_THREADS or a core each.

    ``objective`` ``"regression"`` trains a deterministic baseline: the same network is shown no
    noise, x = 0 at t = 1, and learns the mean of the standardised coefficients.
    """

    minutes: float | None = None
    steps: int | None = None
    batch: int = 32
    crop_px: int = 144
    learning_rate: float = 5e-4
    rate_schedule: str = COSINE
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    tv_weight: float = 1e-5
    rain_weight: float = 0.0
    time_sampling: str = TIME_SAMPLINGS[0]
    loss_target: str = V
    intensity_spread: float = 0.0
    even_days: bool = True
    turns: bool = True
    seed: int = 0
    threads: int | None = None
    shards: int = 1
    checkpoint_minutes: float = 10.0
    objective: str = DIFFUSION

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise InputError(
                f"Training got minutes={self.minutes} and steps={self.steps}; expected exactly "
                "one of them. Give --minutes or --steps."
            )
        for name, known in (
            ("objective", OBJECTIVES),
            ("time_sampling", TIME_SAMPLINGS),
            ("loss_target", LOSS_TARGETS),
            ("rate_schedule", RATE_SCHEDULES),
        ):
            if getattr(self, name) not in known:
                raise InputError(
                    f"--{name.replace('_', '-')} got '{getattr(self, name)}'; expected one of "
                    f"{', '.join(known)}. Correct it."
                )
        for name in ("time_sampling", "loss_target"):
            default = getattr(TrainConfig, name)
            if self.objective == REGRESSION and getattr(self, name) != default:
                raise InputError(
                    f"--{name.replace('_', '-')} got '{getattr(self, name)}' for a regression, "
                    f"which knows no times; expected '{default}'. Leave it out."
                )
        if not 0 <= self.ema_decay < 1:
            raise InputError(
                f"--ema-decay got {self.ema_decay}; expected 0 to less than 1. Correct it."
            )
        counts = ("minutes", "steps", "batch", "threads", "shards", "warmup_steps")
        positive = (*counts, "learning_rate")
        others = ("tv_weight", "rain_weight", "intensity_spread", "seed", "checkpoint_minutes")
        for name in (*positive, *others):
            value = getattr(self, name)
            if value is None:
                continue
            if not (value > 0 if name in positive else value >= 0) or not value < _MOST:
                raise InputError(
                    f"Training got {name}={value}; expected a "
                    f"{'positive number' if name in positive else 'number not below 0'}, and less "
                    f"than {_MOST:g}. Correct --{name.replace('_', '-')}."
                )
        if not self.even_days and self.shards > 1:
            raise InputError(
                f"--even-patches got {self.shards} data shards, each of which gives an equal part "
                "of the batch however many patches it has; expected one. Leave out one of them."
            )
        if self.batch % self.shards:
            raise InputError(
                f"Training got {self.shards} data shards and {self.batch} crops a step; expected a "
                "number of shards that divides them. Correct --shards or --batch."
            )


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines a trained model besides its weights."""

    network: NetworkConfig
    factor: int
    transform: PrecipTransform
    schedule: VPSchedule
    residual_scale: SubbandScale
    condition_scale: SubbandScale
