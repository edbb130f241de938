"""What training draws: random crops of a store, as standardised wavelet coefficients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from wdm_export.config import NetworkConfig, TrainConfig
from wdm_export.data import PatchStore
from wdm_export.packet import WaveletPacket
from wdm_export.parallel import ALONE, Processes
from wdm_runtime.errors import InputError
from wdm_runtime.transform import CUBE_ROOT, LOG10, PrecipTransform, SubbandScale
from wdm_runtime.wavelets import WaveletSpec

_SCALE_CROPS = 1024
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    LOG10: torch.log10,
    CUBE_ROOT: lambda rate: rate.pow(1 / 3),
}


class CropSampler:
    """Random crops of a store: a day, then patch, position, flips and transposition.

    Days are drawn evenly, over several shards as far as whole fields allow; with ``evenly`` false
    patches are, so that a day counts as much as it has of them.

    ``crop_px`` counts what the wavelet needs around a crop too. Positions are multiples of the
    wavelet's stride, as tiles are when sampling, so the network sees each phase between
    coefficients and coarse cells as it will meet it. ``shard`` of ``shards`` keeps to a part of the
    fields.
    """

    def __init__(
        self,
        store: PatchStore,
        crop_px: int,
        stride: int,
        shard: int = 0,
        shards: int = 1,
        evenly: bool = True,
    ) -> None:
        self.store = store
        self.shard = shard
        by_day = store.by_day(shard, shards)
        self.days = list(by_day.values())
        # A day that several shards hold is drawn less in each, as far as that can even days out.
        held = Counter(day for number in range(shards) for day in store.by_day(number, shards))
        share = np.array([1 / held[day] if evenly else len(by_day[day]) for day in by_day])
        self.shares = share / share.sum() if by_day else share
        self.crop = crop_px
        self.stride = stride
        if not 0 < crop_px <= store.fine.shape[1] or crop_px % stride:
            raise InputError(
                f"Training crops with what their wavelet needs around them are {crop_px} cells "
                f"wide; expected at most the patch size {store.fine.shape[1]} and a multiple of "
                f"{stride}. Set --crop."
            )
        if not self.days:
            raise InputError(
                f"{store.path}: has no field for data shard {shard + 1} of {shards}; expected as "
                "many fields with rain as shards. Lower --shards, or prepare more files."
            )

    def draw(
        self,
        rng: np.random.Generator,
        count: int,
        intensity_spread: float = 0.0,
        turned: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Fine and coarse crops, each (count, 1, crop, crop) [mm h-1], float32.

        Rates of a crop are multiplied by exp(n), n normal with the standard deviation
        ``intensity_spread``. Without ``turned`` crops lie as in the field.
        """
        out = np.empty((2, count, 1, self.crop, self.crop), dtype=np.float32)
        choices = (self.store.fine.shape[1] - self.crop) // self.stride + 1
        for i in range(count):
            numbers = self.days[rng.choice(len(self.days), p=self.shares)]
            patch = numbers[rng.integers(len(numbers))]
            row, column = rng.integers(choices, size=2) * self.stride
            window = np.s_[patch, row : row + self.crop, column : column + self.crop]
            flip_y, flip_x, transpose = rng.integers(2, size=3) * turned
            for target, source in zip(out, (self.store.fine, self.store.coarse), strict=True):
                crop = source[window][:: 1 - 2 * flip_y, :: 1 - 2 * flip_x]
                target[i, 0] = crop.T if transpose else crop
        if intensity_spread:
            out *= np.exp(rng.normal(0, intensity_spread, (count, 1, 1, 1))).astype(np.float32)
        return torch.from_numpy(out[0]), torch.from_numpy(out[1])


class Coefficients:
    """Rain crops to raw wavelet coefficients of the residual and the condition.

    The wavelet's margin is cut off, as in the runtime: no coefficient sees around a crop's border.
    """

    def __init__(self, wavelet: WaveletSpec, transform: PrecipTransform) -> None:
        self.packet = WaveletPacket(wavelet)
        self.transform = transform

    def __call__(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 1, y, x) [mm h-1] twice, with margin -> residual and condition, (b, s, h, w)."""
        offset, shift = self.transform.offset_mm_h, self.transform.shift
        z = _FUNCTIONS[self.transform.name](torch.cat((fine, coarse)) + offset) + shift
        c_fine, c_coarse = self.packet(z)[self.packet.spec.inner].chunk(2)
        return c_fine - c_coarse, c_coarse

    def weights(self, coarse: Tensor, power: float) -> Tensor:
        """Weights of the errors, (b, 1, h, w): see ``TrainConfig.rain_weight``."""
        offset, spec = self.transform.offset_mm_h, self.packet.spec
        rain = avg_pool2d(coarse, spec.stride)[spec.inner]
        return ((rain + offset) / (1 + offset)).pow(power)


def measure_scales(
    samplers: Sequence[CropSampler],
    coefficients: Coefficients,
    seed: int,
    processes: Processes = ALONE,
) -> tuple[SubbandScale, SubbandScale]:
    """Mean and standard deviation of the residual's and the condition's subbands."""
    sums = torch.zeros(2, 2, coefficients.packet.spec.subbands, dtype=torch.float64)
    count = torch.zeros(1, dtype=torch.float64)
    draws = -(-_SCALE_CROPS // (64 * len(samplers) * processes.size))
    for sampler in samplers:
        rng = np.random.default_rng([seed, 2**32 - 1, sampler.shard])
        for _ in range(draws):
            for i, values in enumerate(coefficients(*sampler.draw(rng, 64))):
                values = values.double()
                sums[i, 0] += values.sum(dim=(0, 2, 3))
                sums[i, 1] += values.square().sum(dim=(0, 2, 3))
            count += values[:, 0].numel()
    sums, count = processes.total(sums), processes.total(count)
    mean = sums[:, 0] / count
    # Inputs without any residual (a constant field) still need a finite scale.
    std = (sums[:, 1] / count - mean.square()).clamp(min=1e-12).sqrt()
    residual, condition = (
        SubbandScale(tuple(m.tolist()), tuple(s.tolist())) for m, s in zip(mean, std, strict=True)
    )
    return residual, condition


def crop_samplers(
    store: PatchStore, config: TrainConfig, network: NetworkConfig, processes: Processes
) -> list[CropSampler]:
    """One for each data shard of this process."""
    stride, shards = network.wavelet.stride, config.shards
    if config.tv_weight and network.wavelet.levels and config.crop_px < 2 * stride:
        raise InputError(
            f"--crop got {config.crop_px} cells; expected at least {2 * stride}: one coefficient "
            "has no neighbour, and so no total variation. Set --crop."
        )
    crop_px = config.crop_px + 2 * network.wavelet.margin * stride
    return [
        CropSampler(store, crop_px, stride, shard, shards, config.even_days)
        for shard in processes.shards(config)
    ]
