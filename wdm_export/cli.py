"""`wdm-export`: prepare data, train, export, check, evaluate, or all of it with `build`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from wdm_export import cli_check, cli_evaluate
from wdm_export.cli_parts import (
    FILES_HELP,
    Accumulation,
    Files,
    Threads,
    Variable,
    comparison_table,
    given,
    period_h,
    progress_bars,
    reader,
)
from wdm_runtime import console
from wdm_runtime.errors import InputError
from wdm_runtime.io.atomic import exit_on_sigterm
from wdm_runtime.wavelets import HAAR

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.command()(cli_check.check)

Minutes = Annotated[float | None, typer.Option(help="Computing time; the schedule fits to it")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps, instead of --minutes")]
Levels = Annotated[int, typer.Option(help="2: WDM-2, 1: WDM-1, 0: the pixel model")]
Wavelet = Annotated[str, typer.Option(help="Any discrete wavelet of PyWavelets, such as db2")]
Base = Annotated[int | None, typer.Option(help="Channels of the finest depth")]
Depths = Annotated[str | None, typer.Option(help="Channel multipliers, for example 1,2,2")]
Blocks = Annotated[int | None, typer.Option(help="Residual blocks a depth")]
Attention = Annotated[bool, typer.Option(help="Self-attention at the coarsest depth")]
Batch = Annotated[int | None, typer.Option(help="Crops a step")]
Crop = Annotated[int | None, typer.Option(help="Edge of training crops in cells")]
TvWeight = Annotated[float | None, typer.Option(help="Weight of the total-variation term")]
RainWeight = Annotated[
    float | None, typer.Option(help="0: errors in light and heavy rain count alike; 1: as in mm/h")
]
Rate = Annotated[float | None, typer.Option(help="Peak learning rate")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, crops and noise")]
Shards = Annotated[
    int | None, typer.Option(help="Parts of the data, by file; processes of torchrun share them")
]
Objective = Annotated[
    str | None,
    typer.Option(help="diffusion, or regression: the same network as a deterministic baseline"),
]
Tile = Annotated[int | None, typer.Option(help="Tile edge in fine cells")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there")]

DEFAULT_BUILD_MINUTES = 90.0


def main() -> None:
    """Entry point."""
    with exit_on_sigterm():
        console.run(app)


@app.callback()
def _options(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="-vv: tracebacks")
    ] = 0,
) -> None:
    """Train wavelet diffusion models on radar data and export them as bundles."""
    console.set_verbosity(verbose)


def _network(
    wavelet: str, levels: int, base: int | None, depths: str | None, blocks: int | None,
    attention: bool,
) -> Any:  # fmt: skip
    from wdm_export.config import NetworkConfig
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


def _prepare(
    files: list[Path],
    store: Path,
    progress: Progress,
    size: int | None,
    variable: str | None,
    period_h: float | None,
) -> Any:
    from wdm_export import data

    task = progress.add_task("Preparing", total=len(files), note="")

    def on_file(path: Path, count: int) -> None:
        progress.update(task, advance=1, note=f"{path.name}: {count} patches")

    prepared = data.prepare(
        files,
        store,
        on_file=on_file,
        variable=variable,
        accumulation_h=period_h,
        **given(size=size),
    )
    progress.update(task, note=f"{len(prepared.fine)} patches")
    return prepared


def _refuse_other_patches(
    store: Any,
    files: list[Path],
    size: int | None,
    variable: str | None,
    hours: float | None,
    work: Path,
) -> None:
    """A run that is continued keeps its training fields: others must not be swallowed."""
    from wdm_export.data import digest_of
    from wdm_runtime.skill import TILE_PX

    had = {source.sha256: source.file for source in store.sources}
    asked = {digest_of(file): file.name for file in files}
    other = [f"{asked[d]} (not of the run)" for d in asked.keys() - had.keys()]
    other += [f"no {had[d]}" for d in had.keys() - asked.keys()]
    edge, wanted = store.fine.shape[1], TILE_PX if size is None else size
    if wanted != edge:
        other.append(f"--patch {wanted} (the run has {edge})")
    for option, value, known in (
        ("--variable", variable, store.variable),
        ("--accumulation", hours, store.accumulation_h),
    ):
        if value != known:
            other.append(f"{option} {value or 'nothing'} (the run has {known or 'nothing'})")
    if other:
        raise InputError(
            f"{work}: holds a run on other training data; got {', '.join(sorted(other))}. Give the "
            "run's own files, or begin anew with another --work folder."
        )


def _refuse_other_settings(
    trainer: Any, network: Any, training: Any, folder: Path, option: str
) -> None:
    """A run that is continued keeps its settings: others must not be swallowed."""
    pairs = (
        (asdict(trainer.model.network), asdict(network)),
        (asdict(trainer.config), asdict(training)),
    )
    other = [
        f"{name} {asked[name]} (the run has {had[name]})"
        for had, asked in pairs
        for name in asked
        if asked[name] != had[name]
    ]
    if other:
        raise InputError(
            f"{folder}: holds a run with other settings; got {', '.join(other)}. Give the run's "
            f"own settings, or begin anew with another {option} folder."
        )


def _train(trainer: Any, progress: Progress) -> Any:
    task = progress.add_task("Training", total=1.0, note="")

    def on_step(now: Any) -> None:
        note = f"step {now.step}, loss {now.loss:.4f}, {now.samples_per_s:.1f} samples/s"
        progress.update(task, completed=min(1.0, now.share), note=note)

    return trainer.run(on_step)


def _export(
    checkpoint: Any, output: Path, name: str | None, tile: int | None, overwrite: bool,
    progress: Progress,
) -> None:  # fmt: skip
    from wdm_export import package

    task = progress.add_task("Exporting", total=None, note="")
    _, comparisons = package.export_bundle(
        checkpoint,
        output,
        name,
        overwrite=overwrite,
        notify=lambda line: progress.update(task, note=line),
        **given(tile_px=tile),
    )
    progress.update(task, total=1, completed=1, note="")
    console.out.print(comparison_table(comparisons))


@app.command()
def prepare(
    files: Files,
    store: Annotated[Path, typer.Option("-o", "--output", help="Store folder to write")],
    patch: Annotated[int | None, typer.Option(help="Patch edge in cells")] = None,
    variable: Variable = None,
    accumulation: Accumulation = None,
) -> None:
    """Cut training patches from 1 km fields."""
    with progress_bars() as progress:
        prepared = _prepare(files, store, progress, patch, variable, period_h(accumulation))
    table = Table("storm day", "patches")
    for day, numbers in sorted(prepared.by_day().items()):
        table.add_row(day, str(len(numbers)))
    console.out.print(table)


@app.command()
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
        str | None, typer.Option(help="Times drawn evenly in: uniform (t) | logsnr")
    ] = None,
    loss_target: Annotated[
        str | None, typer.Option(help="Whose error the loss measures: v | eps | x0")
    ] = None,
    intensity_spread: Annotated[
        float | None, typer.Option(help="Of the logarithm of a random factor of a crop's rates")
    ] = None,
    ema_decay: Annotated[
        float | None, typer.Option(help="Most that averaged weights keep in a step, below 1")
    ] = None,
    objective: Objective = None,
    weights: Annotated[Path | None, typer.Option(help="Start from these weights")] = None,
    checkpoint_minutes: Annotated[
        float | None, typer.Option(help="Computing between checkpoints; 10. 0: every ten steps")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUTPUT")] = False,
    begin_or_resume: Annotated[
        bool,
        typer.Option(
            "--begin-or-resume", help="Continue the run in OUTPUT where it holds this one"
        ),
    ] = False,
) -> None:
    """Train a network; writes checkpoints, a log, a loss plot and released weights.

    On several processors or machines: torchrun --no-python [...] wdm-export train STORE -o RUN
    --shards N, in as many processes as divide N. With --begin-or-resume the same command goes on
    after whatever stopped it, so that torchrun may restart it.
    """
    from wdm_export.checkpoint import Checkpoint
    from wdm_export.config import TrainConfig
    from wdm_export.data import PatchStore
    from wdm_export.loss_plot import plot_log
    from wdm_export.parallel import joined
    from wdm_export.train import CHECKPOINT_NAME, Trainer

    patches = PatchStore.open(store)
    settings = given(
        minutes=minutes, steps=steps, batch=batch, crop_px=crop, learning_rate=learning_rate,
        tv_weight=tv_weight, rain_weight=rain_weight, time_sampling=time_sampling,
        loss_target=loss_target, intensity_spread=intensity_spread, ema_decay=ema_decay, seed=seed,
        threads=threads, shards=shards, objective=objective, checkpoint_minutes=checkpoint_minutes,
    )  # fmt: skip
    if resume:
        kept = given(base=base, depths=depths, blocks=blocks, weights=weights) | {
            name: value for name, value in settings.items() if name not in ("minutes", "steps")
        }
        if kept or (wavelet, levels) != (HAAR, 2) or not attention:
            raise InputError(
                f"--resume got {', '.join(kept) or 'a network'} besides; expected a new total with "
                "--minutes or --steps at most: the run keeps its settings. Leave them out."
            )
    with joined() as processes:
        if resume:
            trainer = Trainer.resume(patches, run, minutes, steps, processes)
        else:
            network = _network(wavelet, levels, base, depths, blocks, attention)
            config = TrainConfig(**settings)
            begun = begin_or_resume and (run / CHECKPOINT_NAME).exists()
            if not processes.agree(begun):
                raise InputError(
                    f"{run}: holds {CHECKPOINT_NAME} for some processes and not for others; "
                    "expected one folder that all of them see. Name a shared one with -o."
                )
            if begun:
                trainer = Trainer.resume(patches, run, minutes, steps, processes)
                _refuse_other_settings(trainer, network, config, run, "-o")
            else:
                initial = Checkpoint.load(weights) if weights else None
                trainer = Trainer.start(patches, run, network, config, initial, processes)
        console.err.quiet = console.out.quiet = not processes.leads
        with progress_bars() as progress:
            _train(trainer, progress)
    if processes.leads:
        plot_log(run)
        written = "weights.safetensors, checkpoint.safetensors, log.csv and loss.png"
        console.out.print(f"Wrote {run}: {written}", soft_wrap=True)


@app.command()
def export(
    weights: Annotated[Path, typer.Argument(help="weights.safetensors or a checkpoint")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write")],
    name: Annotated[str | None, typer.Option(help="Default: the folder's name")] = None,
    tile: Tile = None,
    overwrite: Overwrite = False,
) -> None:
    """Export weights to a bundle; nothing is written unless every check passes."""
    from wdm_export.checkpoint import Checkpoint
    from wdm_export.config import DIFFUSION

    checkpoint = Checkpoint.load(weights)
    if checkpoint.training.objective != DIFFUSION:
        raise InputError(
            f"{weights}: holds weights of a {checkpoint.training.objective}; expected those of a "
            "diffusion model, which a bundle can sample. Score them instead: wdm-export evaluate "
            f"BUNDLE FILES... --against {weights}"
        )
    with progress_bars() as progress:
        _export(checkpoint, output, name, tile, overwrite, progress)
    console.out.print(f"Wrote {output}. Try: wdm-run info {output}", soft_wrap=True)


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle")],
    key: Annotated[Path, typer.Option(help="Ed25519 private key in PEM")],
) -> None:
    """Sign a bundle, after checking all its files; a bundle that changes needs a new signature."""
    from wdm_export.package import sign_bundle
    from wdm_runtime.bundle import Bundle

    console.out.print(f"Wrote {sign_bundle(Bundle.own(bundle), key)}", soft_wrap=True)


@app.command()
def build(
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write")],
    files: Annotated[list[Path] | None, typer.Argument(help=FILES_HELP)] = None,
    minutes: Annotated[
        float, typer.Option(help="Training time; preparing and exporting take minutes more")
    ] = DEFAULT_BUILD_MINUTES,
    work: Annotated[
        Path | None, typer.Option(help="Folder for store and run; default: <OUTPUT>-work")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Default: the folder's name")] = None,
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
    patch: Annotated[int | None, typer.Option(help="Patch edge in cells")] = None,
    variable: Variable = None,
    accumulation: Accumulation = None,
    tile: Tile = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare, train, export and check in one go; run again, it continues where it stopped."""
    from wdm_export.config import TrainConfig
    from wdm_export.data import PatchStore
    from wdm_export.loss_plot import plot_log
    from wdm_export.package import check_target
    from wdm_export.train import CHECKPOINT_NAME, Trainer
    from wdm_runtime.skill import TILE_PX

    if not files:
        raise InputError(
            "Got no files to train on; expected precipitation rates at 1 km, as MRMS GRIB2 or CF "
            "NetCDF, of several storm days. Name them: wdm-export build FILES... -o BUNDLE"
        )
    check_target(output, overwrite)
    settings = given(
        minutes=minutes, batch=batch, crop_px=crop, learning_rate=learning_rate,
        tv_weight=tv_weight, rain_weight=rain_weight, seed=seed, threads=threads,
    )  # fmt: skip
    network = _network(wavelet, levels, base, depths, blocks, attention)
    training = TrainConfig(**settings)
    network.check_edge(training.crop_px, "--crop")
    network.check_edge(TILE_PX if tile is None else tile, "--tile")
    folder, hours = work or output.with_name(f"{output.name}-work"), period_h(accumulation)
    store, run = folder / "store", folder / "run"
    with progress_bars() as progress:
        if (store / "index.json").exists():
            patches = PatchStore.open(store)
            _refuse_other_patches(patches, files, patch, variable, hours, folder)
        else:
            patches = _prepare(files, store, progress, patch, variable, hours)
        if (run / CHECKPOINT_NAME).exists():
            trainer = Trainer.resume(patches, run, minutes)
            _refuse_other_settings(trainer, network, training, folder, "--work")
        else:
            trainer = Trainer.start(patches, run, network, training)
        checkpoint = _train(trainer, progress)
        plot_log(run)
        _export(checkpoint, output, name, tile, overwrite, progress)
    console.out.print(f"Wrote {output}. Try: wdm-run infer INPUT --bundle {output}", soft_wrap=True)


app.command()(cli_evaluate.evaluate)
app.command()(cli_evaluate.identity)


@app.command()
def coarsen(
    fine: Annotated[Path, typer.Argument(help=FILES_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Coarse NetCDF to write")],
    truth: Annotated[Path | None, typer.Option(help="Also write the fine field it covers")] = None,
    crop: Annotated[
        str | None, typer.Option(help="Coarse cells row,column,height,width from the north-west")
    ] = None,
    factor: Annotated[int, typer.Option(help="Fine cells per coarse cell")] = 10,
    variable: Variable = None,
    accumulation: Accumulation = None,
    overwrite: Overwrite = False,
) -> None:
    """Block-average a 1 km field to 10 km: a test input with a known answer."""
    from wdm_export.coarsen import coarsen_file

    coarsen_file(fine, output, truth, crop, factor, overwrite, reader(variable, accumulation))
    console.out.print(f"Wrote {output}" + (f" and {truth}" if truth else ""), soft_wrap=True)
