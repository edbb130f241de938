"""Which of ONNX Runtime's session options help a single stream on this CPU?

Each variant differs from the engine's own options in one thing. Each is timed in processes of its
own, since some options and all first allocations belong to a process; the processes take turns.
Ratios are medians of the ratios within a turn, below 1 where the variant is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines.ort import cpu_options, load_onnxruntime
from wdm_runtime.machine import available_threads, machine, resident_bytes
from wdm_runtime.timing import feeds_of

ROLE, CALLS = "score_fp32", 9
OWN, CACHE = "the engine's own", "optimised-model cache"
Change = Callable[[Any], None]


def entry_of(name: str, value: str) -> Change:
    return lambda options: options.add_session_config_entry(name, value)


def attribute(**values: object) -> Change:
    def change(options: Any) -> None:
        for name, value in values.items():
            setattr(options, name, value)

    return change


VARIANTS: dict[str, Change] = {
    OWN: lambda options: None,
    "spinning": entry_of("session.intra_op.allow_spinning", "1"),
    "denormals as zero": entry_of("session.set_denormal_as_zero", "1"),
    "no prepacking": entry_of("session.disable_prepacking", "1"),
    "no arena": attribute(enable_cpu_mem_arena=False),
    "no memory pattern": attribute(enable_mem_pattern=False),
    "dynamic blocks": entry_of("session.dynamic_block_base", "4"),
    "one thread": attribute(intra_op_num_threads=1),
    CACHE: lambda options: None,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument("--start", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def session(bundle: Bundle, threads: int, change: Change, model: str | None = None) -> Any:
    """A session of the score graph, or of a file made of it."""
    ort = load_onnxruntime("ort-cpu", "cpu")
    options = cpu_options(ort, threads, bundle.manifest.graphs[ROLE])
    change(options)
    graph = bundle.graph(ROLE) if model is None else model
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def start(bundle: Bundle, threads: int, name: str, optimised: str) -> dict[str, float]:
    """Seconds to a session, to its first answer and a step, and MiB, in this fresh process."""
    ort = load_onnxruntime("ort-cpu", "cpu")  # the import is the same for all
    feeds = feeds_of(bundle.manifest.graphs[ROLE].inputs, 1)
    change, model = VARIANTS[name], None
    began = time.perf_counter()
    if name == CACHE:
        nothing = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # is left to be done
        change, model = attribute(graph_optimization_level=nothing), optimised
    opened = session(bundle, threads, change, model)
    open_s = time.perf_counter() - began
    opened.run(None, feeds)
    first_s = time.perf_counter() - began
    times = []
    for _ in range(CALLS):
        called = time.perf_counter()
        opened.run(None, feeds)
        times.append(time.perf_counter() - called)
    mib = (resident_bytes() or 0) / 2**20
    return {"open_s": open_s, "first_s": first_s, "step_s": statistics.median(times), "mib": mib}


def measured(asked: argparse.Namespace, bundle: Bundle) -> dict[str, list[dict[str, float]]]:
    """What `start` gave in each of the processes."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        optimised = str(Path(folder) / "optimised.onnx")
        session(bundle, asked.threads, attribute(optimized_model_filepath=optimised))
        own = ["--bundle", str(bundle.path), "--threads", str(asked.threads)]
        for turn in range(asked.rounds):
            for name in sorted(VARIANTS, reverse=turn % 2 == 1):
                command = [sys.executable, __file__, *own, "--start", name, optimised]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[name].append(json.loads(done.stdout))
    return found


def main() -> None:
    asked = arguments()
    console, bundle = Console(), Bundle.open(asked.bundle)
    if asked.start:
        print(json.dumps(start(bundle, asked.threads, *asked.start)))
        return
    version = load_onnxruntime("ort-cpu", "cpu").__version__
    facts = {
        "device": machine(),
        "version": f"onnxruntime {version}, {asked.threads} threads",
        "bundle": bundle.manifest.name,
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    console.print("; ".join(f"{key}: {value}" for key, value in facts.items()), highlight=False)
    found = measured(asked, bundle)
    table = Table("session", "step ms", "of the engine's own", "open s", "first answer s", "MiB")
    own = np.array([row["step_s"] for row in found[OWN]])
    for name, rows in found.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        ratios = np.array([row["step_s"] for row in rows]) / own
        low, ratio, high = np.percentile(ratios, (25, 50, 75))
        table.add_row(
            name,
            f"{1e3 * middle['step_s']:.1f}",
            "" if name == OWN else f"{ratio:.2f} ({low:.2f} to {high:.2f})",
            f"{middle['open_s']:.2f}",
            f"{middle['first_s']:.2f}",
            f"{middle['mib']:.0f}",
        )
    console.print(table)
    if asked.json:
        asked.json.write_text(json.dumps({**facts, "sessions": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
