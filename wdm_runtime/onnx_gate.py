"""What a graph may consist of, checked on its bytes before any engine sees them.

The tables hold every field of onnx.proto that a graph of ours may have. What is not in them is
refused: subgraphs, functions, training, external and sparse tensors, sequences and maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

from wdm_runtime.errors import BundleError
from wdm_runtime.protobuf_wire import BYTES, FIXED32, VARINT, Message, Refused, read_message, table

OPSET = 20
# Arithmetic and shapes, nothing that draws numbers, branches, loops or reads files. `Range`,
# `ConstantOfShape` and `Tile` make much of little and no graph of ours needs them.
_ARITHMETIC = (
    *("Abs", "Add", "Clip", "Cos", "Div", "Erf", "Exp", "Max", "Min", "Mul", "Neg", "Pow"),
    *("Reciprocal", "Relu", "Sigmoid", "Sin", "Sqrt", "Sub", "Tanh", "Where"),
)
_LAYERS = (
    *("AveragePool", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool", "InstanceNormalization"),
    *("LayerNormalization", "MatMul", "ReduceMean", "ReduceSum", "Resize", "Softmax"),
)
_SHAPES = (
    *("Cast", "Concat", "Constant", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity"),
    *("Reshape", "Shape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze"),
)
ALLOWED_OPS = frozenset((*_ARITHMETIC, *_LAYERS, *_SHAPES))
# Ours have 750 nodes and 250 tensors in 50 kB; a check of the largest allowed takes seconds.
MAX_NODES = 20_000
MAX_TENSORS = 20_000
_MAX_STRUCTURE_BYTES = 1 << 20
_MAX_PER_NODE = 64  # inputs, outputs or attributes
_MAX_NUMBERS = 64  # of one attribute: pads, axes, strides
_MAX_NUMBER = 1 << 20  # in an attribute: no kernel is larger
_MAX_RANK = 8
_MAX_DIM = 1 << 31
_MAX_TEXT = 1024
_CONTINUED = bytes(range(0x80, 0x100))  # of a varint: more bytes follow

# data_type -> bytes of an element, and the typed list that may hold it instead of raw bytes.
_ELEMENTS = {
    1: (4, "float_data"),
    6: (4, "int32_data"),
    7: (8, "int64_data"),
    9: (1, "int32_data"),  # bool
    10: (2, "int32_data"),  # fp16
}

MODEL = table(
    ir_version=(1, VARINT),
    producer_name=(2, BYTES),
    producer_version=(3, BYTES),
    domain=(4, BYTES),
    model_version=(5, VARINT),
    doc_string=(6, BYTES),
    graph=(7, BYTES, 2),  # a score graph, and the step that continues it: see `engines.step`
    opset_import=(8, BYTES, 4),
    metadata_props=(14, BYTES, _MAX_PER_NODE),
)
_OPSET_ID = table(domain=(1, BYTES), version=(2, VARINT))
GRAPH = table(
    node=(1, BYTES, MAX_NODES),
    name=(2, BYTES),
    initializer=(5, BYTES, MAX_TENSORS),
    doc_string=(10, BYTES),
    input=(11, BYTES, _MAX_PER_NODE),
    output=(12, BYTES, _MAX_PER_NODE),
    value_info=(13, BYTES, MAX_TENSORS),
)
_NODE = table(
    input=(1, BYTES, _MAX_PER_NODE),
    output=(2, BYTES, _MAX_PER_NODE),
    name=(3, BYTES),
    op_type=(4, BYTES),
    attribute=(5, BYTES, _MAX_PER_NODE),
    doc_string=(6, BYTES),
    domain=(7, BYTES),
)
_ATTRIBUTE = table(
    name=(1, BYTES),
    f=(2, FIXED32),
    i=(3, VARINT),
    s=(4, BYTES),
    t=(5, BYTES),
    floats=(7, FIXED32, _MAX_NUMBERS),
    ints=(8, VARINT, _MAX_NUMBERS),
    strings=(9, BYTES, _MAX_NUMBERS),
    doc_string=(13, BYTES),
    type=(20, VARINT),
)
TENSOR = table(
    dims=(1, VARINT, _MAX_RANK),
    data_type=(2, VARINT),
    float_data=(4, BYTES),
    int32_data=(5, BYTES),
    int64_data=(7, BYTES),
    name=(8, BYTES),
    raw_data=(9, BYTES),
    doc_string=(12, BYTES),
    data_location=(14, VARINT),
)
_VALUE = table(name=(1, BYTES), type=(2, BYTES), doc_string=(3, BYTES))
_TYPE = table(tensor_type=(1, BYTES))
_TENSOR_TYPE = table(elem_type=(1, VARINT), shape=(2, BYTES))
_SHAPE = table(dim=(1, BYTES, _MAX_RANK))
_DIM = table(dim_value=(1, VARINT), dim_param=(2, BYTES))
PROPERTY = table(key=(1, BYTES), value=(2, BYTES))


def check_graph(data: bytes, name: str, tail: bool = False) -> None:
    """Refuse bytes that are not one graph of plain arithmetic with its weights inside.

    Parameters
    ----------
    data
        A serialised ``ModelProto``.
    name
        What the message calls it.
    tail
        True for a fragment that is appended to a score graph. Protobuf merges the two, so checking
        each part checks the whole.

    Raises
    ------
    BundleError
        Not that, or larger in number, rank or size than any graph of ours.
    """
    with refusals(name):
        _check_model(memoryview(data), tail)


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """What is `Refused` within is a BundleError that begins with ``name``."""
    try:
        yield
    except Refused as error:
        raise BundleError(
            f"{name}: is no graph that this version runs ({error}); expected an ONNX graph of "
            f"opset {OPSET} with its weights. Fetch or export the bundle again."
        ) from error


def _check_model(data: memoryview, tail: bool) -> None:
    model = read_message(data, MODEL, "model")
    for part in model["graph"]:
        _check_graph(read_message(part, GRAPH, "graph"))
    if tail:
        others = [name for name, values in model.items() if values and name != "graph"]
        if others or len(model["graph"]) != 1:
            raise Refused(f"continues a graph, and has {others or 'none'}")
        return
    _one(model, "graph", "model")
    _one(model, "ir_version", "model")  # engines say which they read
    opsets = [read_message(entry, _OPSET_ID, "opset") for entry in model["opset_import"]]
    found = [(_text(o, "domain", "opset"), _one(o, "version", "opset")) for o in opsets]
    if found != [("", OPSET)]:
        raise Refused(f"imports opsets {found[:4]}, expected the standard one, {OPSET}")
    _texts(model, ("producer_name", "producer_version", "domain", "doc_string"), "model")
    for entry in model["metadata_props"]:
        _texts(read_message(entry, PROPERTY, "property"), ("key", "value"), "property")


def _check_graph(graph: Message) -> None:
    _texts(graph, ("name", "doc_string"), "graph")
    values = [*graph["input"], *graph["output"], *graph["value_info"]]
    size = sum(map(len, (*graph["node"], *values)))
    if size > _MAX_STRUCTURE_BYTES:
        raise Refused(f"has {size} bytes beside its weights, expected {_MAX_STRUCTURE_BYTES}")
    for node in graph["node"]:
        _check_node(read_message(node, _NODE, "node"))
    for tensor in graph["initializer"]:
        _check_tensor(read_message(tensor, TENSOR, "tensor"))
    for value in values:
        _check_value(read_message(value, _VALUE, "value"))
    if not (graph["node"] and graph["input"] and graph["output"]):
        raise Refused("has no nodes, no inputs or no outputs")


def _check_node(node: Message) -> None:
    op, domain = _text(node, "op_type", "node"), _text(node, "domain", "node")
    if domain or op not in ALLOWED_OPS:
        raise Refused(f"has a node '{domain}:{op}'; ops are arithmetic of the standard domain")
    _texts(node, ("name", "doc_string", "input", "output"), op)
    for entry in node["attribute"]:
        attribute = read_message(entry, _ATTRIBUTE, f"attribute of {op}")
        _texts(attribute, ("name", "doc_string", "s", "strings"), op)
        numbers = attribute["i"] + attribute["ints"] if op != "Constant" else []
        if any(abs(number) > _MAX_NUMBER for number in numbers):
            raise Refused(f"{op} has an attribute beyond {_MAX_NUMBER}")
        for tensor in attribute["t"]:
            _check_tensor(read_message(tensor, TENSOR, f"tensor of {op}"))


def _check_tensor(tensor: Message) -> None:
    """Values are inside, and as many as the shape says."""
    _texts(tensor, ("name", "doc_string"), "tensor")
    if any(tensor["data_location"]):
        raise Refused("a tensor keeps its values outside the file")
    kind = _one(tensor, "data_type", "tensor")
    if kind not in _ELEMENTS:
        raise Refused(f"a tensor is of ONNX's data type {kind}, expected {sorted(_ELEMENTS)}")
    itemsize, listed = _ELEMENTS[kind]
    dims = tensor["dims"]
    if not all(0 <= dim < _MAX_DIM for dim in dims):
        raise Refused(f"a tensor has shape {dims}")
    held = [part for part in ("raw_data", "float_data", "int32_data", "int64_data") if tensor[part]]
    if not set(held) <= {"raw_data", listed} or len(held) > 1:
        raise Refused(f"a tensor of data type {kind} has its values in {held}")
    count = 0
    for part in held:
        values = tensor[part][0]
        if part == "raw_data":
            count, rest = divmod(len(values), itemsize)
        elif part == "float_data":
            count, rest = divmod(len(values), 4)
        else:  # packed varints: as many as bytes that end one
            ends = bytes(values).translate(None, _CONTINUED)
            count, rest = len(ends), bool(values) and values[-1] >= 0x80
        if rest:
            raise Refused("a tensor ends within a value")
    if count != prod(dims):
        raise Refused(f"a tensor of shape {dims} has {count} values")


def _check_value(value: Message) -> None:
    _texts(value, ("name", "doc_string"), "value")
    for kind in value["type"]:
        for tensor in read_message(kind, _TYPE, "type")["tensor_type"]:
            shape = read_message(tensor, _TENSOR_TYPE, "tensor type")
            dims = [read_message(s, _SHAPE, "shape")["dim"] for s in shape["shape"]]
            for dim in dims[0] if dims else []:
                size = read_message(dim, _DIM, "dimension")
                _texts(size, ("dim_param",), "dimension")
                if not all(0 <= n < _MAX_DIM for n in size["dim_value"]):
                    raise Refused(f"a value has a dimension of {size['dim_value']}")


def _one(message: Message, name: str, what: str) -> Any:
    if not message[name]:
        raise Refused(f"{what} has no '{name}'")
    return message[name][0]


def _text(message: Message, name: str, what: str) -> str:
    """A text that may be missing; the first of several."""
    raw = message[name][0] if message[name] else b""
    if len(raw) > _MAX_TEXT:
        raise Refused(f"'{name}' of {what} is {len(raw)} bytes long, expected {_MAX_TEXT} at most")
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"'{name}' of {what} is no text") from error


def _texts(message: Message, names: tuple[str, ...], what: str) -> None:
    for name in names:
        for raw in message[name]:
            _text({name: [raw]}, name, what)
