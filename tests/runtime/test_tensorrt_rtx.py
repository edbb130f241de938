"""The real parser and builder of TensorRT-RTX, which need no GPU, on the bundles' graphs.

What a GPU makes of the plans is not tested here: `deserialize_cuda_engine` needs one.
"""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import API
from filter_banks import spec_of
from parsed_network import evaluate

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import open_engine, tensorrt_plan
from wdm_runtime.engines.fixed_batch import fixed_shape
from wdm_runtime.engines.tensorrt_module import load_module, logger
from wdm_runtime.engines.tensorrt_plan import build_plan, has_fp32
from wdm_runtime.errors import EngineError
from wdm_runtime.wavelets import idwt

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (verify-trt)")

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "wdm2-mrms"
TARGETS = {(8, 6): "SM86", (8, 9): "SM89", (12, 0): "SM120"}
PRECISIONS = ("fp32", "fp16")
STRONGLY_TYPED = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED


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
    shapes = {spec.name: fixed_shape(spec, batch) for spec in entry.inputs}
    values = {name: random.standard_normal(s, dtype=np.float32) for name, s in shapes.items()}
    return {**values, "t": np.array([0.4], dtype=np.float32)}


def relative_difference(bundle, precision, batch):
    graph, entry = graph_and_entry(bundle, precision)
    given = feeds(entry, batch)
    expected = open_engine(graph, entry, "ort-cpu").run(given)
    _builder, network = parse(bundle, precision, batch)
    found = evaluate(trt, network, given)[entry.outputs[0].name]
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="session")
def shipped_fp16():
    """The shipped weights as this exporter writes them, whatever the bundle in the repository."""
    pytest.importorskip("torch", reason="torch is not installed (export)")
    from wdm_export import graphs
    from wdm_export.checkpoint import Checkpoint
    from wdm_runtime.skill import TILE_PX

    weights = Checkpoint.load(SHIPPED.with_suffix(".safetensors")).released()
    model = graphs.score_graph(weights.network(), TILE_PX, fp16=True)
    graphs.label(model, "score_fp16")
    data = model.SerializeToString()
    return data, graphs.graph_entry(model, "score_fp16.onnx", data)


def transform_graph(name, role):
    """The bytes of a wavelet's graph over two levels, and the wavelet."""
    pytest.importorskip("torch", reason="torch is not installed (export)")
    from wdm_export import graphs

    spec = spec_of(name)
    model = {"dwt": graphs.dwt_graph, "idwt": graphs.idwt_graph}[role](spec)
    graphs.label(model, role)
    return model.SerializeToString(), spec


def parse_dynamic(graph):
    """The builder and the network, whose sizes are still free."""
    builder = trt.Builder(logger(trt))
    network = builder.create_network(1 << int(STRONGLY_TYPED))
    assert trt.OnnxParser(network, logger(trt)).parse(graph), logger(trt).take()
    return builder, network


def kernels(graph, entry, batch):
    """Name, data types of the outputs of every kernel in the plan, from the builder's own log."""

    class Everything(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.messages = []

        def log(self, severity, msg):
            self.messages.append(msg)

    log = Everything()
    builder = trt.Builder(log)
    network = tensorrt_plan._parse(trt, builder, graph, entry, batch)
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


def test_the_shipped_half_precision_graph_builds_for_three_targets(shipped_fp16):
    """How long that takes in all is what ``--durations=1 -k three_targets`` prints."""
    for capability in TARGETS:
        assert build_plan(trt, *shipped_fp16, 1, capability)


def test_the_half_precision_graph_builds_for_gpus_without_fp32_matrix_products(shipped_fp16):
    """TensorRT-RTX has none for compute capability 7.5: the time embedding must do without."""
    assert build_plan(trt, *shipped_fp16, 1, (7, 5))


@pytest.mark.parametrize("capability", [(7, 5), (8, 6)])
def test_full_precision_builds_where_it_is_offered(tiny, capability):
    try:
        built = build_plan(trt, *graph_and_entry(tiny), 1, capability)
    except EngineError:
        built = None
    assert has_fp32(trt, capability) is bool(built)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("capability", TARGETS)
def test_a_free_batch_builds_with_a_profile_and_not_without(tiny, precision, capability):
    """The runtime fixes the batch; whoever takes the graphs elsewhere need not."""
    graph, entry = graph_and_entry(tiny, precision)
    plans = []
    for profiled in (False, True):
        builder = trt.Builder(logger(trt))
        network = builder.create_network(1 << int(STRONGLY_TYPED))
        assert trt.OnnxParser(network, logger(trt)).parse(graph)
        config = builder.create_builder_config()
        tensorrt_plan._set_target(trt, config, capability)
        if profiled:
            profile = builder.create_optimization_profile()
            for spec in entry.inputs:
                profile.set_shape(spec.name, *(fixed_shape(spec, n) for n in (1, 2, 4)))
            assert config.add_optimization_profile(profile) == 0
        assert tuple(network.get_output(0).shape) == (-1, *entry.outputs[0].shape[1:])
        plans.append(builder.build_serialized_network(network, config))
    assert plans[0] is None and "no optimization profile" in logger(trt).take()
    assert plans[1] is not None


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


def test_the_kernels_are_half_precision_and_fused(shipped_fp16):
    listed = kernels(*shipped_fp16, 1)
    floating = [dtype for _, dtypes in listed for dtype in dtypes if dtype in ("Half", "Float")]
    assert floating.count("Half") >= 0.89 * len(floating)
    names = [line.removeprefix("Name: ").partition(",")[0] for line, _ in listed]
    # One kernel per group norm, with its SiLU where it has one and its casts to fp32, and one per
    # attention. A network of these widths has 37 and 2 of them.
    large = [name for name in names if "Gnor_" in name]
    small = [name for name in names if re.search(r"CastMean.*AddSqrtDiv.*Resh", name)]
    assert (len(large), len(small)) == (11, 26)
    assert sum("Silu" in name for name in large + small) == 35
    assert sum("_mha_" in name for name in names) == 2
    # Those of large groups need another kernel, which clears their counters.
    cleared = [line for line, dtypes in listed if dtypes == ["Int32"]]
    assert len(cleared) == len(large)
    # The rest: 54 convolutions, 4 kernels around attention, 2 concatenations and a move, 2
    # upsamplings, 4 for the time and 2 casts.
    assert len(listed) <= 120


def test_the_parser_understands_the_shipped_graph_as_exported_now(shipped_fp16):
    """Groups of both sizes, which the tiny bundle has not."""
    given = feeds(shipped_fp16[1], 1)
    expected = open_engine(*shipped_fp16, "ort-cpu").run(given)
    builder = trt.Builder(logger(trt))
    network = tensorrt_plan._parse(trt, builder, *shipped_fp16, 1)
    found = evaluate(trt, network, given)[shipped_fp16[1].outputs[0].name]
    assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()


@pytest.mark.parametrize("role", ["dwt", "idwt"])
@pytest.mark.parametrize("name", ["haar", "db2", "bior2.2"])
def test_the_parser_understands_the_transforms_of_any_filter_bank(name, role):
    """Of fields of any size; how the periodic borders are cut out is shapes' arithmetic."""
    graph, spec = transform_graph(name, role)
    for rows, columns in ((16, 24), (31, 7)):
        builder, network = parse_dynamic(graph)
        given = network.get_input(0)
        coeffs = np.random.default_rng(0).standard_normal((16, rows, columns), dtype=np.float32)
        field = idwt(coeffs, spec)
        x, expected = (field, coeffs) if role == "dwt" else (coeffs, field)
        assert tuple(given.shape) == (1, len(x), -1, -1)
        given.shape = (1, *x.shape)
        (found,) = evaluate(trt, network, {given.name: x[None]}).values()
        np.testing.assert_allclose(found[0], expected, atol=5e-6)
        del builder  # which has to live as long as its network


@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("role", ["dwt", "idwt"])
def test_the_transforms_of_a_long_filter_bank_build_for_every_target(role, capability):
    graph, _ = transform_graph("db2", role)
    builder, network = parse_dynamic(graph)
    given = network.get_input(0)
    config = builder.create_builder_config()
    tensorrt_plan._set_target(trt, config, capability)
    profile = builder.create_optimization_profile()
    shapes = [(1, given.shape[1], edge, edge) for edge in (16, 72, 512)]
    profile.set_shape(given.name, *shapes)
    assert config.add_optimization_profile(profile) == 0
    assert builder.build_serialized_network(network, config) is not None, logger(trt).take()


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
