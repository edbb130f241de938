"""`wdm-export export` and `sign`, and `build`: everything from fields to a bundle in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from wdm_export.cli_data import prepared_store, refuse_other_patches
from wdm_export.cli_parts import (
    FACTOR,
    FILES_HELP,
    Factor,
    Overwrite,
    Patch,
    Threads,
    comparison_table,
    given,
    progress_bars,
)
from wdm_export.cli_train import (
    Attention,
    Base,
    Batch,
    Blocks,
    Crop,
    Depths,
    Levels,
    RainWeight,
    Rate,
    Seed,
    Transform,
    TransformOffset,
    TvWeight,
    Wavelet,
    network_of,
    refuse_other_settings,
    run_training,
    transform_of,
)
from wdm_runtime import console
from wdm_runtime.errors import InputError
from wdm_runtime.shared_options import AccumulationOption, VariableOption
from wdm_runtime.skill import TILE_PX
from wdm_runtime.wavelets import HAAR

Tile = Annotated[int | None, typer.Option(help=f"Tile edge in fine cells; default: {TILE_PX}")]

DEFAULT_BUILD_MINUTES = 90.0


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


def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle")],
    key: Annotated[Path, typer.Option(help="Ed25519 private key in PEM")],
) -> None:
    """Sign a bundle, after checking all its files; a bundle that changes needs a new signature."""
    from wdm_export.package import sign_bundle
    from wdm_runtime.bundle import Bundle

    console.out.print(f"Wrote {sign_bundle(Bundle.own(bundle), key)}", soft_wrap=True)


def build(
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write")],
    files: Annotated[list[Path] | None, typer.Argument(help=FILES_HELP)] = None,
    minutes: Annotated[
        float, typer.Option(help="Minutes of training; preparing and exporting come on top")
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
    transform: Transform = None,
    transform_offset: TransformOffset = None,
    seed: Seed = None,
    threads: Threads = None,
    patch: Patch = None,
    factor: Factor = FACTOR,
    variable: VariableOption = None,
    accumulation: AccumulationOption = None,
    tile: Tile = None,
    overwrite: Overwrite = False,
) -> None:
    """Prepare, train (on CPUs), export and check; run again, it continues where it stopped."""
    from wdm_export.config import DEFAULT_TRANSFORM, TrainConfig
    from wdm_export.data import PatchStore
    from wdm_export.loss_plot import plot_log
    from wdm_export.package import check_target
    from wdm_export.train import CHECKPOINT_NAME, Trainer
    from wdm_runtime.io.units import parse_period

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
    network = network_of(wavelet, levels, base, depths, blocks, attention)
    training = TrainConfig(**settings)
    rain = transform_of(transform, transform_offset, DEFAULT_TRANSFORM)
    network.check_edge(training.crop_px, "--crop")
    network.check_edge(TILE_PX if tile is None else tile, "--tile")
    folder, hours = work or output.with_name(f"{output.name}-work"), parse_period(accumulation)
    store, run = folder / "store", folder / "run"
    with progress_bars() as progress:
        if PatchStore.exists(store):
            patches = PatchStore.open(store)
            refuse_other_patches(patches, files, patch, variable, hours, factor, folder)
        else:
            patches = prepared_store(files, store, progress, patch, variable, hours, factor)
        if (run / CHECKPOINT_NAME).exists():
            trainer = Trainer.resume(patches, run, minutes, **given(threads=threads))
            refuse_other_settings(trainer, network, training, folder, "--work", rain)
        else:
            trainer = Trainer.start(patches, run, network, training, transform=rain)
        checkpoint = run_training(trainer, progress)
        plot_log(run)
        _export(checkpoint, output, name, tile, overwrite, progress)
    console.out.print(f"Wrote {output}. Try: wdm-run infer INPUT --bundle {output}", soft_wrap=True)


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
