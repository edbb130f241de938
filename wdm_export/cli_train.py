"""`wdm-export train`: a recipe's options, and runs that begin or go on."""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from wdm_export.cli_parts import Threads, given, progress_bars
from wdm_export.config import DEFAULT_TRANSFORM, NetworkConfig, TrainConfig
from wdm_runtime import console
from wdm_runtime.errors import InputError
from wdm_runtime.transform import PrecipTransform
from wdm_runtime.wavelets import HAAR

Minutes = Annotated[
    float | None,
    typer.Option(
        help="Computing time, to which the learning rate's schedule is fitted; this or --steps"
    ),
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps, instead of --minutes")]
Levels = Annotated[int, typer.Option(help="2: WDM-2, 1: WDM-1, 0: the pixel model")]
Wavelet = Annotated[str, typer.Option(help="Any discrete wavelet of PyWavelets, such as db2")]
Base = Annotated[
    int | None,
    typer.Option(help=f"Channels of the finest depth; default: {NetworkConfig.base_channels}"),
]
Depths = Annotated[
    str | None, typer.Option(help="Channel multipliers of the depths; default: 1,2,2")
]
Blocks = Annotated[
    int | None, typer.Option(help=f"Residual blocks a depth; default: {NetworkConfig.blocks}")
]
Attention = Annotated[bool, typer.Option(help="Self-attention at the coarsest depth")]
Batch = Annotated[int | None, typer.Option(help=f"Crops a step; default: {TrainConfig.batch}")]
Crop = Annotated[
    int | None,
    typer.Option(help=f"Edge of training crops in fine cells; default: {TrainConfig.crop_px}"),
]
TvWeight = Annotated[
    float | None,
    typer.Option(help=f"Weight of the total-variation term; default: {TrainConfig.tv_weight:g}"),
]
RainWeight = Annotated[
    float | None,
    typer.Option(
        help="Power of the rate by which errors count, 0: alike in light and heavy rain, 2: as in "
        "mm/h with log10, 4/3 with cube-root; default: 0"
    ),
]
Transform = Annotated[
    str | None,
    typer.Option(
        help="Of rates, for the network: log10 | cube-root; default: that of weights it begins "
        f"with, or {DEFAULT_TRANSFORM.name}"
    ),
]
TransformOffset = Annotated[
    float | None,
    typer.Option(
        help="mm/h added to rates before it; default: that of weights it begins with, or "
        f"{DEFAULT_TRANSFORM.offset_mm_h:g}"
    ),
]
Rate = Annotated[
    float | None, typer.Option(help=f"Peak learning rate; default: {TrainConfig.learning_rate:g}")
]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, crops and noise; default: 0")]
Shards = Annotated[
    int | None,
    typer.Option(help="Parts of the data, by field; processes of torchrun share them; default: 1"),
]
Objective = Annotated[
    str | None,
    typer.Option(
        help="diffusion | regression, a deterministic baseline of the same network; "
        "default: diffusion"
    ),
]


# What a run that goes on may be told anew.
MAY_CHANGE = ("minutes", "steps", "threads", "checkpoint_minutes")


def train(
    store: Annotated[Path, typer.Argument(help="A store that 'prepare' wrote")],
    run: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run")],
    minutes: Minutes = None,
    steps: Steps = None,
    wavelet: Wavelet = HAAR,
    levels: Levels = 2,
    base: Base = None,
    depths: Depths = None,
    blocks: Blocks = None,
    attention: Attention = True,
    batch: Batch = None,
    crop: Crop = None,
    learning_rate: Rate = None,
    tv_weight: TvWeight = None,
    rain_weight: RainWeight = None,
    seed: Seed = None,
    threads: Threads = None,
    shards: Shards = None,
    time_sampling: Annotated[
        str | None,
        typer.Option(
            help="Diffusion times drawn evenly in t or log SNR: uniform | logsnr; default: uniform"
        ),
    ] = None,
    loss_target: Annotated[
        str | None,
        typer.Option(help="Quantity whose error the loss measures: v | eps | x0; default: v"),
    ] = None,
    intensity_spread: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of the log of a random factor of a crop's rates; default: 0"
        ),
    ] = None,
    even_days: Annotated[
        bool | None,
        typer.Option(
            "--even-days/--even-patches",
            help="Storm days drawn evenly, or patches however many a day has; default: days",
        ),
    ] = None,
    turns: Annotated[
        bool | None,
        typer.Option("--turns/--no-turns", help="Flip and transpose crops; default: yes"),
    ] = None,
    rate_schedule: Annotated[
        str | None,
        typer.Option(
            help="Decay of the learning rate: cosine | linear | constant; default: cosine"
        ),
    ] = None,
    ema_decay: Annotated[
        float | None,
        typer.Option(
            help=f"Most that averaged weights keep in a step; default: {TrainConfig.ema_decay:g}"
        ),
    ] = None,
    transform: Transform = None,
    transform_offset: TransformOffset = None,
    objective: Objective = None,
    weights: Annotated[Path | None, typer.Option(help="Start from these weights")] = None,
    checkpoint_minutes: Annotated[
        float | None,
        typer.Option(help="Computing between checkpoints, 0: every ten steps; default: 10"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUTPUT")] = False,
    begin_or_resume: Annotated[
        bool,
        typer.Option(
            "--begin-or-resume", help="Continue the run in OUTPUT where it holds this one"
        ),
    ] = False,
) -> None:
    """Train a network, on CPUs; writes checkpoints, a log, a loss plot and released weights.

    On several processors or machines: torchrun --no-python [...] wdm-export train STORE -o RUN
    --shards N, in as many processes as divide N. With --begin-or-resume the same command goes on
    after whatever stopped it, so that torchrun may restart it. SIGINT (Ctrl-C), SIGTERM and SIGHUP
    end a run after its present step, with a checkpoint; torchrun waits 30 s for it.
    """
    from wdm_export.checkpoint import Checkpoint
    from wdm_export.data import PatchStore
    from wdm_export.loss_plot import plot_log
    from wdm_export.parallel import joined
    from wdm_export.train import CHECKPOINT_NAME, Trainer

    patches = PatchStore.open(store)
    settings = given(
        minutes=minutes, steps=steps, batch=batch, crop_px=crop, learning_rate=learning_rate,
        tv_weight=tv_weight, rain_weight=rain_weight, time_sampling=time_sampling,
        loss_target=loss_target, intensity_spread=intensity_spread, even_days=even_days,
        turns=turns, rate_schedule=rate_schedule, ema_decay=ema_decay, seed=seed, threads=threads,
        shards=shards, objective=objective, checkpoint_minutes=checkpoint_minutes,
    )  # fmt: skip
    initial = Checkpoint.load(weights) if weights and not resume else None
    before = initial.model.transform if initial else DEFAULT_TRANSFORM
    rain = transform_of(transform, transform_offset, before)
    how = {name: settings[name] for name in MAY_CHANGE if name in settings}
    if resume:
        kept = given(base=base, depths=depths, blocks=blocks, weights=weights, transform=rain) | {
            name: value for name, value in settings.items() if name not in how
        }
        if kept or (wavelet, levels) != (HAAR, 2) or not attention:
            raise InputError(
                f"--resume got {', '.join(kept) or 'a network'} besides; expected a new total with "
                "--minutes or --steps, --threads and --checkpoint-minutes at most: the run keeps "
                "its settings. Leave them out."
            )
    with joined() as processes:
        if resume:
            trainer = Trainer.resume(patches, run, processes=processes, **how)
        else:
            network = network_of(wavelet, levels, base, depths, blocks, attention)
            config = TrainConfig(**settings)
            begun = begin_or_resume and (run / CHECKPOINT_NAME).exists()
            if not processes.agree(begun):
                raise InputError(
                    f"{run}: holds {CHECKPOINT_NAME} for some processes and not for others; "
                    "expected one folder that all of them see. Name a shared one with -o."
                )
            if begun:
                trainer = Trainer.resume(patches, run, processes=processes, **how)
                refuse_other_settings(trainer, network, config, run, "-o", rain)
                refuse_other_weights(trainer, initial, run)
            else:
                trainer = Trainer.start(patches, run, network, config, initial, processes, rain)
        console.err.quiet = console.out.quiet = not processes.leads
        with progress_bars() as progress:
            run_training(trainer, progress)
    if processes.leads:
        plot_log(run)
        written = "weights.safetensors, checkpoint.safetensors, log.csv and loss.png"
        console.out.print(f"Wrote {run}: {written}", soft_wrap=True)


def network_of(
    wavelet: str, levels: int, base: int | None, depths: str | None, blocks: int | None,
    attention: bool,
) -> Any:  # fmt: skip
    """The network that the options describe.

    Raises
    ------
    InputError
        An option is no number of its kind, or the network cannot be.
    """
    from wdm_export.filter_banks import named_wavelet

    multipliers = None
    if depths is not None:
        if not all(part.strip().isdecimal() for part in depths.split(",")):
            raise InputError(
                f"--depths got '{depths}'; expected whole numbers such as 1,2,2. Correct it."
            )
        multipliers = tuple(int(part) for part in depths.split(","))
    values = given(base_channels=base, multipliers=multipliers, blocks=blocks)
    width = values.get("base_channels", NetworkConfig.base_channels)
    coarsest = width * values.get("multipliers", NetworkConfig.multipliers)[-1]
    # Heads of the default size, or the next smaller that divides the channels evenly.
    most = min(NetworkConfig.head_channels, max(1, coarsest))
    heads = next(size for size in range(most, 0, -1) if coarsest % size == 0)
    return NetworkConfig(
        named_wavelet(wavelet, levels),
        attention=attention,
        head_channels=heads,
        **values,
    )


def transform_of(
    name: str | None, offset_mm_h: float | None, usual: PrecipTransform
) -> PrecipTransform | None:
    """The transform that the options ask for, what they leave open as in ``usual``; or None."""
    if name is None and offset_mm_h is None:
        return None
    return PrecipTransform.zero_where_dry(
        usual.name if name is None else name,
        usual.offset_mm_h if offset_mm_h is None else offset_mm_h,
    )


def refuse_other_settings(
    trainer: Any, network: Any, training: Any, folder: Path, option: str, transform: Any = None
) -> None:
    """A run that is continued keeps its settings: others must not be swallowed.

    A ``transform`` that was not asked for is that of the initial weights, or else the default.
    """
    transform = transform or (trainer.model.transform if trainer.earlier else DEFAULT_TRANSFORM)
    had = asdict(trainer.model.network) | asdict(trainer.config)
    had["transform"] = trainer.model.transform
    asked = asdict(network) | asdict(training) | {"transform": transform}
    other = [
        f"{name} {asked[name]} (the run has {had[name]})"
        for name in asked
        if asked[name] != had[name] and name not in MAY_CHANGE
    ]
    if other:
        raise InputError(
            f"{folder}: holds a run with other settings; got {', '.join(other)}. Give the run's "
            f"own settings, or begin anew with another {option} folder."
        )


def refuse_other_weights(trainer: Any, initial: Any, folder: Path) -> None:
    """A run that is continued began with the weights named now, or with none."""
    if trainer.earlier != (initial.runs if initial else ()):
        had = "others" if initial and trainer.earlier else "some" if trainer.earlier else "none"
        raise InputError(
            f"{folder}: holds a run that began with {had} of the weights named; expected the same "
            "--weights, or none where it began without. Name them, or begin anew with another -o "
            "folder."
        )


def run_training(trainer: Any, progress: Progress) -> Any:
    """A run to its end, with a bar; or to a signal, which ends the program with a checkpoint."""
    from wdm_export.stopping import stop_on_signals

    task = progress.add_task("Training", total=1.0, note="")

    def on_step(now: Any) -> None:
        note = f"step {now.step}, loss {now.loss:.4f}, {now.samples_per_s:.1f} samples/s"
        progress.update(task, completed=min(1.0, now.share), note=note)

    with stop_on_signals() as stop:
        checkpoint = trainer.run(on_step, stop.asked)
    stopped = trainer.share() < 1.0  # or the signal came to another process of this run
    if stopped or stop.asked():
        what = "Stopped" if stopped else "Finished"
        note = f"{what} at step {checkpoint.step} with a checkpoint in {trainer.folder}."
        console.err.print(note, highlight=False, soft_wrap=True)
        raise SystemExit(128 + (stop.number or signal.SIGTERM))
    return checkpoint
