"""The loss curve of a run as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from wdm_export.training_log import read_matching
from wdm_runtime.io.atomic import output_errors

PLOT_NAME = "loss.png"
_SMOOTH = 20  # log rows a running mean spans: single batches scatter by a tenth


def plot_log(run: str | Path) -> Path:
    """Draw ``log.csv`` of a run folder as ``loss.png`` and return its path."""
    rows = read_matching(run)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if rows:
        step, loss = np.array(rows).T
        axes.plot(step, loss, lw=0.5, alpha=0.4, label="score matching")
        span = min(_SMOOTH, len(loss))
        smooth = np.convolve(loss, np.ones(span) / span, mode="valid")
        axes.plot(step[span - 1 :], smooth, label=f"mean of {span} rows")
        axes.legend()
    axes.set(xlabel="step", ylabel="mean (v - v_hat)^2", ylim=(0, None))
    path = Path(run) / PLOT_NAME
    with output_errors(path):
        figure.savefig(path, dpi=120)
    return path
