"""What graphs may consist of: the gate against ONNX's own writer, and against bytes at random."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdm_runtime.bundle import Bundle
from wdm_runtime.errors import BundleError
from wdm_runtime.onnx_gate import ALLOWED_OPS, OPSET, check_graph
from wdm_runtime.protobuf_wire import (
    BYTES,
    FIXED32,
    VARINT,
    Refused,
    read_message,
    table,
    write_message,
)

MODELS = Path(__file__).resolve().parents[2] / "models"
BUNDLES = [Bundle.open(path.parent) for path in sorted(MODELS.glob("*/manifest.json"))]
GRAPHS = [(bundle, role) for bundle in BUNDLES for role in bundle.manifest.graphs]
DWT = (MODELS / "tiny" / "dwt.onnx").read_bytes()
SCORE = (MODELS / "tiny" / "score_fp32.onnx").read_bytes()


@pytest.mark.parametrize(("bundle", "role"), GRAPHS, ids=[f"{b.path.name}/{r}" for b, r in GRAPHS])
def test_our_graphs_pass(bundle, role):
    check_graph(bundle.graph(role), role, tail=role == "step")


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx", reason="needs the extra 'export'")


def subgraph(onnx, model):
    body = onnx.helper.make_graph([], "body", [], [])
    add(model, onnx.helper.make_node("Relu", ["field"], ["y"], body=body))


def add(model, node):
    model.graph.node.append(node)


def tensor(onnx, model):
    return model.graph.initializer[0]


def external(onnx, model):
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../../etc/passwd"), ("length", "64")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value


def outside(onnx, model):
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


def sparse(onnx, model):
    model.graph.sparse_initializer.add().dims.append(4)


def op(name, domain="", **attributes):
    def change(onnx, model):
        add(model, onnx.helper.make_node(name, ["field"], ["y"], domain=domain, **attributes))

    return change


def fewer_values(onnx, model):
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def half_a_value(onnx, model):
    model.graph.initializer[0].raw_data += b"\x00"


def typed_values(onnx, model):
    model.graph.initializer[0].float_data.append(1.0)


def texts(onnx, model):
    model.graph.initializer.append(onnx.helper.make_tensor("s", onnx.TensorProto.STRING, [1], "x"))


def shape(*dims):
    def change(onnx, model):
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


def function(onnx, model):
    model.functions.add().name = "f"


def training(onnx, model):
    model.training_info.add()


def opset(domain, version):
    def change(onnx, model):
        model.opset_import.append(onnx.helper.make_opsetid(domain, version))

    return change


def older(onnx, model):
    model.opset_import[0].version = 17


def no_nodes(onnx, model):
    del model.graph.node[:]


def sequence(onnx, model):
    model.graph.input[0].type.Clear()
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1


def long_name(onnx, model):
    model.graph.node[0].name = "x" * 5000


def many_nodes(onnx, model):
    for _ in range(20_001):
        model.graph.node.add().op_type = "Relu"


def pads(onnx, model):
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("pads", [0, 0, 2**40, 0]))


def quantisation(onnx, model):
    model.graph.quantization_annotation.add()


REFUSED = {
    "a subgraph": (subgraph, "field 6 of wire type 2"),
    "external data": (external, "field 13"),
    "data marked external": (outside, "outside the file"),
    "a sparse tensor": (sparse, "field 15"),
    "a branch": (op("If"), "':If'"),
    "a loop": (op("Loop"), "':Loop'"),
    "random numbers": (op("RandomNormalLike"), "':RandomNormalLike'"),
    "a custom op": (op("Conv", "com.microsoft"), "'com.microsoft:Conv'"),
    "an op that makes much of little": (op("ConstantOfShape"), "':ConstantOfShape'"),
    "fewer values than the shape says": (fewer_values, r"shape \[.*values"),
    "half a value": (half_a_value, "within a value"),
    "values twice": (typed_values, "has its values in"),
    "texts": (texts, "field 6"),
    "a negative size": (shape(-4, -1, 2, 2), "shape"),
    "a huge size": (shape(2**40, 0), "shape"),
    "nine axes": (shape(*[1] * 8, 16), "more than 8 of 'dims'"),
    "a function": (function, "field 25"),
    "training": (training, "field 20"),
    "another domain": (opset("com.microsoft", 1), "imports opsets"),
    "two opsets": (opset("", 20), "imports opsets"),
    "another opset": (older, "imports opsets"),
    "nothing to do": (no_nodes, "no nodes"),
    "a sequence": (sequence, "type has field 4"),
    "a long name": (long_name, "5000 bytes long"),
    "too many nodes": (many_nodes, "more than 20000 of 'node'"),
    "a huge attribute": (pads, "attribute beyond"),
    "quantisation": (quantisation, "field 14"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_with_more_than_arithmetic_is_refused(onnx, name):
    change, message = REFUSED[name]
    model = onnx.load_from_string(DWT)
    check_graph(model.SerializeToString(), "dwt.onnx")
    change(onnx, model)
    with pytest.raises(BundleError, match=message) as caught:
        check_graph(model.SerializeToString(), "dwt.onnx")
    assert str(caught.value).startswith("dwt.onnx: ") and "Fetch or export" in str(caught.value)


def test_every_allowed_op_is_of_the_opset_and_draws_no_numbers(onnx):
    for name in ALLOWED_OPS:
        schema = onnx.defs.get_schema(name, OPSET)
        kinds = {attribute.type for attribute in schema.attributes.values()}
        assert onnx.defs.OpSchema.AttrType.GRAPH not in kinds
        assert schema.node_determinism == onnx.defs.OpSchema.NodeDeterminism.Deterministic


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("FLOAT", [1.5, -2.0]),
        ("INT64", [-1, 2**62]),
        ("INT32", [-5, 7]),
        ("BOOL", [True, False]),
        ("FLOAT16", [0.5, 2.0]),
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_values_in_any_of_the_forms_onnx_writes(onnx, kind, values, raw):
    number = getattr(onnx.TensorProto, kind)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(number)
    given_values = np.array(values, dtype).tobytes() if raw else values
    held = onnx.helper.make_tensor("c", number, [2], given_values, raw)
    model = onnx.load_from_string(DWT)
    add(model, onnx.helper.make_node("Constant", [], ["c"], value=held))
    check_graph(model.SerializeToString(), "dwt.onnx")
    held.dims[0] = 3
    model.graph.node[-1].attribute[0].t.CopyFrom(held)
    with pytest.raises(BundleError, match=r"shape \[3\] has 2 values"):
        check_graph(model.SerializeToString(), "dwt.onnx")


def test_what_parsers_would_join_is_looked_at_as_well(onnx):
    """By protobuf's definition one message after another is one, with the lists of both."""
    body = onnx.load_from_string(DWT).graph
    tail = onnx.ModelProto(graph=body).SerializeToString()
    check_graph(tail, "step.onnx", tail=True)
    check_graph(DWT + tail, "dwt.onnx with step.onnx")
    body.node[0].op_type = "Loop"
    worse = onnx.ModelProto(graph=body).SerializeToString()
    for data, is_tail in ((worse, True), (DWT + worse, False)):
        with pytest.raises(BundleError, match="':Loop'"):
            check_graph(data, "step.onnx", is_tail)
    for data, is_tail, message in (
        (tail, False, "no 'ir_version'"),
        (DWT, True, "continues a graph, and has"),
        (b"", True, "continues a graph, and has none"),
        (DWT + DWT, False, "more than 1 of 'ir_version'"),
        (DWT + tail + tail, False, "more than 2 of 'graph'"),
    ):
        with pytest.raises(BundleError, match=message):
            check_graph(data, "step.onnx", is_tail)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x08", "cut short"),
        (b"\x08" + b"\xff" * 9, "cut short"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "64 bits"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "64 bits"),
        (b"\x12\x05abcd", "longer than what holds it"),
        (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "longer than what holds it"),
        (b"\x0b\x0c", "field 1 of wire type 3"),
        (b"\x08\x01\x08\x01", "more than 1 of 'a'"),
    ],
)
def test_malformed_messages_are_refused(data, message):
    with pytest.raises(Refused, match=message):
        read_message(memoryview(data), table(a=(1, VARINT), b=(2, BYTES)), "it")


@given(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=300))
def test_messages_are_read_as_they_were_written(number, text):
    def varint(value):
        value %= 2**64
        parts = bytearray()
        while value >= 0x80:
            parts.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*parts, value])

    fields = table(a=(1, VARINT), b=(2, BYTES), c=(3, FIXED32, 2))
    data = b"\x08" + varint(number) + b"\x12" + varint(len(text)) + text + b"\x1d1234\x1d5678"
    found = read_message(memoryview(data), fields, "it")
    assert found["a"] == [number] and bytes(found["b"][0]) == text
    assert [bytes(value) for value in found["c"]] == [b"1234", b"5678"]
    assert write_message(found, fields) == data


@settings(max_examples=300, deadline=2000)
@given(st.data())
def test_damaged_graphs_give_typed_errors_only(data):
    graph = bytearray(SCORE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(graph) - 1))
        piece = data.draw(st.binary(max_size=12))
        graph[at : at + data.draw(st.integers(0, 40))] = piece
    with suppress(BundleError):
        check_graph(bytes(graph), "score.onnx")


@settings(max_examples=300, deadline=2000)
@given(st.binary(max_size=4000))
def test_bytes_at_random_are_no_graph(data):
    with pytest.raises(BundleError):
        check_graph(data, "score.onnx")


@pytest.mark.parametrize(("nodes", "said"), [(112, "no nodes, no inputs"), (124, "beside its")])
def test_many_small_fields_keep_no_reader_busy(nodes, said):
    """The most that is looked at is half a million of them; more is refused unread."""
    attribute = b"\x0a\x01a" + b"\x40\x01" * 64
    node = b"\x22\x03Add" + b"".join(
        b"\x2a" + length(len(attribute)) + attribute for _ in range(64)
    )
    graph = b"".join(b"\x0a" + length(len(node)) + node for _ in range(nodes))
    with pytest.raises(BundleError, match=said):
        check_graph(b"\x08\x0a\x42\x04\x0a\x00\x10\x14\x3a" + length(len(graph)) + graph, "x")


def length(size):
    return bytes(
        [size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14 & 0x7F | 0x80, size >> 21]
    )
