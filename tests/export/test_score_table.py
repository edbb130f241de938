"""Scores that do not apply, as JSON and in the model card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wdm_export.evaluation import HEADLINE, Evaluation, ForecastRow
from wdm_export.metrics import TruthTile
from wdm_export.scores import pool, score_tile, stack
from wdm_export.tiles import TilePlace
from wdm_runtime.bundle import Bundle

# What the command adds to scores.
HOW = {
    **{"files": ["truth.nc"], "command": "wdm-export evaluate", "bootstrap_draws": 77},
    **{"engine": "an engine 1.2", "precision": "bf16"},
    **{"sampler": "second-order", "steps": 5, "noise_scale": 1.25, "time_grid": "logsnr"},
}
TRUTH = {"p99.9 [mm/h]": 22.468, "wet fraction": 0.25}


def perfect() -> Evaluation:
    """One forecast that is the truth: an infinite PSNR, no ensemble, no rain over 5 mm/h."""
    rate = np.full((20, 20), 2, np.float32)
    truth = TruthTile(rate, np.ones(rate.shape, bool), np.full((2, 2), 2.0), (0, 0), 10)
    tiles = stack([score_tile(rate, truth)])
    row = ForecastRow("one member", pool(tiles, np.zeros(3)), tiles, 0.0)
    return Evaluation((row,), (TilePlace("2022-08-09T15:00:00", 0, 0),), 400, {}, truth=TRUTH)


def test_undefined_scores_are_none() -> None:
    (row,) = perfect().to_dict()["rows"]
    assert set(row) == {"forecast", *HEADLINE}
    for label in ("PSNR [dB]", "spread/skill", "CSI 5 mm/h"):
        assert row[label] is None
    assert row["SSIM"] == pytest.approx(1) and row["CSI 1 mm/h"] == 1


def test_the_card_shows_a_dash_for_none(tiny: Path) -> None:
    from wdm_export.package import model_card

    scores = {**perfect().to_dict(), **HOW}
    card = model_card(replace(Bundle.open(tiny).manifest, scores=scores))
    lines = card.splitlines()
    assert "| score | one member |" in lines and "None" not in card
    assert "| PSNR [dB] | - |" in lines and "| SSIM | 1.000 |" in lines
    assert "- The truth's p99.9 [mm/h] 22.468, wet fraction 0.250" in lines


def test_the_card_shows_intervals_where_there_are_some(tiny: Path) -> None:
    from wdm_export.package import model_card

    scores = {
        **perfect().to_dict(),
        **HOW,
        "intervals": {"one member": {"SSIM": [0.98765, 1.0]}},
    }  # fmt: skip
    lines = model_card(replace(Bundle.open(tiny).manifest, scores=scores)).splitlines()
    assert "| SSIM | 1.000 (0.988, 1.000) |" in lines and "| CSI 1 mm/h | 1.000 |" in lines
    (how,) = (line for line in lines if "77 bootstrap draws" in line)
    assert "an engine 1.2 in bf16: second-order, 5 steps, noise x 1.25" in how
