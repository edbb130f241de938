"""A run's log: a row of means every few steps, and the loss curve of it that a model card shows."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from wdm_export.checkpoint import Curve
from wdm_runtime.io.atomic import output_errors, whole_file

LOG_NAME = "log.csv"
LOG_EVERY_STEPS = 10
_COLUMNS = ("step", "seconds", "loss", "matching", "learning_rate")
_CURVE_POINTS = 12


def read_matching(folder: str | Path) -> list[tuple[int, float]]:
    """Step and mean score-matching loss since the row before, of each row of a run's log."""
    with open(Path(folder) / LOG_NAME, newline="") as log:
        return [(int(row["step"]), float(row["matching"])) for row in csv.DictReader(log)]


def loss_curve(folder: str | Path) -> Curve:
    """The log's score-matching loss, averaged over as many parts as a card has lines."""
    rows = read_matching(folder)
    parts = np.array_split(np.arange(len(rows)), min(_CURVE_POINTS, len(rows)) or 1)
    means = ((rows[part[-1]][0], [rows[i][1] for i in part]) for part in parts if len(part))
    return tuple((step, float(f"{np.mean(losses):.4g}")) for step, losses in means)


class TrainingLog:
    """The log of a run, for as long as it is entered.

    Parameters
    ----------
    folder
        The run's, which exists.
    step
        The steps done so far. What a stopped run logged beyond is dropped: those steps come again.
    writes
        False leaves the folder alone.
    """

    def __init__(self, folder: Path, step: int, writes: bool = True) -> None:
        path = folder / LOG_NAME if writes else Path(os.devnull)
        with output_errors(path):
            if writes and path.exists():
                _cut(path, step)
            self._file = open(path, "a", newline="")  # noqa: SIM115
            self._writer = csv.writer(self._file)
            if self._file.tell() == 0:
                self._writer.writerow(_COLUMNS)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        with output_errors(Path(self._file.name)):
            self._file.close()

    def add(
        self, step: int, seconds: float, loss: float, matching: float, learning_rate: float
    ) -> None:
        """A row, on disk at once; the losses are means since the row before."""
        means = (f"{seconds:.1f}", f"{loss:.6g}", f"{matching:.6g}", f"{learning_rate:.3g}")
        with output_errors(Path(self._file.name)):
            self._writer.writerow((step, *means))
            self._file.flush()


def _cut(path: Path, step: int) -> None:
    header, *rows = path.read_bytes().splitlines(keepends=True) or [b""]
    steps = [row.partition(b",")[0] for row in rows]
    kept = [r for r, s in zip(rows, steps, strict=True) if s.isdigit() and int(s) <= step]
    with whole_file(path) as temporary:
        temporary.write_bytes(b"".join([header, *kept]))
