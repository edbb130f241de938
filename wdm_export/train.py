"""Training: the loop, EMA and checkpoints.

Every step draws from generators seeded with (seed, step, shard), so that a resumed run sees the
data and noise that an uninterrupted one would have seen, in however many processes.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wdm_export.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from wdm_export.config import (
    CONSTANT,
    COSINE,
    LINEAR,
    REGRESSION,
    NetworkConfig,
    TrainConfig,
)
from wdm_export.crops import Coefficients, crop_samplers
from wdm_export.data import PatchStore
from wdm_export.initial_state import trained_before, untrained
from wdm_export.losses import amplitudes, target_weight, training_loss
from wdm_export.parallel import ALONE, Processes
from wdm_export.sources import without
from wdm_export.training_log import LOG_EVERY_STEPS, TrainingLog, loss_curve
from wdm_export.unet import UNet
from wdm_runtime.diffusion import VPSchedule
from wdm_runtime.errors import InputError, OutputError, SuspectError
from wdm_runtime.transform import PrecipTransform

CHECKPOINT_NAME = "checkpoint.safetensors"
WEIGHTS_NAME = "weights.safetensors"


@dataclass(frozen=True)
class Progress:
    """What a progress display shows after each step."""

    step: int
    loss: float
    samples_per_s: float
    seconds: float
    share: float


def _stratified_times(
    generator: torch.Generator, count: int, sampling: str, schedule: VPSchedule
) -> Tensor:
    """One time in each of ``count`` equal parts of the range: a mean with less variance.

    The range is [0, 1) in t, or that of the schedule in log SNR.
    """
    even = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    if sampling == "uniform":
        return even
    first, last = schedule.logsnr_start, schedule.logsnr_end
    times = schedule.time_of_logsnr(first + even.double().numpy() * (last - first))
    return torch.from_numpy(times).float()


def _learning_rate(config: TrainConfig, step: int, share: float) -> float:
    """Linear warm-up times what the schedule leaves after a share of the run."""
    warm, share = min(1.0, (step + 1) / config.warmup_steps), min(1.0, share)
    left = {COSINE: 0.5 * (1 + math.cos(math.pi * share)), LINEAR: 1 - share, CONSTANT: 1.0}
    return config.learning_rate * warm * left[config.rate_schedule]


def _multiplies_in_bf16() -> bool:
    """Whether this processor has instructions for it: without them a step is many times slower."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN says yes to AVX-512 without them too, and emulates.
        return bool(torch.cpu._is_avx512_bf16_supported())
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class Trainer:
    """One run in one folder. Make it with `start` or `resume`, then call `run`.

    In several processes each has a trainer, and the first one alone writes.
    """

    def __init__(
        self,
        store: PatchStore,
        folder: Path,
        state: Checkpoint,
        processes: Processes = ALONE,
    ) -> None:
        config = state.training
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.folder, self.store, self.config, self.model = folder, store, config, state.model
        self.step, self.seconds, self.processes = state.step, state.seconds, processes
        self.earlier, self.domain = state.earlier, state.domain
        own = store.listed_sources()
        self.sources = (*without(state.sources, own), *own)
        self.samplers = crop_samplers(store, config, state.model.network, processes)
        self.coefficients = Coefficients(state.model.network.wavelet, state.model.transform)
        torch.manual_seed(config.seed)  # initial weights
        self.network = UNet(state.model.network)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
        self.parallel = processes.wrapped(self.network)
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
        processes: Processes = ALONE,
        transform: PrecipTransform | None = None,
    ) -> Trainer:
        """Begin a run, from random weights or from released ones.

        Parameters
        ----------
        transform
            Between rates and what the network works on; default: that of the weights, or
            ``DEFAULT_TRANSFORM``.

        Raises
        ------
        InputError
            The folder already holds a run, the crops do not fit the network or the patches, or
            the weights are of another network or transform.
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
            state = untrained(store, network, config, transform, processes)
        else:
            state = trained_before(weights, store, network, config, transform)
        return cls(store, folder, state, processes)

    @classmethod
    def resume(
        cls,
        store: PatchStore,
        folder: str | Path,
        minutes: float | None = None,
        steps: int | None = None,
        processes: Processes = ALONE,
        threads: int | None = None,
        checkpoint_minutes: float | None = None,
    ) -> Trainer:
        """Continue the run of a folder from its last checkpoint.

        ``minutes`` or ``steps`` set a new total, to which the learning rate's schedule is fitted;
        what else is None stays.

        Raises
        ------
        InputError
            No run to continue, or the store's patches are not those it was trained on.
        """
        if not (Path(folder) / CHECKPOINT_NAME).exists():
            raise InputError(
                f"{folder}: holds no run to continue; expected {CHECKPOINT_NAME}, which comes with "
                "the first minutes of one. Begin it without --resume."
            )
        state = Checkpoint.load(Path(folder) / CHECKPOINT_NAME)
        own = store.listed_sources()
        known = state.sources[-len(own) :]  # before these come the sources of the weights it had
        if list(known) != own or store.factor != state.model.factor:
            others = [source["file"] for source in without(own, known)]
            other = others[0] if others else f"{len(own)} fields alone"
            raise InputError(
                f"{store.path}: holds patches of {other}, which the run in {folder} was not "
                "trained on; expected the store that it began with. Name that, or begin a new run "
                "with --weights."
            )
        training = state.training
        if minutes is not None or steps is not None:
            training = replace(training, minutes=minutes, steps=steps)
        if threads is not None:
            training = replace(training, threads=threads)
        if checkpoint_minutes is not None:
            training = replace(training, checkpoint_minutes=checkpoint_minutes)
        state = replace(state, training=training)
        return cls(store, Path(folder), state, processes)

    def share(self) -> float:
        """How much of the run is done, 0 to 1."""
        if self.config.steps is not None:
            return self.step / self.config.steps
        return self.seconds / (60.0 * float(self.config.minutes or 1.0))

    def run(
        self,
        on_step: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Checkpoint:
        """Train to the end; write checkpoints, log and released weights; return the last state.

        ``stop`` is asked after each step: if it is true in any process, all save a checkpoint and
        return that state, without released weights.
        """
        last_save, writes, stopped = self.seconds, self.processes.leads, False
        with TrainingLog(self.folder, self.step, writes) as log:
            losses: list[tuple[float, float]] = []
            while self.share() < 1.0 and not stopped:
                began = time.perf_counter()
                losses.append(self._train_step())
                self._require_finite(losses[-1][0])
                took = self.processes.of_first(time.perf_counter() - began)
                self.seconds += took
                self.step += 1
                stopped = self.processes.any(stop())
                if self.step % LOG_EVERY_STEPS == 0 or stopped:
                    loss, matching = np.mean(losses, axis=0)
                    rate = _learning_rate(self.config, self.step, self.share())
                    log.add(self.step, self.seconds, loss, matching, rate)
                    losses.clear()
                due = self.seconds - last_save > 60 * self.config.checkpoint_minutes
                if due and not losses:  # with a whole row of the log behind it
                    self._save(self.checkpoint(), CHECKPOINT_NAME)
                    last_save = self.seconds
                if on_step:
                    loss = losses[-1][0] if losses else float(loss)
                    speed = self.config.batch / took
                    on_step(Progress(self.step, loss, speed, self.seconds, self.share()))
        final = self.checkpoint()
        if self.share() < 1.0:
            self._save(final, CHECKPOINT_NAME)
            return final
        if self.processes.leads:
            final = replace(final, curve=loss_curve(self.folder))
        self._save(final, CHECKPOINT_NAME)
        self._save(final.released(), WEIGHTS_NAME)
        return final

    def _require_finite(self, *values: float | Tensor) -> None:
        """Stop before the last good checkpoint is replaced."""
        if not all(bool(torch.as_tensor(value).isfinite().all()) for value in values):
            raise SuspectError(
                f"{self.folder}: training came to numbers that are not finite after step "
                f"{self.step}; expected a loss that falls. Begin anew with a lower "
                "--learning-rate; the last checkpoint is whole, but --resume draws the same again."
            )

    def _save(self, state: Checkpoint, name: str) -> None:
        self._require_finite(*state.tensors.values())
        if self.processes.leads:
            state.save(self.folder / name)

    def checkpoint(self) -> Checkpoint:
        """The run's whole state."""
        tensors: dict[str, Tensor] = {}
        for prefix, values in (("model", self.network.state_dict()), ("ema", self.ema)):
            tensors |= {f"{prefix}.{name}": value for name, value in values.items()}
        tensors |= optimizer_tensors(self.optimizer, self.names)
        return Checkpoint(
            self.model,
            self.config,
            self.step,
            self.seconds,
            self.sources,
            self.domain,
            tensors,
            earlier=self.earlier,
        )

    def _batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x0, condition, t, eps and weights of this step's crops, shard after shard."""
        (mean, std), (condition_mean, condition_std) = self._scales
        begun = sum(run.step for run in self.earlier)  # what those drew does not come again
        parts = []
        for sampler in self.samplers:
            rng = np.random.default_rng([self.config.seed, begun + self.step, sampler.shard])
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            count = self.config.batch // self.config.shards
            crops = sampler.draw(rng, count, self.config.intensity_spread, self.config.turns)
            x0, condition = self.coefficients(*crops)
            x0, condition = (x0 - mean) / std, (condition - condition_mean) / condition_std
            weights = self.coefficients.weights(crops[1], self.config.rain_weight)
            if self.config.objective == REGRESSION:
                t, eps = torch.ones(count), torch.zeros_like(x0)
            else:
                sampling, schedule = self.config.time_sampling, self.model.schedule
                t = _stratified_times(generator, count, sampling, schedule)
                eps = torch.randn(x0.shape, generator=generator)
                weights = weights * target_weight(t, self.config.loss_target)
            parts.append((x0, condition, t, eps, weights))
        x0, condition, t, eps, weights = (torch.cat(values) for values in zip(*parts, strict=True))
        return x0, condition, t, eps, weights

    def _train_step(self) -> tuple[float, float]:
        x0, condition, t, eps, weights = self._batch()
        alpha, sigma = amplitudes(t)
        x = alpha * x0 + sigma * eps
        if self.config.objective == REGRESSION:
            x = eps  # rounding leaves a trace of x0, which the network must not learn to read
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(self.config, self.step, self.share())
        with torch.autocast("cpu", torch.bfloat16, enabled=_multiplies_in_bf16()):
            v_hat = self.parallel(
                x.contiguous(memory_format=torch.channels_last),
                condition.contiguous(memory_format=torch.channels_last),
                t,
            )
        loss, matching = training_loss(v_hat.float(), x, x0, eps, t, self.config.tv_weight, weights)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self._update_ema()
        both = self.processes.total(torch.stack((loss.detach(), matching.detach())))
        mean_loss, mean_matching = (both / self.processes.size).tolist()
        return mean_loss, mean_matching

    @torch.no_grad()
    def _update_ema(self) -> None:
        # Early weights are far off: the average spans a ninth of the steps so far at most.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        averages = [self.ema[name] for name in self.names]
        torch._foreach_lerp_(averages, list(self.network.parameters()), 1 - decay)
