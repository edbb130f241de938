"""Which consistency step should be the default?

Draws the same members for each mode, and for the multiplicative one without its interpolated
factors, and scores them on the same tiles, so that whatever differs is the step's. The truth's
block means are the input.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wdm_export.evaluate import evaluate
from wdm_export.evaluation import Evaluation
from wdm_runtime import block_scaling
from wdm_runtime.block_scaling import _SMOOTH_SCALINGS
from wdm_runtime.consistency import MODES
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.io import read_field
from wdm_runtime.machine import machine
from wdm_runtime.presets import chosen
from wdm_runtime.skill import BANDS_KM, TILE_PX

TABLE_WIDTH = 100
VARIANTS = {
    **{mode: (mode, _SMOOTH_SCALINGS) for mode in MODES},
    "multiplicative, a factor a block": ("multiplicative", 0),
}
MEMBER_SCORES = (
    *(f"RAPSD {low}-{high} km [dB]" for low, high in BANDS_KM),
    *("wet fraction", "bias 0.1 mm/h", "bias 50 mm/h", "speckle, dry", "speckle, heavy"),
    *("consistency, mean [mm/h]", "consistency, max [mm/h]"),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="1 km truth")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: the bundle's own preset")
    parser.add_argument("--tile", type=int, default=TILE_PX, help="tile edge in fine cells")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the table there too")
    options = parser.parse_args()
    if options.members < 2:
        parser.error(f"--members got {options.members}; expected at least 2: CRPS needs a spread")
    return options


def scores(evaluation: Evaluation) -> dict[str, float | None]:
    """What the choice rests on; None where a score is undefined."""
    _, member, _, ensemble = (row.labelled() for row in evaluation.rows)
    found = {
        "fair CRPS [mm/h]": ensemble["CRPS [mm/h]"],
        "fair CRPS / bicubic MAE": ensemble["CRPS / bicubic MAE"],
        "spread/skill": ensemble["spread/skill"],
        "PSNR of the mean [dB]": ensemble["PSNR [dB]"],
        "PSNR of a member [dB]": member["PSNR [dB]"],
        **{label: member[label] for label in MEMBER_SCORES},
    }
    return {label: v if v is not None and np.isfinite(v) else None for label, v in found.items()}


def show(columns: dict[str, dict[str, float | None]], title: str, console: Console) -> None:
    table = Table(
        title=title,
        caption="RAPSD, wet fraction (member minus truth), bias and consistency (|block mean - "
        "input|) are one member's.",
    )
    table.add_column("score")
    for name in columns:
        table.add_column(name, justify="right")
    for label in next(iter(columns.values())):
        values = [column[label] for column in columns.values()]
        table.add_row(Text(label), *("-" if v is None else f"{v:.5g}" for v in values))
    console.print(table)


def main() -> None:
    options = arguments()
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console = Console(width=TABLE_WIDTH)
    columns: dict[str, dict[str, float | None]] = {}
    with (
        Downscaler.open(options.bundle, options=EngineOptions(options.threads)) as downscaler,
        console.status("Drawing") as status,
    ):

        def say(doing: str, text: str) -> None:
            status.update(doing + text)

        way = chosen(downscaler.manifest.presets, steps=options.steps)
        for name, (mode, smooth_scalings) in VARIANTS.items():
            with patch.object(block_scaling, "_SMOOTH_SCALINGS", smooth_scalings):
                evaluation = evaluate(
                    downscaler,
                    map(read_field, options.files),
                    options.members,
                    options.seed,
                    way,
                    mode,
                    tile_px=options.tile,
                    on_progress=partial(say, f"Scoring {name}, "),
                )
            columns[name] = scores(evaluation)
        facts = {
            "device": machine(),
            "engine": f"{downscaler.engine.version}, {downscaler.choice.precision}",
            "bundle": downscaler.manifest.name,
            "files": ", ".join(path.name for path in options.files),
            "ensemble": f"{options.members} members, {way}, seed {options.seed}",
        }
    console.print("; ".join(f"{key}: {value}" for key, value in facts.items()), highlight=False)
    show(columns, f"{len(evaluation.places)} tiles, {evaluation.cells} cells", console)
    if options.json:
        options.json.write_text(json.dumps({**facts, "modes": columns}, indent=1) + "\n")


if __name__ == "__main__":
    main()
