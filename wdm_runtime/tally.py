"""What the samples of a run tell as they pass by, and the attributes that an output has of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wdm_runtime.downscale import Sample
from wdm_runtime.engines.watched import WatchedEngine
from wdm_runtime.sampling import Balance
from wdm_runtime.stepping import StepTime


@dataclass
class Suspects:
    """How many members cannot be true, and how many were drawn again because of it."""

    members: int = 0
    redrawn: int = 0

    def count(self, sample: Sample) -> None:
        """Take one more member in."""
        self.members += sample.fault is not None
        self.redrawn += sample.redrawn


class Tally:
    """What samples of an engine tell as they pass by, from before the first to after the last."""

    def __init__(self, engine: WatchedEngine) -> None:
        self.steps: list[StepTime] = []
        self.suspects = Suspects()
        self._balances: list[Balance] = []
        self._engine, self._reruns_before = engine, engine.fp32_reruns

    def take(self, sample: Sample) -> None:
        """Take one more member in."""
        self._balances.append(sample.balance)
        self.suspects.count(sample)

    @property
    def fp32_reruns(self) -> int:
        """Batches that had to be computed again in fp32 so far."""
        return self._engine.fp32_reruns - self._reruns_before

    def attributes(self) -> dict[str, Any]:
        """Of an output of these samples."""
        fused_steps = sum(step.fused for step in self.steps)
        return outcome_attributes(self._balances, self.fp32_reruns, fused_steps, self.suspects)


def outcome_attributes(
    balances: list[Balance], fp32_reruns: int, fused_steps: int, suspects: Suspects
) -> dict[str, Any]:
    """Means over members and times; the residual is the one before the consistency step.

    What no member has, as without a valid block, is left out.
    """

    def mean(name: str) -> float:
        values = [value for b in balances if (value := getattr(b, name)) == value]
        return sum(values) / len(values) if values else float("nan")

    found = {
        "wdm_block_residual_mean_before_mm_h": mean("residual_mm_h"),
        "wdm_block_residual_max_before_mm_h": max(
            (b.max_residual_mm_h for b in balances if b.max_residual_mm_h == b.max_residual_mm_h),
            default=float("nan"),
        ),
        "wdm_wet_fraction_before": mean("wet_fraction_before"),
        "wdm_wet_fraction_after": mean("wet_fraction_after"),
        "wdm_fp32_reruns": fp32_reruns,
        "wdm_fused_steps": fused_steps,
        "wdm_suspect_members": suspects.members,
        "wdm_fp32_redrawn_members": suspects.redrawn,
    }
    return {name: value for name, value in found.items() if value == value}
