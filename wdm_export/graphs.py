"""ONNX graphs: the score network in fp32 and fp16, and the fixed-kernel wavelet transforms.

Graphs are pure functions: no random numbers, schedule or normalisation inside. Opset 20, because
JetPack 6's TensorRT 10.3 parses no later one; inputs and outputs are fp32 throughout.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from onnxscript.optimizer import optimize_ir

from wdm_export.compiler_form import CpuForm, GpuForm
from wdm_export.unet import UNet
from wdm_runtime.bundle import sha256
from wdm_runtime.manifest import GraphEntry, TensorSpec
from wdm_runtime.onnx_gate import OPSET
from wdm_runtime.wavelets import Taps, WaveletSpec

IR_VERSION = 10  # what opset 20 came with; older engines refuse newer ones
ROLE_PROPERTY = "wdm_role"
_LAST = 2**31 - 1  # of a slice: to the end, in 32 bits as TensorRT counts
_WEIGHT_OPS = {"Cast", "MatMul"}
_LEAST_VALUES = 16  # of a weight: for fewer a cast costs more than it saves
_LEAST_SHARED = 1024  # bytes: to name a place takes a hundred
Array = npt.NDArray[np.float32]


def score_graph(network: UNet, tile_px: int, fp16: bool) -> onnx.ModelProto:
    """Export v(x, condition, t) with a dynamic batch and a fixed tile.

    Weights are stored in fp16 in either graph: in the fp32 graph each is followed by a cast that
    engines fold when they load it. That is lossless for released weights, which are fp16.

    Parameters
    ----------
    network
        In fp32 and evaluation mode.
    tile_px
        Fine size of a tile; the graph takes tile_px / stride coefficients along each axis.
    fp16
        Whether the body computes in fp16.
    """
    spec = network.config.wavelet
    size = tile_px // spec.stride
    # Two tiles, because torch takes a batch of one for a constant, and two tensors, because it
    # takes one tensor handed in twice for one input.
    x, condition = torch.zeros(2, 2, spec.subbands, size, size)
    batch = torch.export.Dim("batch")
    module = GpuForm(network) if fp16 else CpuForm(network)
    # The exporter reports progress on stdout and through loggers; neither is our user's business.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (x, condition, torch.tensor([0.5])),
            input_names=["x", "condition", "t"],
            output_names=["v"],
            opset_version=OPSET,
            dynamic_shapes=({0: batch}, {0: batch}, None),
            dynamo=True,
            external_data=False,
            optimize=False,
            verbose=False,
        )
        assert program is not None, "as dynamo=True promises"
        # Engines fold these when they load a graph: here the sums of weights would be stored in
        # fp32 in their place, which takes more than twice the room.
        optimize_ir(program.model, should_fold=_may_fold)
    model = program.model_proto
    _strip(model)
    if not fp16:
        _store_weights_in_fp16(model)
    _store_equal_weights_once(model)
    return model


def _may_fold(node: ir.Node) -> bool | None:
    """Not what works on weights; of all else the optimizer decides."""
    constants = [value.const_value for value in node.inputs if value is not None]
    weights = any(c is not None and c.size >= _LEAST_VALUES for c in constants)
    return False if weights and node.op_type in _WEIGHT_OPS else None


def dwt_graph(spec: WaveletSpec) -> onnx.ModelProto:
    """field (1, 1, height, width) -> coeffs (1, subbands, rows, columns): one conv a level."""
    bank, steps = spec.bank, _Steps("field")
    # A convolution of ONNX does not turn its kernel around.
    kernels = _kernels(bank.dec_lo[::-1], bank.dec_hi[::-1])
    for level in range(spec.levels):
        steps.wrap(level, len(bank) // 2 - 1)
        steps.convolve("Conv", level, kernels)
    return _transform_model("dwt", spec, steps, ("field", "coeffs"))


def idwt_graph(spec: WaveletSpec) -> onnx.ModelProto:
    """coeffs (1, subbands, rows, columns) -> field (1, 1, height, width), one deconv a level.

    Rows and columns are at least `WaveletSpec.least_coeffs`, in `dwt_graph` too.
    """
    bank, steps = spec.bank, _Steps("coeffs")
    more = len(bank) // 4
    for level in reversed(range(spec.levels)):
        steps.wrap(level, more)
        # What the coefficients wrapped around the borders give beyond them is cut off.
        cut = 2 * more + len(bank) // 2 - 1
        steps.convolve("ConvTranspose", level, _kernels(bank.rec_lo, bank.rec_hi), cut)
    return _transform_model("idwt", spec, steps, ("coeffs", "field"))


def _kernels(low: Taps, high: Taps) -> Array:
    """(4, 1, taps, taps): subbands in the runtime's order, from filters along y and x."""
    pairs = ((low, low), (high, low), (low, high), (high, high))
    return np.stack([np.outer(y, x) for y, x in pairs])[:, None].astype(np.float32)


class _Steps:
    """The nodes of a transform, each taking what the one before it gave."""

    def __init__(self, value: str) -> None:
        self.value = value
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def wrap(self, level: int, cells: int) -> None:
        """Continue the value periodically by some cells at both ends of both axes."""
        for axis, name in ((2, "y"), (3, "x")) if cells else ():
            middle, parts = self.value, []
            for end, first, stop in (("before", -cells, _LAST), ("after", 0, cells)):
                bounds = [self._constant(f"{n}", [n]) for n in (first, stop, axis)]
                parts.append(f"{end}_{name}{level}")
                self._add("Slice", [middle, *bounds], parts[-1])
            self._add("Concat", [parts[0], middle, parts[1]], f"wrapped_{name}{level}", axis=axis)

    def convolve(self, op: str, level: int, kernels: Array, cut: int = 0) -> None:
        """Split or join the 4^level channels of a level."""
        kernel = np.tile(kernels, (4**level, 1, 1, 1))
        self.constants[f"kernel{level}"] = numpy_helper.from_array(kernel, f"kernel{level}")
        options = {"pads": [cut] * 4} if cut else {}
        inputs = [self.value, f"kernel{level}"]
        self._add(op, inputs, f"level{level}", strides=[2, 2], group=4**level, **options)

    def _constant(self, name: str, values: list[int]) -> str:
        self.constants[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def _add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        self.value = output


def _transform_model(
    name: str, spec: WaveletSpec, steps: _Steps, ends: tuple[str, str]
) -> onnx.ModelProto:
    nodes = steps.nodes or [helper.make_node("Identity", [ends[0]], [ends[1]])]
    nodes[-1].output[0] = ends[1]
    shapes: dict[str, list[str | int | None]] = {
        "field": [1, 1, "height", "width"],
        "coeffs": [1, spec.subbands, "rows", "columns"],
    }
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shapes[n]) for n in ends]
    weights = [*steps.constants.values()]
    graph = helper.make_graph(nodes, name, values[:1], values[1:], initializer=weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


def share_weights(model: onnx.ModelProto, file: str, data: bytes) -> None:
    """Keep no weight that another graph of the bundle holds: name its place in that one's file.

    Parameters
    ----------
    model
        Loses the values of these weights.
    file, data
        Name and bytes of the other graph, which holds its weights itself.
    """
    for weight in model.graph.initializer:
        size = len(weight.raw_data)
        offset = data.find(weight.raw_data) if size >= _LEAST_SHARED else -1
        if offset >= 0:
            set_external_data(weight, file, offset, size)
            weight.ClearField("raw_data")


def label(model: onnx.ModelProto, role: str) -> None:
    """Name a graph after its role: engine caches that key on the name must not mix graphs up."""
    model.graph.name = f"wdm_{role}"
    model.producer_name, model.ir_version = "wdm-export", IR_VERSION
    helper.set_model_props(model, {ROLE_PROPERTY: role})


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's source traces: they hold paths of the machine and double the file.

    Nodes lose their names, which are those of their outputs again.
    """
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.name = node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""


def _store_weights_in_fp16(model: onnx.ModelProto) -> None:
    """Replace each fp32 weight by its fp16 form and a cast, if that loses nothing."""
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(weight)
        half = values.astype(np.float16)
        if values.size < _LEAST_VALUES or not np.array_equal(half.astype(np.float32), values):
            continue
        full, stored = weight.name, f"{weight.name}_fp16"
        weight.CopyFrom(numpy_helper.from_array(half, stored))
        casts.append(helper.make_node("Cast", [stored], [full], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _store_equal_weights_once(model: onnx.ModelProto) -> None:
    """The exporter does that for small ones; equal large ones are those of a latency network."""
    first: dict[tuple[Any, ...], str] = {}
    names, kept = {}, []
    for weight in model.graph.initializer:
        key = (weight.data_type, tuple(weight.dims), numpy_helper.to_array(weight).tobytes())
        names[weight.name] = first.setdefault(key, weight.name)
        if names[weight.name] == weight.name:
            kept.append(weight)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _dtype_name(elem_type: int) -> str:
    """NumPy's name; ONNX's own for what NumPy has none for, such as no type at all."""
    try:
        return str(helper.tensor_dtype_to_np_dtype(elem_type))
    except KeyError:
        return f"type {elem_type}"


def tensor_specs(values: list[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """Name, dtype and shape of a graph's inputs or outputs."""
    return tuple(
        TensorSpec(
            value.name,
            _dtype_name(value.type.tensor_type.elem_type),
            tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def graph_entry(model: onnx.ModelProto, file: str, data: bytes) -> GraphEntry:
    """The manifest's entry of a serialised graph."""
    inputs, outputs = tensor_specs(model.graph.input), tensor_specs(model.graph.output)
    return GraphEntry(file, sha256(data), len(data), inputs, outputs)
