"""The fused step's file: a fragment that makes a whole of every score graph, or is refused."""

import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from conftest import rewrite_graph  # noqa: E402

from wdm_export.parity import FP32_LIMIT  # noqa: E402
from wdm_export.step_graph import compare_step, step_tail  # noqa: E402
from wdm_runtime.bundle import Bundle  # noqa: E402
from wdm_runtime.engines.step import step_graph  # noqa: E402
from wdm_runtime.errors import ParityError  # noqa: E402


def names(nodes):
    return {name for node in nodes for name in (*node.input, *node.output)}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_whole_is_both_graphs_and_nothing_else(tiny, precision):
    bundle = Bundle.open(tiny)
    score = onnx.load_from_string(bundle.graph(f"score_{precision}"))
    tail = onnx.load_from_string(bundle.graph("step"))
    whole = onnx.load_from_string(step_graph(bundle, precision)[0])
    assert list(whole.graph.node) == [*score.graph.node, *tail.graph.node]
    assert list(whole.graph.initializer) == list(score.graph.initializer)
    assert (whole.ir_version, list(whole.opset_import)) == (
        score.ir_version,
        list(score.opset_import),
    )
    # What the fragment takes from the score graph, and nothing by accident.
    assert names(score.graph.node) & names(tail.graph.node) == {"x", "v"}
    onnx.checker.check_model(whole, full_check=True)


def test_the_file_is_what_the_exporter_makes(tiny):
    bundle = Bundle.open(tiny)
    for precision in ("fp32", "fp16"):
        data, entry = step_tail(bundle.manifest.graphs[f"score_{precision}"])
        assert data == bundle.graph("step") and entry == bundle.manifest.graphs["step"]


def test_the_check_compares_numbers(tiny_copy):
    assert compare_step(Bundle.open(tiny_copy)).passed
    tail = onnx.load_from_string(Bundle.open(tiny_copy).graph("step"))
    (subtract,) = (node for node in tail.graph.node if node.op_type == "Sub")
    subtract.op_type = "Add"
    rewrite_graph(tiny_copy, "step", tail.SerializeToString())
    found = compare_step(Bundle.open(tiny_copy))
    assert not found.passed and found.difference > 100 * FP32_LIMIT


def test_a_fragment_of_another_network_is_refused(tiny_copy):
    tail = onnx.load_from_string(Bundle.open(tiny_copy).graph("step"))
    tail.graph.node[1].input[0] = "nowhere"
    rewrite_graph(tiny_copy, "step", tail.SerializeToString())
    with pytest.raises(ParityError, match="does not continue score_fp32"):
        compare_step(Bundle.open(tiny_copy))
