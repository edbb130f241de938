"""The gate of every export: each graph against independent implementations of the same thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
import onnx
import pywt
import torch

from wdm_export.check_graphs import open_rounded
from wdm_export.graphs import ROLE_PROPERTY, tensor_specs
from wdm_export.packet import WaveletPacket
from wdm_export.unet import UNet
from wdm_runtime import wavelets
from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import Engine, open_engine, open_graph
from wdm_runtime.errors import ParityError
from wdm_runtime.golden import read_golden
from wdm_runtime.manifest import GraphEntry, TensorSpec
from wdm_runtime.onnx_gate import OPSET
from wdm_runtime.wavelets import WaveletSpec

FP32_LIMIT = 1e-4  # largest absolute difference, v has unit variance
FP16_LIMIT = 2e-2  # largest difference over the largest value
WAVELET_LIMIT = 1e-5  # with Haar's filters
_TIMES = (0.02, 0.5, 0.95)
_BATCHES = (1, 3)
_ENGINE = "ort-cpu"
# What graphs may hold: all of it was parsed by TensorRT when opset 20 was new, so by the 10.3 of
# JetPack 6. That has no parser or no kernel for GroupNormalization of opset 21, Attention or Swish.
ALLOWED_OPS = {
    *("Add", "Cast", "Concat", "Conv", "ConvTranspose", "Cos", "Div", "Gemm", "Identity"),
    *("InstanceNormalization", "MatMul", "Mul", "ReduceMean", "ReduceSum", "Reshape", "Resize"),
    *("Relu", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub"),
    *("Transpose", "Unsqueeze"),
}

Array = npt.NDArray[np.float32]
Feeds = dict[str, Array]


@dataclass(frozen=True)
class Comparison:
    """One measured difference and its limit."""

    name: str
    difference: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the limit (NaN is not)."""
        return self.difference <= self.limit


def require_all(comparisons: list[Comparison]) -> None:
    """Raise a ParityError that names every failed comparison."""
    failed = [c for c in comparisons if not c.passed]
    if failed:
        details = "; ".join(f"{c.name}: {c.difference:.3g} > {c.limit:.4g}" for c in failed)
        raise ParityError(
            f"{len(failed)} of {len(comparisons)} checks differ more than allowed ({details}). "
            "Nothing was written over a working bundle; export again or report this."
        )


def check_form(role: str, model: onnx.ModelProto, expected: tuple[TensorSpec, ...]) -> None:
    """ONNX's own checker, the opset, the ops and the declared inputs.

    Raises
    ------
    ParityError
        The graph is invalid or not what engines were promised.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"Graph '{role}' is not valid ONNX ({error}). Report this.") from error
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    ops = {node.op_type for node in model.graph.node} - ALLOWED_OPS
    found = tensor_specs(model.graph.input)
    labels = {entry.key: entry.value for entry in model.metadata_props}
    if labels.get(ROLE_PROPERTY) != role:
        raise ParityError(
            f"Graph '{role}' says it is '{labels.get(ROLE_PROPERTY)}'; expected its role in its "
            "metadata. Export the bundle again."
        )
    if opsets != {"": OPSET} or ops or found != expected:
        raise ParityError(
            f"Graph '{role}' has opsets {opsets}, ops beyond the list {sorted(ops)} and inputs "
            f"{found}; expected opset {OPSET}, none and {expected}. Install the pinned versions "
            "of the extra 'export'."
        )


def compare_score(network: UNet, graph: bytes, entry: GraphEntry, fp16: bool) -> Comparison:
    """The score graph on ONNX Runtime against torch, at several times and batch sizes.

    Every result of an fp16 graph is rounded to fp16, which ONNX Runtime alone would not do.
    """

    def torch_says(feeds: Feeds) -> Array:
        with torch.inference_mode():
            return network(*map(torch.from_numpy, feeds.values())).numpy()

    engine = open_rounded(graph, entry) if fp16 else open_engine(graph, entry, _ENGINE)
    name = f"score {'fp16, relative' if fp16 else 'fp32'}: ONNX Runtime against torch"
    return _compare(name, torch_says, engine, fp16)


def compare_precisions(bundle: Bundle) -> Comparison:
    """The fp16 graph, every result rounded to fp16, against the fp32 graph."""
    full = open_graph(bundle, "score_fp32", _ENGINE)
    try:
        name = "score fp16, relative: every result rounded, against fp32"
        half = open_rounded(bundle.graph("score_fp16"), bundle.manifest.graphs["score_fp16"])
        return _compare(name, full.run, half, True)
    finally:
        full.close()


def compare_golden(bundle: Bundle) -> Comparison:
    """The fp32 graph against what torch gave at the export."""
    golden = read_golden(bundle)
    engine = open_graph(bundle, "score_fp32", _ENGINE)
    worst = np.float32(0)
    try:
        for t, v in zip(golden.t, golden.v, strict=True):
            answer = engine.run(golden.feeds(golden.x, float(t)))[0]
            worst = np.maximum(worst, np.abs(answer - v).max())
    finally:
        engine.close()
    return Comparison("score fp32: ONNX Runtime against golden outputs", float(worst), FP32_LIMIT)


def _compare(
    name: str, reference: Callable[[Feeds], Array], engine: Engine, fp16: bool
) -> Comparison:
    """Largest difference on Gaussian inputs; fp16's is relative to the largest value."""
    rng = np.random.default_rng(0)
    size = [int(n) for n in engine.inputs[0].shape[1:]]
    worst = 0.0
    try:
        for t in _TIMES:
            for batch in _BATCHES:
                x, condition = rng.standard_normal((2, batch, *size), dtype=np.float32)
                feeds = {"x": x, "condition": condition, "t": np.array([t], dtype=np.float32)}
                expected = reference(feeds)
                scale = float(np.abs(expected).max()) if fp16 else 1.0
                difference = np.abs(engine.run(feeds) - expected).max() / scale
                worst = max(worst, float(difference)) if np.isfinite(difference) else np.inf
    finally:
        engine.close()
    return Comparison(name, worst, FP16_LIMIT if fp16 else FP32_LIMIT)


def compare_wavelets(spec: WaveletSpec, dwt: Engine, idwt: Engine) -> list[Comparison]:
    """The transform graphs against NumPy, pytorch_wavelets and PyWavelets, and round trips."""
    rng = np.random.default_rng(0)
    results: dict[str, float] = {}

    def note(name: str, a: Array, b: Array) -> None:
        worst = np.abs(a - b).max()
        results[name] = float(np.maximum(results.get(name, 0.0), worst))  # keeps NaN, max does not

    packet = WaveletPacket(spec)
    more = len(spec.bank) // 2 - 1  # so that no level is shorter than the filters
    for rows, columns in ((1, 1), (18, 10), (10, 50)):
        shape = (1, (rows + more) * spec.stride, (columns + more) * spec.stride)
        field = rng.standard_normal(shape, dtype=np.float32)
        coeffs = dwt.run({"field": field[None]})[0]
        note("DWT graph against NumPy", coeffs, wavelets.dwt(field, spec))
        with torch.inference_mode():
            theirs = packet(torch.from_numpy(field)[None])[0].numpy()
        note("DWT graph against pytorch_wavelets", coeffs, theirs)
        note("DWT graph against PyWavelets", coeffs, _pywavelets(field[0], spec))
        back = idwt.run({"coeffs": coeffs[None]})[0]
        note("IDWT graph against NumPy", back, wavelets.idwt(coeffs, spec))
        with torch.inference_mode():
            theirs = packet.inverse(torch.from_numpy(coeffs)[None])[0].numpy()
        note("IDWT graph against pytorch_wavelets", back, theirs)
        note("DWT and IDWT graphs, round trip", back, field)
    # Rounding grows with the sum of magnitudes that a value is made of; with Haar it is the least.
    longest = max(sum(map(abs, taps)) for taps in astuple(spec.bank))
    limit = WAVELET_LIMIT * (longest / np.sqrt(2)) ** (2 * spec.levels)
    return [Comparison(name, worst, float(limit)) for name, worst in results.items()]


def _pywavelets(field: Array, spec: WaveletSpec) -> Array:
    bands, wavelet = [field], pywt.Wavelet(spec.name, tuple(map(list, astuple(spec.bank))))
    for _ in range(spec.levels):
        split = []
        for band in bands:
            low, (horizontal, vertical, diagonal) = pywt.dwt2(band, wavelet, mode="periodization")
            split += [low, horizontal, vertical, diagonal]
        bands = split
    return np.stack(bands)
