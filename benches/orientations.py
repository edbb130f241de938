"""What do members in eight orientations gain over members that are all drawn as the field lies?

Both ensembles have the same noise, and are scored on the same tiles of truth. Take a day that
nothing is judged by.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from wdm_runtime import downscale
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.io import read_field
from wdm_runtime.machine import machine
from wdm_runtime.orientation import AS_IT_IS, ORIENTATIONS, orientation_of
from wdm_runtime.presets import chosen
from wdm_runtime.tune import Trial, tune

WAYS: dict[str, Callable[[int], int]] = {
    "as it is": lambda member: AS_IT_IS,
    "in turn": orientation_of,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("coarse", type=Path, help="input, as `wdm-export coarsen` makes it")
    parser.add_argument("truth", type=Path, help="the same on the fine grid")
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--members", type=int, default=ORIENTATIONS)
    parser.add_argument("--tiles", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise-scale", type=float, action="append", help="default: the preset's")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the trials there too")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    coarse, truth = read_field(asked.coarse), read_field(asked.truth)
    options = EngineOptions(threads=asked.threads)
    trials: dict[str, list[Trial]] = {}
    with downscale.Downscaler.open(
        asked.bundle, asked.engine, asked.precision, options
    ) as downscaler:
        preset = chosen(downscaler.manifest.presets, None)
        scales = asked.noise_scale or [preset.noise_scale]
        tried = [replace(preset, noise_scale=scale) for scale in scales]
        for name, way in WAYS.items():
            with patch.object(downscale, "orientation_of", way):
                found = tune(
                    downscaler, coarse, truth, tried, asked.members, asked.seed, asked.tiles
                )
            trials[name] = list(found.trials)
    title = f"{found.bundle} on {found.engine}: {found.members} members on {found.tiles} tiles"
    table = Table(title=title)
    headings = ("orientation", "noise", "CRPS / bicubic's MAE", "spread/skill", "spectrum [dB]")
    for heading in headings:
        table.add_column(heading)
    for index, preset in enumerate(tried):
        for name, those in trials.items():
            trial = those[index]
            bands = ", ".join(f"{db:+.1f}" for db in trial.bands_db)
            scores = f"{trial.crps_ratio:.4f}", f"{trial.spread_skill:.3f}", bands
            table.add_row(name, f"{preset.noise_scale:g}", *scores)
    console = Console()
    console.print(f"device: {machine()}; load: {os.getloadavg()[0]:.1f}", highlight=False)
    console.print(table)
    if asked.json:
        found_in = {name: [asdict(trial) for trial in those] for name, those in trials.items()}
        asked.json.write_text(json.dumps(found_in, indent=1) + "\n")


if __name__ == "__main__":
    main()
