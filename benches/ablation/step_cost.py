"""How long is a training step of each variant, in those of the default?

Trainers of all variants of the groups take turns in one process, a step each a round. Prints the
median and quartiles of their ratios, and how many steps take as long as those given of the default:
what `ablation.py --train-steps` wants where a machine is too busy for `--minutes`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ablation import DEFAULT, GROUPS, Options

from wdm_export.cli_train import network_of
from wdm_export.config import DIFFUSION, TrainConfig
from wdm_export.data import PatchStore
from wdm_export.train import Trainer
from wdm_runtime.wavelets import HAAR


def trainer(store: PatchStore, folder: Path, options: Options, threads: int) -> Trainer:
    """A run with a variant's network and crops, which are what a step's time depends on."""
    numbers: dict[str, Any] = {
        name: int(options[option])
        for name, option in (("batch", "--batch"), ("crop_px", "--crop"))
        if option in options
    }
    network = network_of(
        options.get("--wavelet", HAAR),
        int(options.get("--levels", 2)),
        int(options["--base"]) if "--base" in options else None,
        options.get("--depths"),
        int(options["--blocks"]) if "--blocks" in options else None,
        "--no-attention" not in options,
    )
    objective = options.get("--objective", DIFFUSION)
    config = TrainConfig(steps=1, threads=threads, objective=objective, **numbers)
    return Trainer.start(store, folder, network, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="of `wdm-export prepare`")
    parser.add_argument("--group", action="append", choices=GROUPS, required=True)
    parser.add_argument("--train-steps", type=int, default=828, help="of the default")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    variants: dict[str, Options] = {DEFAULT: {}}
    for group in asked.group:
        variants |= GROUPS[group]
    store = PatchStore.open(asked.store)
    times: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: trainer(store, Path(folder) / name, options, asked.threads)
            for name, options in variants.items()
        }
        for number in range(2 + asked.rounds):
            for name, run in runs.items():
                began = time.perf_counter()
                run._train_step()
                run.step += 1
                if number >= 2:  # the first ones choose kernels
                    times[name].append(time.perf_counter() - began)
    print("| variant | s a step | of the default (quartiles) | steps |")
    print("|---|---|---|---|")
    for name, own in times.items():
        low, middle, high = np.quantile(np.divide(own, times[DEFAULT]), (0.25, 0.5, 0.75))
        steps = round(asked.train_steps / middle)
        seconds, ratio = f"{np.median(own):.2f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"
        print(f"| {name} | {seconds} | {ratio} | {steps} |")


if __name__ == "__main__":
    main()
