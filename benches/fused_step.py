"""Is the fused step as fast as the score graph and the sampler's loop in NumPy?

Both sides integrate the same sample of one tile, turn by turn in one process, with all noise drawn
before. The ratio is of whole integrations, so that it holds all that either side does.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import AUTO, ENGINES, PRECISIONS, open_graph, open_step, select
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.fused import integrate_on_engine
from wdm_runtime.machine import machine
from wdm_runtime.presets import Preset, chosen
from wdm_runtime.samplers import SAMPLERS, integrate

Array = npt.NDArray[np.float32]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="repeatable; auto")
    parser.add_argument("--precision", choices=PRECISIONS, default=AUTO)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help="default: the bundle's own preset")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: the bundle's own preset")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds got {options.rounds}; expected at least 1")
    return options


def sides(
    bundle: Bundle, kind: str, options: argparse.Namespace, way: Preset
) -> tuple[str, dict[str, Callable[[], Array]]]:
    """What is compared, and both ways to integrate a sample."""
    choice, settings = select(kind, options.precision), EngineOptions(threads=options.threads)
    role = f"score_{choice.graph}"
    entry = bundle.manifest.graphs[role]
    score = open_graph(bundle, role, choice.kind, choice.precision, settings)
    fused = open_step(bundle, choice, settings)
    schedule = bundle.manifest.schedule
    steps = way.plan(schedule)
    x, condition, *noise = np.random.default_rng(0).standard_normal(
        (len(steps) + 1, 1, *map(int, entry.inputs[0].shape[1:])), dtype=np.float32
    )

    def network(state: Array, t: float) -> Array:
        feeds = {"x": state, "condition": condition, "t": np.array([t], dtype=np.float32)}
        return score.run(feeds)

    name = f"{score.version}, {choice.precision}, {score.device}"
    return name, {
        "loop": lambda: integrate(network, x, steps, noise.__getitem__, lambda _: None),
        "fused": lambda: integrate_on_engine(fused, x, condition, steps, noise.__getitem__, None),
    }


def measured(ways: dict[str, Callable[[], Array]], rounds: int, steps: int) -> dict[str, float]:
    """Milliseconds a step of both, medians; the ratio's median and its middle half."""
    answers = {name: way() for name, way in ways.items()}  # warm-up too
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in sorted(ways, reverse=turn % 2 == 1):
            began = time.perf_counter()
            ways[name]()
            times[name].append(1e3 * (time.perf_counter() - began) / steps)
    ratios = np.array(times["fused"]) / np.array(times["loop"])
    low, ratio, high = np.percentile(ratios, (25, 50, 75))
    difference = np.abs(answers["fused"] - answers["loop"]).max()
    return {
        "loop_ms": float(np.median(times["loop"])),
        "fused_ms": float(np.median(times["fused"])),
        "fused_over_loop": float(ratio),
        "quartile_1": float(low),
        "quartile_3": float(high),
        "difference": float(difference),
    }


def main() -> None:
    options = arguments()
    console, bundle = Console(), Bundle.open(options.bundle)
    way = chosen(bundle.manifest.presets, steps=options.steps, sampler=options.sampler)
    facts: dict[str, Any] = {
        "device": machine(),
        "bundle": bundle.manifest.name,
        "sample": f"1 tile, {way}, {options.rounds} rounds",
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    console.print("; ".join(f"{key}: {value}" for key, value in facts.items()), highlight=False)
    table = Table("engine", "loop ms a step", "fused ms a step", "fused / loop", "difference")
    found = {}
    for kind in options.engine or [AUTO]:
        name, ways = sides(bundle, kind, options, way)
        found[name] = row = measured(ways, options.rounds, way.steps)
        ratio = f"{row['fused_over_loop']:.3f} ({row['quartile_1']:.3f} to {row['quartile_3']:.3f})"
        table.add_row(
            name,
            f"{row['loop_ms']:.2f}",
            f"{row['fused_ms']:.2f}",
            ratio,
            f"{row['difference']:.1e}",
        )
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps({**facts, "engines": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
