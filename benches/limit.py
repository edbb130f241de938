"""How close do the CPU engines come to what this machine can multiply?

Counts the score network's floating point operations from the ONNX graph, times a step of each CPU
engine and precision and of torch, and beside them the largest rate of matrix products this machine
gives in the same precision on the same threads. All take turns, so that all see the same machine;
ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from networks import calling, random_network, torch_gflop
from rich.console import Console
from rich.table import Table

from wdm_export.config import NetworkConfig
from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import Choice, open_graph, select, survey
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import EngineError
from wdm_runtime.machine import available_threads, machine
from wdm_runtime.records import build
from wdm_runtime.timing import feeds_of

SIZES = (512, 1024, 2048)
# fp16 on a CPU: in arithmetic of its own where it has some, else in fp32 between casts.
LIMITS = {
    "fp32": (torch.float32,),
    "bf16": (torch.bfloat16, torch.float32),  # where torch has no bf16 worth the name
    "fp16": (torch.float16, torch.float32),
}
TABLE_WIDTH = 100
TORCH = "torch eager"


@dataclass
class Timed:
    """Something that takes turns: its work [GFLOP] and its times by round [s]."""

    name: str
    precision: str
    gflop: float
    call: Callable[[], object] = field(repr=False)
    seconds: list[float] = field(default_factory=list)

    @property
    def rates(self) -> np.ndarray:
        """GFLOP/s by round."""
        return self.gflop / np.array(self.seconds)


@dataclass(frozen=True)
class Row:
    """What is printed of an engine."""

    engine: str
    precision: str
    ms: float
    gflop_s: float
    limit_gflop_s: float
    of_limit: float
    times_torch: float


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} got {getattr(options, name)}; expected at least 1")
    return options


def graph_gflop(data: bytes) -> float:
    """Operations of a graph for one tile, two a multiply-add, in its products alone.

    Products of weights are left out: engines compute them once, when they load the graph.
    """
    model = onnx.load_from_string(data)
    for value in model.graph.input:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.output, *inferred.value_info)
    }
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    varying = {value.name for value in inferred.input}
    total = 0.0
    for node in inferred.node:
        if varying.intersection(node.input):
            varying.update(node.output)
            total += 2e-9 * multiply_adds(node, shapes)
    return total


def multiply_adds(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Multiply-adds of a product; 0 of any other node."""
    if node.op_type in ("Einsum", "Attention"):
        raise SystemExit(f"{node.output[0]}: {node.op_type} is not counted here; count it first")
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    left, right, out = (shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
    if not all(left) or not all(right) or not all(out) or not left or not right or not out:
        raise SystemExit(f"{node.output[0]}: its shapes {left}, {right}, {out} are not known")
    if node.op_type == "Conv":
        return int(np.prod(out)) * int(np.prod(right[1:]))  # (out, in / groups, height, width)
    if node.op_type == "ConvTranspose":
        return int(np.prod(left)) * int(np.prod(right[1:]))  # (in, out, height, width)
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return int(np.prod(out)) * (left[-2] if transposed else left[-1])


def network_of(bundle: Bundle) -> NetworkConfig:
    """The bundle's network as its manifest describes it."""
    network: NetworkConfig = build(NetworkConfig, bundle.manifest.training["network"], "network")
    return network


def on_torch(config: NetworkConfig, feeds: dict[str, Any], gflop: float) -> Timed:
    """The network in torch without compiling."""
    tensors = (torch.from_numpy(feeds[name]) for name in ("x", "condition", "t"))
    return Timed(TORCH, "fp32", gflop, calling(random_network(config), tensors))


def on_engine(bundle: Bundle, choice: Choice, feeds: dict[str, Any], threads: int) -> Timed:
    role = f"score_{choice.graph}"
    engine = open_graph(bundle, role, choice.kind, choice.precision, EngineOptions(threads))
    gflop = graph_gflop(bundle.graph(role))
    return Timed(choice.kind, choice.precision, gflop, lambda: engine.run(feeds))


def products(kind: torch.dtype) -> list[Timed]:
    """Square matrix products on torch, whose library is the CPU maker's or oneDNN."""
    found = []
    for size in SIZES:
        a, b = torch.randn(2, size, size).to(kind)
        name = f"{size} x {size}"
        found.append(Timed(name, str(kind), 2e-9 * size**3, partial(torch.mm, a, b)))
    return found


def faster(candidates: list[Timed], limits: list[Timed]) -> list[Timed]:
    """The candidates, or none where the CPU has no such arithmetic and takes seconds for them."""
    for one in (candidates[0], limits[0]):
        one.call()
        began = time.perf_counter()
        one.call()
        one.seconds.append(time.perf_counter() - began)
    slow = candidates[0].seconds.pop() > limits[0].seconds.pop()
    return [] if slow else candidates


def numpy_products() -> list[Timed]:
    """The same in NumPy, whose library may be another one."""
    found = []
    for size in SIZES:
        a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
        name = f"{size} x {size}, NumPy"
        found.append(Timed(name, str(torch.float32), 2e-9 * size**3, partial(np.matmul, a, b)))
    return found


def measure(everyone: list[Timed], rounds: int, console: Console) -> None:
    """Round robin; each timed call follows an untimed one."""
    with console.status("") as status:
        for i in range(rounds):
            status.update(f"Round {i + 1} of {rounds}")
            for one in everyone:
                one.call()
                began = time.perf_counter()
                one.call()
                one.seconds.append(time.perf_counter() - began)


def best(limits: list[Timed], precision: str) -> Timed:
    """The product of the highest median rate in a precision."""
    kinds = [str(kind) for kind in LIMITS[precision]]
    return max((p for p in limits if p.precision in kinds), key=lambda p: np.median(p.rates))


def rows(engines: list[Timed], limits: list[Timed]) -> list[Row]:
    reference = next(one for one in engines if one.name == TORCH)
    found = []
    for one in engines:
        limit = best(limits, one.precision)
        found.append(
            Row(
                one.name,
                one.precision,
                1e3 * float(np.median(one.seconds)),
                float(np.median(one.rates)),
                float(np.median(limit.rates)),
                float(np.median(one.rates / limit.rates)),
                float(np.median(np.array(reference.seconds) / np.array(one.seconds))),
            )
        )
    return found


def show(found: list[Row], console: Console) -> None:
    table = Table(
        caption="of the limit: the engine's rate over the best matrix product's in its precision"
    )
    table.add_column("engine", no_wrap=True)
    table.add_column("precision")
    for heading in ("ms a step", "GFLOP/s", "limit", "of the limit", "x torch eager fp32"):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(
            row.engine,
            row.precision,
            f"{row.ms:.1f}",
            f"{row.gflop_s:.0f}",
            f"{row.limit_gflop_s:.0f}",
            f"{row.of_limit:.0%}",
            f"{row.times_torch:.2f}",
        )
    console.print(table)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console = Console(width=TABLE_WIDTH)
    bundle = Bundle.open(options.bundle)
    config, entry = network_of(bundle), bundle.manifest.graphs["score_fp32"]
    feeds = feeds_of(entry.inputs, 1)
    gflop, by_torch = graph_gflop(bundle.graph("score_fp32")), torch_gflop(config, feeds["x"].shape)
    choices = [select(f.kind, p) for f in survey() for p in f.precisions]
    engines = [on_torch(config, feeds, by_torch)]
    for choice in choices:
        try:
            engines.append(on_engine(bundle, choice, feeds, options.threads))
        except EngineError as error:
            console.print(
                f"not measured: {choice.kind} in {choice.precision}: {error}", style="dim"
            )
    limits = products(torch.float32) + numpy_products()
    for kind in {kind for one in engines for kind in LIMITS[one.precision]} - {torch.float32}:
        limits += faster(products(kind), limits)
    load = os.getloadavg()[0]
    measure([*engines, *limits], options.rounds, console)
    facts = {
        "device": f"{machine()}, {options.threads} threads",
        "versions": f"torch {torch.__version__}, numpy {np.__version__}",
        "bundle": bundle.manifest.name,
        "gflop_a_tile": round(gflop, 3),
        "gflop_counted_by_torch": round(by_torch, 3),
        "rounds": options.rounds,
        "load": f"{load:.1f} before the run",
    }
    console.print("; ".join(f"{key}: {value}" for key, value in facts.items()), highlight=False)
    found = rows(engines, limits)
    show(found, console)
    for name in sorted({p.precision for p in limits}):
        rates = ", ".join(
            f"{p.name}: {np.median(p.rates):.0f}" for p in limits if p.precision == name
        )
        console.print(f"products in {name}, GFLOP/s: {rates}", highlight=False)
    if options.json:
        options.json.write_text(
            json.dumps({**facts, "rows": [asdict(row) for row in found]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
