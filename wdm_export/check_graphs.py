"""The fp16 graph made to show, on a CPU, what fp16 does to it.

ONNX Runtime's CPU provider has no fp16 arithmetic: it runs an fp16 graph in fp32 and leaves out
most of the roundings between nodes, so nothing overflows there that would on a GPU. Both graphs
here compute in fp32 what the fp16 graph says. One rounds every result to fp16, by casts that are
part of the graph and therefore stay; the other rounds nothing and reports magnitudes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from wdm_export.graphs import IR_VERSION
from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import Engine, open_engine
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.ort import OrtCpuEngine
from wdm_runtime.errors import EngineError
from wdm_runtime.manifest import GraphEntry, TensorSpec
from wdm_runtime.onnx_gate import OPSET
from wdm_runtime.precision import Peak

Array = npt.NDArray[np.float32]

ROLE = "score_fp16"
_MOVES = {"Concat", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
_NORM = "InstanceNormalization"  # what group norm is in opset 20, if its sums are a kernel's own
_PEAKS = "peaks"


@dataclass(frozen=True)
class Site:
    """A tensor that is fp16 in the fp16 graph, and whether it goes into a norm."""

    tensor: str
    op: str
    part: str
    into_norm: bool

    @property
    def moved(self) -> bool:
        """Whether its numbers are another tensor's."""
        return self.op in _MOVES


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The fp16 graph with sums in fp32 and every result rounded to fp16, too large ones to Inf."""
    half = half_tensors(model)
    wide, nodes = _widened(model, half), []
    for node in wide.graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in half and node.op_type not in _MOVES:
                node.output[i] = f"{name}_exact"
                nodes.append(_cast(f"{name}_exact", f"{name}_fp16", TensorProto.FLOAT16))
                nodes.append(_cast(f"{name}_fp16", name, TensorProto.FLOAT))
    del wide.graph.node[:]
    wide.graph.node.extend(nodes)
    return wide


def _cast(given: str, cast: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [given], [cast], to=to)


def with_peaks(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Site, ...]]:
    """The fp16 graph in fp32, with a second output: the largest magnitude of each site (sites,)."""
    found = sites(model)
    wide = _widened(model, half_tensors(model))
    graph = wide.graph
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat_shape"))
    for site in found:
        flat, size, peak = (f"{site.tensor}_{what}" for what in ("flat", "size", "peak"))
        graph.node.append(helper.make_node("Reshape", [site.tensor, "flat_shape"], [flat]))
        graph.node.append(helper.make_node("Abs", [flat], [size]))
        graph.node.append(helper.make_node("ReduceMax", [size], [peak], keepdims=1))
    names = [f"{site.tensor}_peak" for site in found]
    graph.node.append(helper.make_node("Concat", names, [_PEAKS], axis=0))
    graph.output.append(helper.make_tensor_value_info(_PEAKS, TensorProto.FLOAT, [len(found)]))
    return wide, found


def sites(model: onnx.ModelProto) -> tuple[Site, ...]:
    """The fp16 tensors that a node computes, and those a norm reads.

    ``part`` is the part of the network whose weights the node or the last one before it takes.
    """
    half = half_tensors(model)
    weights = {weight.name for weight in model.graph.initializer}
    normed = _norm_inputs(model, half)
    found, part = [], "input"
    for node in model.graph.node:
        for name in node.input:
            if name in weights and name.endswith((".weight", ".bias")):
                part = name.rpartition(".")[0].removeprefix("network.")
        for name in node.output:
            if name in half and (node.op_type not in _MOVES or name in normed):
                found.append(Site(name, node.op_type, part, name in normed))
    return tuple(found)


def _norm_inputs(model: onnx.ModelProto, half: set[str]) -> set[str]:
    """What norms read: as one node, or cast to fp32 for a mean that is written out."""
    averaged = {node.input[0] for node in model.graph.node if node.op_type == "ReduceMean"}
    return {
        node.input[0]
        for node in model.graph.node
        if node.op_type == _NORM
        or (node.op_type == "Cast" and node.input[0] in half and node.output[0] in averaged)
    }


def half_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the results that are fp16."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT16}


def _widened(model: onnx.ModelProto, half: set[str]) -> onnx.ModelProto:
    """The same graph with fp32 wherever it has fp16; weights keep their values."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    del wide.graph.value_info[:]
    for weight in wide.graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(weight).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    for node in wide.graph.node:
        if node.op_type == "Cast" and node.output[0] in half:
            node.attribute[0].i = TensorProto.FLOAT
    return wide


def open_rounded(graph: bytes, entry: GraphEntry, options: EngineOptions | None = None) -> Engine:
    """The fp16 graph with every result rounded to fp16.

    Raises
    ------
    EngineError
        This ONNX Runtime leaves the roundings out.
    """
    _require_roundings()
    model = rounded(onnx.load_from_string(graph))
    return open_engine(model.SerializeToString(), entry, "ort-cpu", "fp16", options)


def _require_roundings() -> None:
    """Refuse to call something fp16 that is not: 600 x 600 is more than fp16 holds."""
    shape = ["size"]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    nodes = [
        _cast("x", "half", TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "half"], ["square"]),
        helper.make_node("Div", ["square", "half"], ["back"]),
        _cast("back", "y", TensorProto.FLOAT),
    ]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:])
    model = rounded(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]))
    model.ir_version = IR_VERSION
    x, y = (TensorSpec(name, "float32", ("size",)) for name in ("x", "y"))
    entry = GraphEntry("probe", "", 0, (x,), (y,))
    engine = open_engine(model.SerializeToString(), entry, "ort-cpu", "fp16")
    got = engine.run({"x": np.array([600.0], np.float32)})
    engine.close()
    if np.isfinite(got).all():
        raise EngineError(
            f"{engine.version} computes 600 x 600 / 600 = {got[0]:g} in a graph that rounds every "
            "result to fp16; expected Inf. Install another version of onnxruntime for this check."
        )


class PeakEngine(OrtCpuEngine):
    """Runs an engine, and beside it the fp16 graph in fp32 for the magnitudes of its tensors.

    Parameters
    ----------
    engine
        Gives the answers.
    bundle, options
        The bundle with the fp16 graph, and how to open it.
    """

    def __init__(self, engine: Engine, bundle: Bundle, options: EngineOptions) -> None:
        model, self.sites = with_peaks(onnx.load_from_string(bundle.graph(ROLE)))
        entry = bundle.manifest.graphs[ROLE]
        peaks = TensorSpec(_PEAKS, "float32", (len(self.sites),))
        entry = replace(entry, outputs=(*entry.outputs, peaks))
        super().__init__(model.SerializeToString(), entry, "fp32", options.cpu_threads)
        self._engine = engine
        self._peaks = np.zeros(len(self.sites), dtype=np.float32)

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """The engine's answer; the tensors' magnitudes are noted."""
        peaks = self._session.run([_PEAKS], dict(feeds))[0]
        self._peaks = np.maximum(self._peaks, peaks)  # keeps NaN
        return self._engine.run(feeds)

    def close(self) -> None:
        """Free both."""
        super().close()
        self._engine.close()

    def peaks(self) -> tuple[tuple[Site, Peak], ...]:
        """The largest magnitude of every site so far."""
        return tuple(
            (site, Peak(site.tensor, site.op, site.part, float(value)))
            for site, value in zip(self.sites, self._peaks, strict=True)
        )
