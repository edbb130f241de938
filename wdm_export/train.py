"""Training: patches to crops, the loop, EMA, checkpoints and the log.

Every step draws from generators seeded with (seed, step), so that a resumed run sees the data and
noise that an uninterrupted one would have seen.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from wdm_export.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from wdm_export.config import ModelConfig, NetworkConfig, TrainConfig
from wdm_export.data import PatchStore
from wdm_export.haar import WaveletPacket
from wdm_export.losses import amplitudes, training_loss
from wdm_export.unet import UNet
from wdm_runtime.diffusion import VPSchedule
from wdm_runtime.errors import InputError, OutputError
from wdm_runtime.grid import same_spacing
from wdm_runtime.transform import PrecipTransform, SubbandScale

CHECKPOINT_NAME = "checkpoint.safetensors"
WEIGHTS_NAME = "weights.safetensors"
LOG_NAME = "log.csv"
_LOG_EVERY = 10
_SCALE_CROPS = 1024


@dataclass(frozen=True)
class Progress:
    """What a progress display shows after each step."""

    step: int
    loss: float
    samples_per_s: float
    seconds: float
    share: float

    @property
    def seconds_left(self) -> float:
        """Estimate from the share of the run that is done."""
        return self.seconds * (1 - self.share) / max(self.share, 1e-9)


class CropSampler:
    """Random crops of a store: days drawn evenly, then patch, position, flips and transposition.

    Positions are multiples of the wavelet's stride, as tiles are when sampling, so the network sees
    each phase between coefficients and coarse cells as it will meet it.
    """

    def __init__(self, store: PatchStore, crop_px: int, stride: int) -> None:
        self.store = store
        self.days = list(store.by_day().values())
        self.crop = crop_px
        self.stride = stride
        if not 0 < crop_px <= store.fine.shape[1] or crop_px % stride:
            raise InputError(
                f"Training crops are {crop_px} cells wide; expected at most the patch size "
                f"{store.fine.shape[1]} and a multiple of {stride}. Set --crop."
            )

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Fine and coarse crops, each (count, 1, crop, crop) [mm h-1], float32."""
        out = np.empty((2, count, 1, self.crop, self.crop), dtype=np.float32)
        choices = (self.store.fine.shape[1] - self.crop) // self.stride + 1
        for i in range(count):
            numbers = self.days[rng.integers(len(self.days))]
            patch = numbers[rng.integers(len(numbers))]
            row, column = rng.integers(choices, size=2) * self.stride
            window = np.s_[patch, row : row + self.crop, column : column + self.crop]
            flip_y, flip_x, transpose = rng.integers(2, size=3)
            for target, source in zip(out, (self.store.fine, self.store.coarse), strict=True):
                crop = source[window][:: 1 - 2 * flip_y, :: 1 - 2 * flip_x]
                target[i, 0] = crop.T if transpose else crop
        return torch.from_numpy(out[0]), torch.from_numpy(out[1])


class Coefficients:
    """Rain crops to raw wavelet coefficients of the residual and the condition."""

    def __init__(self, network: NetworkConfig, transform: PrecipTransform) -> None:
        self.packet = WaveletPacket(network.wavelet)
        self.transform = transform

    def __call__(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 1, y, x) [mm h-1] twice -> residual and condition, (b, s, h, w)."""
        offset, shift = self.transform.offset_mm_h, self.transform.shift
        z = torch.log10(torch.cat((fine, coarse)) + offset) + shift
        c_fine, c_coarse = self.packet(z).chunk(2)
        return c_fine - c_coarse, c_coarse


def measure_scales(
    sampler: CropSampler, coefficients: Coefficients, seed: int
) -> tuple[SubbandScale, SubbandScale]:
    """Mean and standard deviation of the residual's and the condition's subbands."""
    rng = np.random.default_rng([seed, 2**32 - 1])
    sums = torch.zeros(2, 2, coefficients.packet.spec.subbands, dtype=torch.float64)
    count = 0
    for _ in range(_SCALE_CROPS // 64):
        for i, values in enumerate(coefficients(*sampler.draw(rng, 64))):
            values = values.double()
            sums[i, 0] += values.sum(dim=(0, 2, 3))
            sums[i, 1] += values.square().sum(dim=(0, 2, 3))
        count += values[:, 0].numel()
    mean = sums[:, 0] / count
    # Inputs without any residual (a constant field) still need a finite scale.
    std = (sums[:, 1] / count - mean.square()).clamp(min=1e-12).sqrt()
    residual, condition = (
        SubbandScale(tuple(m.tolist()), tuple(s.tolist())) for m, s in zip(mean, std, strict=True)
    )
    return residual, condition


def _stratified_times(generator: torch.Generator, count: int) -> Tensor:
    """One uniform time in each of ``count`` equal parts of [0, 1): a mean with less variance."""
    return (torch.arange(count) + torch.rand(count, generator=generator)) / count


def _learning_rate(config: TrainConfig, step: int, share: float) -> float:
    """Linear warm-up, then a half cosine down to 0 over the run."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


class Trainer:
    """One run in one folder. Make it with `start` or `resume`, then call `run`."""

    def __init__(self, store: PatchStore, folder: Path, state: Checkpoint) -> None:
        config = state.training
        torch.set_num_threads(config.threads)
        self.folder, self.store, self.config, self.model = folder, store, config, state.model
        self.step, self.seconds = state.step, state.seconds
        self.sampler = CropSampler(store, config.crop_px, state.model.network.wavelet.stride)
        self.coefficients = Coefficients(state.model.network, state.model.transform)
        torch.manual_seed(config.seed)  # initial weights
        self.network = UNet(state.model.network).to(memory_format=torch.channels_last)
        self.names = [name for name, _ in self.network.named_parameters()]
        self.ema = {k: v.detach().clone() for k, v in self.network.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
        )
        if state.tensors:
            weights = state.group("model") or state.group("ema")
            self.network.load_state_dict({k: v.float() for k, v in weights.items()})
            for name, value in state.group("ema").items():
                self.ema[name].copy_(value)
        if state.resumable:
            restore_optimizer(self.optimizer, self.names, state)
        self._scales = tuple(
            torch.tensor([scale.mean, scale.std], dtype=torch.float32)[:, None, :, None, None]
            for scale in (state.model.residual_scale, state.model.condition_scale)
        )

    @classmethod
    def start(
        cls,
        store: PatchStore,
        folder: str | Path,
        network: NetworkConfig,
        config: TrainConfig,
        weights: Checkpoint | None = None,
    ) -> Trainer:
        """Begin a run, from random weights or from released ones.

        Raises
        ------
        InputError
            The folder already holds a run, the crops do not fit the network or the patches, or
            the weights are of another network.
        OutputError
            The folder cannot be made.
        """
        folder = Path(folder)
        if (folder / CHECKPOINT_NAME).exists():
            raise InputError(
                f"{folder}: already holds a run; expected a new folder. Continue it with --resume "
                "or choose another folder with -o."
            )
        network.check_edge(config.crop_px, "--crop")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot be made ({error.strerror}). Choose another folder with -o."
            ) from error
        if weights is None:
            transform = PrecipTransform()
            sampler = CropSampler(store, config.crop_px, network.wavelet.stride)
            scales = measure_scales(sampler, Coefficients(network, transform), config.seed)
            model = ModelConfig(network, store.factor, transform, VPSchedule(), *scales)
            state = Checkpoint(model, config, 0, 0.0, (), store.domain, {})
        else:
            if weights.model.network != network or weights.model.factor != store.factor:
                raise InputError(
                    f"The initial weights are of {weights.model.network}; expected {network}. "
                    "Train with the same network settings and factor."
                )
            if not same_spacing(store.domain.spacing_km, weights.domain.spacing_km):
                raise InputError(
                    f"{store.path}: holds patches of {store.domain.spacing_km:g} km cells; the "
                    f"initial weights expect {weights.domain.spacing_km:g} km. Prepare fields of "
                    "that spacing, or train without --weights."
                )
            state = replace(
                weights.released(), training=config, step=0, seconds=0.0, domain=store.domain
            )
        return cls(store, folder, state)

    @classmethod
    def resume(
        cls,
        store: PatchStore,
        folder: str | Path,
        minutes: float | None = None,
        steps: int | None = None,
    ) -> Trainer:
        """Continue the run of a folder from its last checkpoint.

        ``minutes`` or ``steps`` set a new total, to which the learning rate's schedule is fitted.
        """
        state = Checkpoint.load(Path(folder) / CHECKPOINT_NAME)
        if minutes is not None or steps is not None:
            state = replace(state, training=replace(state.training, minutes=minutes, steps=steps))
        return cls(store, Path(folder), state)

    def share(self) -> float:
        """How much of the run is done, 0 to 1."""
        if self.config.steps is not None:
            return self.step / self.config.steps
        return self.seconds / (60.0 * float(self.config.minutes or 1.0))

    def run(self, on_step: Callable[[Progress], None] | None = None) -> Checkpoint:
        """Train to the end; write checkpoints, log and released weights; return the last state."""
        last_save = self.seconds
        self._cut_log()
        with open(self.folder / LOG_NAME, "a", newline="") as log:
            writer = self._log_writer(log)
            losses: list[tuple[float, float]] = []
            while self.share() < 1.0:
                began = time.perf_counter()
                losses.append(self._train_step())
                took = time.perf_counter() - began
                self.seconds += took
                self.step += 1
                if self.step % _LOG_EVERY == 0:
                    loss, matching = np.mean(losses, axis=0)
                    rate = _learning_rate(self.config, self.step, self.share())
                    row = [self.step, f"{self.seconds:.1f}", f"{loss:.6g}", f"{matching:.6g}"]
                    writer.writerow([*row, f"{rate:.3g}"])
                    log.flush()
                    losses.clear()
                if self.seconds - last_save > 60 * self.config.checkpoint_minutes:
                    self.checkpoint().save(self.folder / CHECKPOINT_NAME)
                    last_save = self.seconds
                if on_step:
                    loss = losses[-1][0] if losses else float(loss)
                    speed = self.config.batch / took
                    on_step(Progress(self.step, loss, speed, self.seconds, self.share()))
        final = self.checkpoint()
        final.save(self.folder / CHECKPOINT_NAME)
        final.released().save(self.folder / WEIGHTS_NAME)
        return final

    def checkpoint(self) -> Checkpoint:
        """The run's whole state."""
        tensors: dict[str, Tensor] = {}
        for prefix, values in (("model", self.network.state_dict()), ("ema", self.ema)):
            tensors |= {f"{prefix}.{name}": value for name, value in values.items()}
        tensors |= optimizer_tensors(self.optimizer, self.names)
        sources = tuple(asdict(source) for source in self.store.sources)
        return Checkpoint(
            self.model, self.config, self.step, self.seconds, sources, self.store.domain, tensors
        )

    def _train_step(self) -> tuple[float, float]:
        rng = np.random.default_rng([self.config.seed, self.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        x0, condition = self.coefficients(*self.sampler.draw(rng, self.config.batch))
        (mean, std), (condition_mean, condition_std) = self._scales
        x0, condition = (x0 - mean) / std, (condition - condition_mean) / condition_std
        t = _stratified_times(generator, len(x0))
        eps = torch.randn(x0.shape, generator=generator)
        alpha, sigma = amplitudes(t)
        x = alpha * x0 + sigma * eps
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(self.config, self.step, self.share())
        with torch.autocast("cpu", torch.bfloat16):
            v_hat = self.network(
                x.contiguous(memory_format=torch.channels_last),
                condition.contiguous(memory_format=torch.channels_last),
                t,
            )
        loss, matching = training_loss(v_hat.float(), x, x0, eps, t, self.config.tv_weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self._update_ema()
        return float(loss.detach()), float(matching.detach())

    @torch.no_grad()
    def _update_ema(self) -> None:
        # Early weights are far off: the average starts short and grows to its full length.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        averages = [self.ema[name] for name in self.names]
        torch._foreach_lerp_(averages, list(self.network.parameters()), 1 - decay)

    def _cut_log(self) -> None:
        """Drop what a stopped run logged after its last checkpoint: those steps come again."""
        path = self.folder / LOG_NAME
        if not path.exists():
            return
        header, *rows = path.read_bytes().splitlines(keepends=True) or [b""]
        steps = [row.partition(b",")[0] for row in rows]
        kept = [r for r, s in zip(rows, steps, strict=True) if s.isdigit() and int(s) <= self.step]
        path.write_bytes(b"".join([header, *kept]))

    def _log_writer(self, log: IO[str]) -> Any:
        writer = csv.writer(log)
        if log.tell() == 0:
            writer.writerow(["step", "seconds", "loss", "matching", "learning_rate"])
        return writer
