"""The real parser and builder of TensorRT-RTX, which need no GPU, on the bundles' graphs.

What a GPU makes of the plans is not tested here: `deserialize_cuda_engine` needs one.
"""

import inspect
import re
import time
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import API
from parsed_network import evaluate

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import open_engine, tensorrt_plan
from wdm_runtime.engines.tensorrt_module import load_module, logger
from wdm_runtime.engines.tensorrt_plan import build_plan
from wdm_runtime.errors import EngineError

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (verify-trt)")

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "wdm2-mrms"
TARGETS = {(8, 6): "SM86", (8, 9): "SM89", (12, 0): "SM120"}
PRECISIONS = ("fp32", "fp16")


def graph_and_entry(bundle, precision="fp32"):
    bundle, role = Bundle.open(bundle), f"score_{precision}"
    return bundle.graph(role), bundle.manifest.graphs[role]


def parse(bundle, precision, batch):
    """The network; its builder has to live as long."""
    builder = trt.Builder(logger(trt))
    network = tensorrt_plan._parse(trt, builder, *graph_and_entry(bundle, precision), batch)
    return builder, network


def feeds(entry, batch, seed=0):
    random = np.random.default_rng(seed)
    shapes = {spec.name: tensorrt_plan.fixed_shape(spec, batch) for spec in entry.inputs}
    values = {name: random.standard_normal(s, dtype=np.float32) for name, s in shapes.items()}
    return {**values, "t": np.array([0.4], dtype=np.float32)}


def relative_difference(bundle, precision, batch):
    graph, entry = graph_and_entry(bundle, precision)
    given = feeds(entry, batch)
    expected = open_engine(graph, entry, "ort-cpu").run(given)
    _builder, network = parse(bundle, precision, batch)
    found = evaluate(trt, network, given)[entry.outputs[0].name]
    return np.abs(found - expected).max() / np.abs(expected).max()


def kernels(bundle, precision, batch):
    """Name, data types of the outputs of every kernel in the plan, from the builder's own log."""

    class Everything(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.messages = []

        def log(self, severity, msg):
            self.messages.append(msg)

    log = Everything()
    builder = trt.Builder(log)
    network = tensorrt_plan._parse(trt, builder, *graph_and_entry(bundle, precision), batch)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    tensorrt_plan._set_target(trt, config, (8, 6))
    assert builder.build_serialized_network(network, config) is not None
    (listing,) = (message for message in log.messages if message.startswith("Layers:"))
    lines = [line for line in listing.split("\n") if line.startswith("Name:")]
    return [
        (line, re.findall(r"Datatype: (\w+)", line.split("Outputs:")[1].split("TacticName")[0]))
        for line in lines
    ]


def test_the_module_is_accepted():
    assert load_module("tensorrt-rtx") is trt


def test_the_table_of_the_fakes_is_of_the_real_classes():
    """Only members that this project's code could use: the installed version may have more."""
    for class_name, members in API["rtx-1.7"]["classes"].items():
        real = getattr(trt, class_name)
        assert [name for name in members if not hasattr(real, name)] == [], class_name
    for enum, values in API["rtx-1.7"]["enums"].items():
        real = trt.ILogger.Severity if enum == "Severity" else getattr(trt, enum)
        assert {name: int(real.__members__[name]) for name in values} == values


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("capability", TARGETS)
def test_the_tiny_graph_builds_for_every_target(tiny, precision, capability):
    plan = build_plan(trt, *graph_and_entry(tiny, precision), 1, capability)
    assert plan.startswith(b"vtrt") and len(plan) > 100_000


def test_another_batch_is_another_plan_and_the_same_asks_give_the_same(tiny):
    arguments = (trt, *graph_and_entry(tiny, "fp16"))
    plans = [build_plan(*arguments, batch, (8, 6)) for batch in (1, 1, 4)]
    assert plans[0] == plans[1] != plans[2]


def test_the_shipped_half_precision_graph_builds_for_three_targets():
    began = time.process_time()
    for capability in TARGETS:
        assert build_plan(trt, *graph_and_entry(SHIPPED, "fp16"), 1, capability)
    assert time.process_time() - began < 30  # takes 10 s on one core: minutes would be a defect


def test_building_reports_progress(tiny):
    seen = []
    build_plan(trt, *graph_and_entry(tiny), 1, (8, 6), progress=lambda *step: seen.append(step))
    whole = [done for phase, done, steps in seen if phase == "Building engine" and steps == 6]
    assert whole == sorted(whole) and len(whole) >= 4
    assert all(done <= steps for _, done, steps in seen)


def test_an_exception_of_the_progress_callback_stops_the_builder(tiny):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plan(trt, *graph_and_entry(tiny), 1, (8, 6), progress=stop)


def test_gpus_it_has_no_kernels_for_are_refused_by_name(tiny):
    with pytest.raises(EngineError, match=r"SM87; expected one of .*SM86"):
        build_plan(trt, *graph_and_entry(tiny), 1, (8, 7))


def test_a_file_that_is_no_graph_says_what_the_parser_says(tiny):
    with pytest.raises(EngineError, match=r"does not parse score_fp32.onnx .*Failed to parse"):
        build_plan(trt, b"no graph", graph_and_entry(tiny)[1], 1, (8, 6))


def test_a_manifest_of_another_graph_is_refused(tiny):
    with pytest.raises(EngineError, match="the manifest says"):
        build_plan(trt, graph_and_entry(tiny)[0], graph_and_entry(SHIPPED)[1], 1, (8, 6))


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 5e-6), ("fp16", 5e-3)])
@pytest.mark.parametrize(("shipped", "batch"), [(False, 1), (False, 3), (True, 1)])
def test_the_parser_understands_the_graph(tiny, shipped, batch, precision, bound):
    assert relative_difference(SHIPPED if shipped else tiny, precision, batch) < bound


def test_the_kernels_are_half_precision_and_fused():
    listed = kernels(SHIPPED, "fp16", 1)
    floating = [dtype for _, dtypes in listed for dtype in dtypes if dtype in ("Half", "Float")]
    assert floating.count("Half") >= 0.75 * len(floating)
    _builder, network = parse(SHIPPED, "fp16", 1)
    layers = [network.get_layer(i).type.name for i in range(network.num_layers)]
    names = [line.split(",")[0] for line, _ in listed]
    # One kernel per group norm, mostly with its SiLU, and one per attention.
    assert sum("Gnor_" in name for name in names) == layers.count("NORMALIZATION")
    assert sum("_mha_" in name for name in names) == layers.count("SOFTMAX")
    assert len(listed) <= 180  # 176 when this was written, 40 of which clear the norms' counters


def test_signatures_of_the_table_are_those_of_the_installed_version():
    """Spot checks by name of what is called with arguments."""
    for class_name, method in (
        ("Builder", "build_serialized_network"),
        ("OnnxParser", "parse"),
        ("IBuilderConfig", "set_compute_capability"),
        ("IExecutionContext", "set_tensor_address"),
        ("IExecutionContext", "execute_async_v3"),
    ):
        text = inspect.getdoc(getattr(getattr(trt, class_name), method))
        (listed,) = API["rtx-1.7"]["classes"][class_name][method]
        for parameter in listed:
            assert re.search(rf"\b{parameter.rstrip('=')}:", text), (class_name, method, text)
