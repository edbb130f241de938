"""The real parser and builder of TensorRT-RTX on fused steps: what they cost, what they compute.

What a GPU makes of the plans is not tested here: `deserialize_cuda_engine` needs one.
"""

from pathlib import Path

import numpy as np
import pytest
from parsed_network import evaluate

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import tensorrt_plan
from wdm_runtime.engines.fixed_batch import fixed_shape
from wdm_runtime.engines.ort import OrtCpuEngine
from wdm_runtime.engines.step import step_graph
from wdm_runtime.engines.tensorrt_module import logger
from wdm_runtime.engines.tensorrt_plan import build_plan

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (verify-trt)")

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "wdm2-mrms"
TARGETS = [(8, 6), (8, 9), (12, 0)]


@pytest.fixture(params=["tiny", "shipped"])
def bundle(request, tiny):
    opened = Bundle.open(tiny if request.param == "tiny" else SHIPPED)
    if "step" not in opened.manifest.graphs:
        pytest.skip("this bundle was exported without a fused step")
    return opened


def kernels(graph, entry):
    """A line of the builder's log for every kernel of the plan."""

    class Everything(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.messages = []

        def log(self, severity, msg):
            self.messages.append(msg)

    log = Everything()
    builder = trt.Builder(log)
    network = tensorrt_plan._parse(trt, builder, graph, entry, 1)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    tensorrt_plan._set_target(trt, config, (8, 6))
    assert builder.build_serialized_network(network, config) is not None
    (listing,) = (message for message in log.messages if message.startswith("Layers:"))
    return [line for line in listing.split("\n") if line.startswith("Name:")]


@pytest.mark.parametrize("capability", TARGETS)
def test_the_half_precision_step_builds_for_every_target(bundle, capability):
    assert build_plan(trt, *step_graph(bundle, "fp16"), 1, capability).startswith(b"vtrt")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_update_is_part_of_the_last_kernel(bundle, precision):
    role = f"score_{precision}"
    score = kernels(bundle.graph(role), bundle.manifest.graphs[role])
    fused = kernels(*step_graph(bundle, precision))
    # None more in half precision, where the last kernel casts anyway; at most one in fp32.
    assert len(fused) <= len(score) + (precision == "fp32")
    (last,) = (line for line in fused if "Name: x_next" in line)
    assert "Name: denoised" in last and "Name: noise" in last and "Name: scalars" in last
    assert "Datatype: Half" not in last.partition("Outputs:")[2].partition("TacticName")[0]


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 5e-6), ("fp16", 5e-3)])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_parser_understands_the_step(tiny, batch, precision, bound):
    graph, entry = step_graph(Bundle.open(tiny), precision)
    random = np.random.default_rng(0)
    given = {
        spec.name: random.standard_normal(fixed_shape(spec, batch), dtype=np.float32)
        for spec in entry.inputs
    } | {"t": np.array([0.4], dtype=np.float32)}
    expected = OrtCpuEngine(graph, entry, precision, 1).run_all(given)
    builder = trt.Builder(logger(trt))  # has to live as long as its network
    network = tensorrt_plan._parse(trt, builder, graph, entry, batch)
    found = evaluate(trt, network, given)
    for spec, values in zip(entry.outputs, expected, strict=True):
        assert np.abs(found[spec.name] - values).max() / np.abs(values).max() < bound, spec.name
