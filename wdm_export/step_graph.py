"""The fused step: the sampler's update as a continuation of a score graph.

It is no graph by itself. Its nodes read ``x`` and ``v`` of the score graph, and appending its bytes
to those of a score graph gives the whole: protobuf defines the concatenation of two messages as
their merger. So one file of half a kilobyte serves the graphs of every precision, and no weight is
stored twice. All its arithmetic is fp32, as the outputs of every score graph are.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from onnx import TensorProto, helper

from wdm_export.parity import FP32_LIMIT, Comparison
from wdm_runtime.bundle import Bundle, sha256
from wdm_runtime.engines import open_graph, open_step, select
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.engines.step import step_graph
from wdm_runtime.errors import ParityError
from wdm_runtime.manifest import GraphEntry, TensorSpec
from wdm_runtime.presets import Preset
from wdm_runtime.samplers import Step, integrate

FILE_NAME = "step.onnx"
_SCALARS = [field.name for field in dataclasses.fields(Step)[1:]]  # t is the score graph's own
# In the order of `wdm_runtime.samplers.integrate`, so that the roundings are the same.
_UPDATE = (
    ("Mul", "x", "alpha", "signal"),
    ("Mul", "v", "sigma", "removed"),
    ("Sub", "signal", "removed", "denoised"),
    ("Mul", "x", "of_state", "kept"),
    ("Mul", "denoised", "of_denoised", "towards"),
    ("Add", "kept", "towards", "moved"),
    ("Mul", "previous", "of_previous", "ahead"),
    ("Add", "moved", "ahead", "corrected"),
    ("Mul", "noise", "of_noise", "fresh"),
    ("Add", "corrected", "fresh", "x_next"),
)
_ENDS = ("x", "v", "previous", "noise", "x_next", "denoised")


def step_tail(score: GraphEntry) -> tuple[bytes, GraphEntry]:
    """What is appended to the score graphs of a bundle, and the manifest's entry of it.

    Parameters
    ----------
    score
        The entry of any of its score graphs: they all have the same tensors.
    """
    tile = score.inputs[0].shape
    inputs = tuple(
        TensorSpec(name, "float32", shape)
        for name, shape in (("previous", tile), ("noise", tile), ("scalars", (len(_SCALARS),)))
    )
    outputs = tuple(TensorSpec(name, "float32", tile) for name in ("x_next", "denoised"))
    named = [_named(name) for name in _SCALARS]
    split = helper.make_node("Split", ["scalars"], named, axis=0, num_outputs=len(named))
    update = [
        helper.make_node(op, [_named(a), _named(b)], [_named(result)])
        for op, a, b, result in _UPDATE
    ]
    graph = onnx.GraphProto(
        name="wdm_step",
        node=[split, *update],
        input=[_value_info(spec) for spec in inputs],
        output=[_value_info(spec) for spec in outputs],
    )
    data = onnx.ModelProto(graph=graph).SerializeToString()
    return data, GraphEntry(FILE_NAME, sha256(data), len(data), inputs, outputs)


def _named(value: str) -> str:
    """Names inside must not be any of the score graph's."""
    return value if value in _ENDS else f"step_{value}"


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, spec.shape)


def compare_step(bundle: Bundle) -> Comparison:
    """Steps of a bundle's fused graph against the loop in NumPy, on ONNX Runtime.

    Raises
    ------
    ParityError
        A fused graph is not valid ONNX.
    """
    rng = np.random.default_rng(0)
    roles = bundle.manifest.graphs
    for precision in ("fp32", "fp16"):
        if f"score_{precision}" in roles:
            try:
                model = onnx.load_from_string(step_graph(bundle, precision)[0])
                onnx.checker.check_model(model, full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
                raise ParityError(
                    f"Graph 'step' does not continue score_{precision} ({error}). Report this."
                ) from error
    size = [int(n) for n in roles["score_fp32"].inputs[0].shape[1:]]
    x, condition, *noise = rng.standard_normal((4, 1, *size), dtype=np.float32)
    schedule = bundle.manifest.schedule
    steps = Preset("second-order", 3).plan(schedule)  # the one that uses all terms
    engine = open_graph(bundle, "score_fp32", "ort-cpu")
    fused = open_step(bundle, select("ort-cpu", "fp32"), EngineOptions())
    try:
        expected = integrate(
            lambda x, t: engine.run(
                {"x": x, "condition": condition, "t": np.array([t], dtype=np.float32)}
            ),
            x,
            steps,
            lambda i: noise[i],
            lambda _: None,
        )
        fused.load(x, condition)
        for step, z in zip(steps, [*noise, None], strict=True):
            fused.step(step.t, step.scalars, z)
        difference = float(np.abs(fused.read() - expected).max())
    finally:
        engine.close()
        fused.close()
    return Comparison("fused step: ONNX Runtime against NumPy's loop", difference, FP32_LIMIT)
