"""What does one call of the score network cost, in wavelet space against pixels?

WDM-2, WDM-1 and the pixel model at the same widths, on torch and on the runtime's own engine.
Candidates take turns: call i of each, then call i + 1 of each. So whatever else a shared machine
does hits all alike, and ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from networks import calling, random_network, torch_gflop
from rich.console import Console
from rich.table import Table

from wdm_export.config import NetworkConfig
from wdm_export.graphs import graph_entry, score_graph
from wdm_export.unet import parameter_count
from wdm_runtime.engines import Engine, open_engine
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.machine import available_threads, machine
from wdm_runtime.skill import TILE_PX
from wdm_runtime.wavelets import WaveletSpec

MULTIPLIERS, BLOCKS = (1, 2, 2), 2
REFERENCE = "WDM-2"
ATTENTION_SHARE = 5  # the pixel model with attention joins every fifth round only: it takes seconds
T = 0.5
TABLE_WIDTH = 100
# Of the cores: above it, other work is on the machine. OpenMP's threads wait for each other at
# every layer and lose far more time to it than ONNX Runtime's, so 'x torch' then says little.
BUSY_LOAD = 0.5


@dataclass
class Candidate:
    """A network on an engine; ``ms`` holds its times by round."""

    network: str
    engine: str
    parameters: int
    gflop: float
    every: int
    call: Callable[[], object] = field(repr=False)
    ms: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What is printed of a candidate."""

    network: str
    engine: str
    parameters: int
    gflop: float
    rounds: int
    median_ms: float
    p95_ms: float
    times_wdm2: float | None
    times_torch: float | None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=int, default=64, help="channels of the finest depth")
    parser.add_argument("--calls", type=int, default=10, help="rounds")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--skip-attention", action="store_true", help="no pixel attention")
    parser.add_argument("--compile", action="store_true", help="torch.compile too; takes minutes")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    for name in ("base", "calls", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} got {getattr(options, name)}; expected at least 1")
    return options


def networks(base: int, skip_attention: bool) -> dict[str, NetworkConfig]:
    """The candidates by name; WDM as shipped, the pixel model with and without attention."""
    heads = min(NetworkConfig.head_channels, base * MULTIPLIERS[-1])

    def config(levels: int, attention: bool) -> NetworkConfig:
        return NetworkConfig(
            WaveletSpec(levels=levels), base, MULTIPLIERS, BLOCKS, attention, heads
        )

    found = {
        REFERENCE: config(2, True),
        "WDM-1": config(1, True),
        "pixel": config(0, False),
        "pixel, attention": config(0, True),
    }
    if skip_attention:
        del found["pixel, attention"]
    return found


def candidates(
    name: str, config: NetworkConfig, options: argparse.Namespace
) -> tuple[list[Candidate], Engine]:
    """A network on torch, compiled torch if asked for, and the runtime's engine."""
    network = random_network(config)
    size = TILE_PX // config.wavelet.stride
    tile = (1, config.wavelet.subbands, size, size)
    x, condition = np.random.default_rng(0).standard_normal((2, *tile), dtype=np.float32)
    feeds = {"x": x, "condition": condition, "t": np.array([T], dtype=np.float32)}
    tensors = [torch.from_numpy(value) for value in feeds.values()]
    model = score_graph(network, TILE_PX, fp16=False)
    data = model.SerializeToString()
    engine = open_engine(
        data,
        graph_entry(model, f"{name}.onnx", data),
        "ort-cpu",
        options=EngineOptions(options.threads),
    )
    calls = {"torch": calling(network, tensors)}
    if options.compile:
        calls["torch.compile"] = calling(torch.compile(network), tensors)
    calls[engine.kind] = lambda: engine.run(feeds)
    every = ATTENTION_SHARE if name == "pixel, attention" else 1
    facts = (parameter_count(network), torch_gflop(config, tile), every)
    return [Candidate(name, kind, *facts, call) for kind, call in calls.items()], engine


def measure(everyone: list[Candidate], rounds: int, console: Console) -> None:
    """Round robin; each timed call follows an untimed one of the same network, as in a loop.

    Without that a small network pays for the caches that a large one has just emptied.
    """
    with console.status("") as status:
        for i in range(rounds):
            for candidate in everyone:
                if i % candidate.every:
                    continue
                status.update(f"Round {i + 1} of {rounds}: {candidate.network}, {candidate.engine}")
                candidate.call()
                began = time.perf_counter()
                candidate.call()
                candidate.ms[i] = 1e3 * (time.perf_counter() - began)


def ratio(a: Candidate, b: Candidate) -> float | None:
    """Median over common rounds of a's time over b's; None of a candidate to itself."""
    if a is b:
        return None
    return float(np.median([a.ms[i] / b.ms[i] for i in a.ms if i in b.ms]))


def rows(everyone: list[Candidate]) -> list[Row]:
    by_name = {(c.network, c.engine): c for c in everyone}
    return [
        Row(
            c.network,
            c.engine,
            c.parameters,
            round(c.gflop, 2),
            len(c.ms),
            float(np.median(list(c.ms.values()))),
            float(np.percentile(list(c.ms.values()), 95)),
            ratio(c, by_name[REFERENCE, c.engine]),
            ratio(c, by_name[c.network, "torch"]),
        )
        for c in everyone
    ]


def show(found: list[Row], console: Console) -> None:
    table = Table(
        caption="x WDM-2: on the same engine; x torch: for the same network; both medians of the "
        "ratio within a round. The pixel model with attention joins one round in "
        f"{ATTENTION_SHARE}."
    )
    for heading in ("network", "engine"):
        table.add_column(heading, no_wrap=True)
    for heading in ("M par.", "GFLOP", "rounds", "ms p50", "p95", "x WDM-2", "x torch"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for row in found:
        if previous not in (None, row.network):
            table.add_section()
        previous = row.network
        ratios = ("" if r is None else f"{r:.2f}" for r in (row.times_wdm2, row.times_torch))
        table.add_row(
            row.network,
            row.engine,
            f"{row.parameters / 1e6:.2f}",
            f"{row.gflop:.1f}",
            str(row.rounds),
            f"{row.median_ms:.1f}",
            f"{row.p95_ms:.1f}",
            *ratios,
        )
    console.print(table)


def main() -> None:
    options = arguments()
    load = os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console = Console(width=TABLE_WIDTH)
    if options.compile:
        console.print("torch.compile builds each network first: expect minutes.", style="yellow")
    everyone: list[Candidate] = []
    engines: list[Engine] = []
    for name, config in networks(options.base, options.skip_attention).items():
        found, engine = candidates(name, config, options)
        everyone += found
        engines.append(engine)
    facts = {
        "device": machine(),
        "threads": options.threads,
        "versions": f"torch {torch.__version__}, {engines[0].version}",
        "network": f"base {options.base}, {MULTIPLIERS}, {BLOCKS} blocks, one {TILE_PX} tile, fp32",
        "load": f"{load:.1f} before the run",
    }
    console.print("; ".join(f"{key}: {value}" for key, value in facts.items()), highlight=False)
    if load > BUSY_LOAD * available_threads():
        console.print(
            "The machine is busy: rely on ort-cpu's 'x WDM-2', not on 'x torch'.", style="yellow"
        )
    try:
        measure(everyone, options.calls, console)
    finally:
        for engine in engines:
            engine.close()
    found_rows = rows(everyone)
    show(found_rows, console)
    if options.json:
        text = json.dumps({**facts, "rows": [asdict(row) for row in found_rows]}, indent=1)
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
