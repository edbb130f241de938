"""Which of ONNX Runtime's session options help a single stream on this CPU?

Each variant differs from the engine's own options in one thing. Sessions of a group take turns, and
every timed call follows an untimed one; ratios are medians of the ratios within a turn, below 1
where the variant is faster. Starts are timed in fresh processes, as a session's first allocations
are not those of its second.
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
from wdm_runtime.engines.options import available_threads
from wdm_runtime.engines.ort import cpu_options, load_onnxruntime
from wdm_runtime.plan import resident_bytes
from wdm_runtime.process import machine
from wdm_runtime.timing import feeds_of

ROLE = "score_fp32"
OWN = "the engine's own"
Change = Callable[[Any], None]


def entry_of(name: str, value: str) -> Change:
    return lambda options: options.add_session_config_entry(name, value)


def attribute(**values: object) -> Change:
    def change(options: Any) -> None:
        for name, value in values.items():
            setattr(options, name, value)

    return change


STEPS: dict[str, Change] = {
    OWN: lambda options: None,
    "spinning": entry_of("session.intra_op.allow_spinning", "1"),
    "denormals as zero": entry_of("session.set_denormal_as_zero", "1"),
    "no prepacking": entry_of("session.disable_prepacking", "1"),
    "no arena": attribute(enable_cpu_mem_arena=False, enable_mem_pattern=False),
    "dynamic blocks": entry_of("session.dynamic_block_base", "4"),
    "one thread": attribute(intra_op_num_threads=1),
}
STARTS = (OWN, "no prepacking", CACHE := "optimised-model cache")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--rounds", type=int, default=12)
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


def steps(bundle: Bundle, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call of each variant."""
    feeds = feeds_of(bundle.manifest.graphs[ROLE].inputs, 1)
    opened = {name: session(bundle, threads, change) for name, change in STEPS.items()}
    expected = opened[OWN].run(None, feeds)[0]
    times: dict[str, list[float]] = {name: [] for name in opened}
    for turn in range(rounds):
        for name in sorted(opened, reverse=turn % 2 == 1):
            found = opened[name].run(None, feeds)[0]
            np.testing.assert_allclose(found, expected, atol=1e-4)
            began = time.perf_counter()
            opened[name].run(None, feeds)
            times[name].append(time.perf_counter() - began)
    return times


def start(bundle: Bundle, threads: int, name: str, optimised: str) -> dict[str, float]:
    """Seconds to a session and to its first answer in this fresh process, and MiB after it."""
    ort = load_onnxruntime("ort-cpu", "cpu")  # the import is the same for all
    feeds = feeds_of(bundle.manifest.graphs[ROLE].inputs, 1)
    began = time.perf_counter()
    if name == CACHE:
        nothing = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # is left to be done
        opened = session(bundle, threads, attribute(graph_optimization_level=nothing), optimised)
    else:
        opened = session(bundle, threads, STEPS[name])
    opened_s = time.perf_counter() - began
    opened.run(None, feeds)
    first_s = time.perf_counter() - began
    return {"open_s": opened_s, "first_s": first_s, "mib": (resident_bytes() or 0) / 2**20}


def starts(asked: argparse.Namespace, bundle: Bundle) -> dict[str, list[dict[str, float]]]:
    """What `start` gave in each of the fresh processes, which take turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in STARTS}
    with tempfile.TemporaryDirectory() as folder:
        optimised = str(Path(folder) / "optimised.onnx")
        session(bundle, asked.threads, attribute(optimized_model_filepath=optimised))
        own = ["--bundle", str(bundle.path), "--threads", str(asked.threads)]
        for _ in range(max(1, asked.rounds // 2)):
            for name in STARTS:
                command = [sys.executable, __file__, *own, "--start", name, optimised]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[name].append(json.loads(done.stdout))
    return found


def ratio(values: list[float], own: list[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios within a turn."""
    low, middle, high = np.percentile(np.array(values) / np.array(own), (25, 50, 75))
    return float(low), float(middle), float(high)


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
    times = steps(bundle, asked.threads, asked.rounds)
    table = Table("session", "ms a step", "of the engine's own (quartiles)")
    for name, values in times.items():
        low, middle, high = ratio(values, times[OWN])
        between = "" if name == OWN else f"{middle:.2f} ({low:.2f} to {high:.2f})"
        table.add_row(name, f"{1e3 * statistics.median(values):.1f}", between)
    console.print(table)
    opened = starts(asked, bundle)
    table = Table("session", "open s", "first answer s", "resident MiB")
    for name, rows in opened.items():
        middles = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        table.add_row(
            name, f"{middles['open_s']:.2f}", f"{middles['first_s']:.2f}", f"{middles['mib']:.0f}"
        )
    console.print(table)
    if asked.json:
        found = {**facts, "step_s": times, "starts": opened}
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
