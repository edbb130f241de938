"""What share of the sampling loop is not the engine, and what is it?

Runs `Downscaler.downscale` member by member. After each member every part of the loop outside the
engine is timed by itself, on the same arrays and after an engine call, so that the caches and the
machine's other work are the loop's own. Shares are medians over members. Noise is drawn on a thread
while the engine computes, so that it is no part of what is outside: its time is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from wdm_runtime.conditioning import condition, look_at
from wdm_runtime.diffusion import VPSchedule
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import Grid
from wdm_runtime.io import read_field
from wdm_runtime.latency import outside_engine_fraction
from wdm_runtime.machine import machine
from wdm_runtime.noise import NoiseSource
from wdm_runtime.orientation import AS_IT_IS, orientation_of, restored, turned
from wdm_runtime.presets import Preset, chosen
from wdm_runtime.samplers import SAMPLERS, integrate
from wdm_runtime.stepping import StepTime

Array = npt.NDArray[np.float32]

SYNTHETIC_CELLS = (54, 54)  # coarse: 2 x 2 of the usual tiles
PARTS = ("cutting tiles", "blending", "sampler arithmetic")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--input", type=Path, help="coarse field; default: a synthetic one")
    parser.add_argument("--members", type=int, default=5, help="rounds")
    parser.add_argument("--steps", type=int, help="default: the bundle's own preset")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: the bundle's own preset")
    parser.add_argument("--batch", type=int, help="tiles an engine call")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    if options.members < 1:
        parser.error(f"--members got {options.members}; expected at least 1")
    return options


def synthetic_field() -> PrecipField:
    """Seeded rain over part of the grid, dry elsewhere; the loop's time does not depend on it."""
    rates = np.random.default_rng(0).gamma(0.3, 4.0, SYNTHETIC_CELLS).astype(np.float32)
    rates[rates < 0.5] = 0.0
    attributes = ({"units": "degrees_north"}, {"units": "degrees_east"})
    y, x = (0.1 * np.arange(n, dtype=np.float64) for n in SYNTHETIC_CELLS)
    return PrecipField(rates[None], Grid(y, x, attributes=attributes), ("2022-06-15T12:00:00",))


class Parts:
    """The parts of one sampling step outside the engine, each on the arrays of a real frame."""

    def __init__(self, downscaler: Downscaler, field: PrecipField, way: Preset):
        # The private way in: what is timed here must be what the loop does, shapes included.
        frame = look_at(field.frame(0)[field.grid.to_north_first], downscaler.manifest)
        self.tiling = frame.tiling
        self.condition = condition(
            frame, downscaler.manifest, downscaler._transforms[0]
        ).standardised
        self.downscaler, self.way = downscaler, way
        self.source = NoiseSource(0, field.valid_times[0], 0)
        self.x = self._draw(0)
        self.v = np.zeros_like(self.x)

    def seconds_a_step(self, member: int) -> dict[str, float]:
        """Each part's time, after an engine call, in a member's orientation."""
        orientation = orientation_of(member)
        functions: tuple[Callable[[], object], ...] = (
            partial(self._cut, orientation),
            partial(self._blend, orientation),
            self._integrate,
        )
        calls_a_step = (1, 1, 1 / self.way.steps)
        found = {}
        for part, function, share in zip(PARTS, functions, calls_a_step, strict=True):
            tile = self._engine()[0]
            self.tiles = [tile.copy() for _ in self.tiling.tiles]  # blending weights them in place
            found[part] = share * timed(function)
        return found

    def noise_seconds(self) -> float:
        """A step's noise by itself, after an engine call."""
        self._engine()
        return timed(lambda: self._draw(1))

    def _batch(self, field: Array, first: int, orientation: int = AS_IT_IS) -> Array:
        last = min(first + self.downscaler.batch, len(self.tiling.tiles))
        return np.stack(
            [turned(self.tiling.cut(field, index), orientation) for index in range(first, last)]
        )

    def _engine(self) -> Array:
        feeds = {"x": self._batch(self.x, 0), "condition": self._batch(self.condition, 0)}
        return self.downscaler.engine.run({**feeds, "t": np.array([0.5], dtype=np.float32)})

    def _draw(self, step: int) -> Array:
        subbands, height, width = self.condition.shape
        return self.source.draw(step, subbands, (0, height), (0, width), self.tiling.covered)

    def _cut(self, orientation: int) -> None:
        for first in range(0, len(self.tiling.tiles), self.downscaler.batch):
            self._batch(self.x, first, orientation)
            self._batch(self.condition, first, orientation)

    def _blend(self, orientation: int) -> None:
        v = np.zeros_like(self.x)
        for index, tile in enumerate(self.tiles):
            self.tiling.blend(restored(tile, orientation), index, v)

    def _integrate(self) -> None:
        """The whole sampler with a network and noise that cost nothing."""
        schedule: VPSchedule = self.downscaler.manifest.schedule
        steps = self.way.plan(schedule)
        integrate(lambda x, t: self.v, self.x, steps, lambda i: self.x, lambda i: None)


def timed(function: Callable[[], object]) -> float:
    """Wall time of one call [s]."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def shares(steps: list[StepTime], parts: dict[str, float]) -> dict[str, float]:
    """Shares of one member's loop: the engine's and each part's."""
    loop = sum(step.seconds for step in steps)
    engine = sum(step.engine_seconds for step in steps)
    found = {part: seconds * len(steps) for part, seconds in parts.items()}
    return {name: seconds / loop for name, seconds in {"engine": engine, **found}.items()}


def show(rounds: list[dict[str, float]], step_ms: float, console: Console) -> dict[str, float]:
    median = {name: float(np.median([r[name] for r in rounds])) for name in rounds[0]}
    median["rest"] = 1 - sum(median.values())
    outside = 1 - median["engine"]
    table = Table(caption="rest: clocks, callbacks, allocation, and the error of timing by parts")
    table.add_column("part of the loop")
    for heading in ("ms a step", "of the loop", "of what is outside"):
        table.add_column(heading, justify="right")
    for name, share in median.items():
        if name == PARTS[0]:
            table.add_row("outside the engine", f"{outside * step_ms:.2f}", f"{outside:.1%}", "")
        inside = name == "engine"
        cells = (
            f"{share * step_ms:.2f}",
            f"{share:.1%}",
            "" if inside else f"{share / outside:.0%}",
        )
        table.add_row(name if inside else f"  {name}", *cells)
    console.print(table)
    return median


def main() -> None:
    options = arguments()
    console = Console()
    field = read_field(options.input) if options.input else synthetic_field()
    with Downscaler.open(
        options.bundle, options=EngineOptions(options.threads, options.batch)
    ) as downscaler:
        presets = downscaler.manifest.presets
        way = chosen(presets, steps=options.steps, sampler=options.sampler)
        parts = Parts(downscaler, field, way)
        everything: list[StepTime] = []
        rounds: list[dict[str, float]] = []
        noise_s: list[float] = []
        one_frame = PrecipField(field.load()[:1], field.grid, field.valid_times[:1])
        steps: list[StepTime] = []
        for sample in downscaler.downscale(
            one_frame,
            options.members,
            preset=way,
            on_step=steps.append,
        ):
            # As in the latency report, the very first step is warm-up.
            member, steps[:] = steps[0 if everything else 1 :], []
            everything += member
            rounds.append(shares(member, parts.seconds_a_step(sample.member)))
            noise_s.append(parts.noise_seconds())
        facts: dict[str, Any] = {
            "device": machine(),
            "engine": f"{downscaler.engine.version}, {downscaler.choice.precision}, "
            f"{downscaler.engine.device}, batch {downscaler.batch}",
            "bundle": downscaler.manifest.name,
            "state": " x ".join(map(str, parts.x.shape)),
            "tiles": len(parts.tiling.tiles),
            "loop": f"{options.members} members, {way}",
            "load": f"{os.getloadavg()[0]:.1f}",
        }
    console.print("; ".join(f"{key}: {value}" for key, value in facts.items()), highlight=False)
    step_ms = 1e3 * float(np.median([step.seconds for step in everything]))
    median = show(rounds, step_ms, console)
    total_s = sum(step.seconds for step in everything)
    outside = outside_engine_fraction(everything)
    console.print(
        f"All {len(everything)} steps took {total_s:.2f} s; outside the engine over all of them, "
        f"as 'wdm-run infer' reports it: {outside:.1%}. A step's noise, drawn beside the engine, "
        f"takes {1e3 * np.median(noise_s):.2f} ms by itself."
    )
    if options.json:
        facts |= {"step_ms": step_ms, "shares": median, "outside_engine_fraction": outside}
        facts["noise_ms"] = 1e3 * float(np.median(noise_s))
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
