"""Which consistency step should be the default?

Draws the members of an ensemble once, without the step, keeps their whole domains in a temporary
folder, and scores them again and again with each mode applied: the same members on the same tiles,
so that whatever differs is the step's. The truth's block means are the input.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wdm_export.evaluate import evaluate
from wdm_export.score_table import Evaluation
from wdm_runtime.consistency import MODES, make_consistent
from wdm_runtime.downscale import Downscaler, Sample
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import interpolate
from wdm_runtime.io import read_field
from wdm_runtime.presets import chosen
from wdm_runtime.process import machine
from wdm_runtime.sampling import Balance
from wdm_runtime.skill import BANDS_KM, TILE_PX

TABLE_WIDTH = 100
UNBALANCED = Balance(np.nan, np.nan, np.nan, np.nan)  # `evaluate` does not look at it
MEMBER_SCORES = (
    *(f"RAPSD {low}-{high} km [dB]" for low, high in BANDS_KM),
    *("wet fraction", "bias 0.1 mm/h", "bias 50 mm/h"),
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


class StoredMembers:
    """An ensemble that is drawn when first asked for, frame by frame, and read ever after."""

    def __init__(self, downscaler: Downscaler, folder: Path, say: Callable[[str], None]) -> None:
        self.downscaler, self.folder, self.say = downscaler, folder, say

    def draw(self, frame: int, coarse: PrecipField, members: int, **options: Any) -> None:
        """Keep all members of a frame, as far as they are wanted."""
        began = time.perf_counter()
        for sample in self.downscaler.downscale(coarse, members, consistency="none", **options):
            np.save(self._path(frame, sample.member), sample.rate_mm_h)
            seconds = (time.perf_counter() - began) / (sample.member + 1)
            self.say(f"Drew member {sample.member + 1} of {members}, {seconds:.0f} s each")

    def read(self, frame: int, member: int) -> npt.NDArray[np.float32]:
        """One member's whole domain [mm h-1]."""
        return np.asarray(np.load(self._path(frame, member)), dtype=np.float32)

    def holds(self, frame: int, members: int) -> bool:
        """Whether a frame has been drawn to its last member."""
        return self._path(frame, members - 1).exists()

    def _path(self, frame: int, member: int) -> Path:
        return self.folder / f"{frame}-{member}.npy"


class Replay:
    """A downscaler to `evaluate`: stored members with one mode applied, and the time that takes.

    Frames are numbered as they come: `evaluate` asks for the same ones in the same order.
    """

    def __init__(self, stored: StoredMembers, mode: str) -> None:
        self.stored, self.mode = stored, mode
        self.factor = stored.downscaler.factor
        self.seconds: list[float] = []
        self._frames = 0

    def downscale(
        self,
        field: PrecipField,
        *,
        members: int,
        seed: int,
        consistency: str,
        **options: Any,
    ) -> Iterator[Sample]:
        """Members of one frame with this replay's mode, whatever ``consistency`` says."""
        frame, coarse = self._frames, field.frame(0)
        self._frames += 1
        if not self.stored.holds(frame, members):
            self.stored.draw(frame, field, members, seed=seed, **options)
        smooth = interpolate(coarse, self.factor)
        for member in range(members):
            rate = self.stored.read(frame, member)
            began = time.perf_counter()
            dry = self.stored.downscaler.bundle.manifest.transform.dry_threshold_mm_h
            rate = make_consistent(rate, coarse, smooth, self.factor, self.mode, dry)
            self.seconds.append(time.perf_counter() - began)
            yield Sample(0, member, rate, UNBALANCED)


def scores(evaluation: Evaluation, replay: Replay) -> dict[str, float | None]:
    """What the choice rests on; None where a score is undefined."""
    _, member, _, ensemble = (row.labelled() for row in evaluation.rows)
    found = {
        "fair CRPS [mm/h]": ensemble["CRPS [mm/h]"],
        "fair CRPS / bicubic MAE": ensemble["CRPS / bicubic MAE"],
        "spread/skill": ensemble["spread/skill"],
        "PSNR of the mean [dB]": ensemble["PSNR [dB]"],
        "PSNR of a member [dB]": member["PSNR [dB]"],
        **{label: member[label] for label in MEMBER_SCORES},
        "s per member": float(np.median(replay.seconds)),
    }
    return {label: v if v is not None and np.isfinite(v) else None for label, v in found.items()}


def show(columns: dict[str, dict[str, float | None]], title: str, console: Console) -> None:
    table = Table(
        title=title,
        caption="RAPSD, wet fraction (member minus truth), bias and consistency (|block mean - "
        "input|) are one member's; s per member is the step's own time.",
    )
    table.add_column("score")
    for mode in columns:
        table.add_column(mode, justify="right")
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
        tempfile.TemporaryDirectory(prefix="consistency-") as folder,
        Downscaler.open(options.bundle, options=EngineOptions(options.threads)) as downscaler,
        console.status("Drawing") as status,
    ):

        def say(doing: str, text: str) -> None:
            status.update(doing + text)

        stored = StoredMembers(downscaler, Path(folder), status.update)
        way = chosen(downscaler.manifest.presets, steps=options.steps)
        for mode in MODES:
            replay = Replay(stored, mode)
            evaluation = evaluate(
                replay,
                map(read_field, options.files),
                options.members,
                options.seed,
                way,
                tile_px=options.tile,
                on_progress=partial(say, f"Scoring {mode}, "),
            )
            columns[mode] = scores(evaluation, replay)
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
