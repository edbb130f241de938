"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.cache import private_folder
from wdm_runtime.engines.engine import REPORT, check_tensors
from wdm_runtime.errors import EngineError, require
from wdm_runtime.manifest import GraphEntry, TensorSpec

_DEVICE = "CPU"
_TELEMETRY = "openvino_telemetry"
_DTYPES = {"f32": "float32", "f16": "float16", "i64": "int64"}
# Ours, OpenVINO's word for a capability of the CPU, its inference precision. Best first.
_PRECISIONS = (("bf16", "BF16", "bf16"), ("fp16", "FP16", "f16"), ("fp32", "FP32", "f32"))


@functools.cache
def _core() -> Any:
    """OpenVINO itself, without its telemetry.

    Importing it reports to Google Analytics and leaves an identifier in the home folder, unless
    the package for that is not there: then it uses an inert stand-in of its own.
    """
    hidden = _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        return require("openvino", "openvino", "Engine 'openvino'").Core()
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]


class OpenVinoEngine:
    """A graph in OpenVINO's CPU plugin, computing in ``precision`` whatever the graph's own is."""

    kind = "openvino"

    @staticmethod
    def precisions() -> tuple[str, ...]:
        """What this CPU computes in, best first.

        Raises
        ------
        MissingDependencyError
            OpenVINO is not installed.
        EngineError
            It does not run here.
        """
        core = _core()
        try:
            found = core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        except RuntimeError as error:
            raise EngineError(
                f"Engine 'openvino' finds no usable CPU ({error}). "
                "Choose --engine ort-cpu, or install openvino again."
            ) from error
        return tuple(ours for ours, capability, _ in _PRECISIONS if capability in found)

    def __init__(self, graph: bytes, entry: GraphEntry, precision: str, threads: int) -> None:
        core = _core()
        release = core.get_versions(_DEVICE)[_DEVICE].build_number
        self.version = f"openvino {release.partition('-')[0]}"
        self.precision, self.inputs, self.outputs = precision, entry.inputs, entry.outputs
        hint = {ours: word for ours, _, word in _PRECISIONS}[precision]
        self._options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": hint,
        }
        # OpenVINO's own key leaves the precision out: it would load the network of another one.
        cache = private_folder("openvino", release.replace("/", "-"), precision, entry.sha256)
        if cache:
            self._options["CACHE_DIR"] = str(cache)
        self._file, self._lock = entry.file, threading.Lock()
        try:
            self._model = core.read_model(graph)
        except RuntimeError as error:
            raise self._not_loaded(error) from error
        _compare(entry.file, entry.inputs, self._model.inputs)
        _compare(entry.file, entry.outputs, self._model.outputs)
        # A network for one tile is faster than one for any number, and a tile's bits do not depend
        # then on how many others come with it.
        single = _single(entry.inputs)
        network = self._compile(single)
        self._single = network.create_infer_request() if single else None
        self._fields = None if single else network  # for fields of any size
        taken = network.get_property("INFERENCE_NUM_THREADS")  # fewer where there are fewer cores
        self.device = f"CPU, {taken} thread" + ("s" if taken > 1 else "")

    def run(self, feeds: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The graph's first output for the inputs by name."""
        return self.run_all(feeds)[0]

    def run_all(
        self, feeds: Mapping[str, npt.NDArray[np.float32]]
    ) -> tuple[npt.NDArray[np.float32], ...]:
        """All outputs of the graph."""
        shapes = {name: value.shape for name, value in feeds.items()}
        expected = {spec.name: spec.shape for spec in self.inputs}
        if shapes.keys() != expected.keys():  # it would take the last call's for a missing one
            raise EngineError(
                f"{self._file}: got inputs {sorted(shapes)}; expected {sorted(expected)}. "
                f"Hand in those, or {REPORT}."
            )
        try:
            if self._fields:
                # Of this call alone: a request holds its inputs and outputs, and fields are large.
                return self._infer(self._fields.create_infer_request(), feeds)
            with self._lock:  # the request is one, whoever calls
                tiles = [self._infer(self._single, tile) for tile in self._tiles(feeds)]
            if len(tiles) == 1:
                return tiles[0]
            return tuple(np.concatenate(parts) for parts in zip(*tiles, strict=True))
        except Exception as error:  # RuntimeError of OpenVINO, TypeError of its bindings
            raise EngineError(
                f"{self.version} failed on inputs {shapes} ({error}). Lower --batch, or {REPORT}."
            ) from error

    def _infer(
        self, request: Any, feeds: Mapping[str, npt.NDArray[np.float32]]
    ) -> tuple[npt.NDArray[np.float32], ...]:
        # Inputs are read in place; the outputs are copies.
        result = request.infer(dict(feeds), share_inputs=True, share_outputs=False)
        return tuple(result[i] for i in range(len(self.outputs)))

    def _tiles(
        self, feeds: Mapping[str, npt.NDArray[np.float32]]
    ) -> list[dict[str, npt.NDArray[np.float32]]]:
        """A call's inputs tile by tile; what has no batch goes with each."""
        batched = {spec.name for spec in self.inputs if isinstance(spec.shape[0], str)}
        (count,) = {len(feeds[name]) for name in batched} or {1}
        return [
            {name: value[i : i + 1] if name in batched else value for name, value in feeds.items()}
            for i in range(count)
        ]

    def close(self) -> None:
        """Free the networks."""
        with self._lock:
            self._single = self._fields = self._model = None

    def _compile(self, shapes: dict[str, tuple[int, ...]] | None) -> Any:
        try:
            model = self._model
            if shapes:
                model = model.clone()
                model.reshape({name: list(shape) for name, shape in shapes.items()})
            network = _core().compile_model(model, _DEVICE, self._options)
            self._check(network)
            return network
        except RuntimeError as error:
            raise self._not_loaded(error) from error

    def _check(self, network: Any) -> None:
        """What runs is what was asked for, on the device that was asked for."""
        devices = list(network.get_property("EXECUTION_DEVICES"))
        got = network.get_property("INFERENCE_PRECISION_HINT").to_string()
        wanted = self._options["INFERENCE_PRECISION_HINT"]
        if got == wanted:  # the option is given back as it was set: ask what convolutions run in
            ran = _convolutions(network)
            got = got if not ran or wanted in ran else ", ".join(sorted(ran))
        if devices != [_DEVICE] or got != wanted:
            raise EngineError(
                f"{self._file} was to run on {_DEVICE} in {wanted} but got {devices} in {got}. "
                "Choose another --precision or --engine."
            )

    def _not_loaded(self, error: Exception) -> EngineError:
        return EngineError(
            f"{self.version} does not load {self._file} ({error}). "
            "Export the bundle again or upgrade: pip install -U openvino"
        )


def _convolutions(network: Any) -> set[str]:
    """The precisions that a compiled network's convolutions compute in."""
    facts = [op.get_rt_info() for op in network.get_runtime_model().get_ops()]
    return {
        fact["runtimePrecision"].value
        for fact in facts
        if "layerType" in fact and fact["layerType"].value == "Convolution"
    }


def _single(specs: tuple[TensorSpec, ...]) -> dict[str, tuple[int, ...]] | None:
    """Shapes of a call with one tile; None where more than the batch is dynamic."""
    shapes = {}
    for spec in specs:
        first, *rest = spec.shape
        if any(isinstance(size, str) for size in rest):
            return None
        shapes[spec.name] = tuple(1 if isinstance(n, str) else n for n in (first, *rest))
    return shapes


def _compare(file: str, specs: tuple[TensorSpec, ...], found: list[Any]) -> None:
    """The loaded graph's tensors must be the manifest's, dynamic sizes wherever it says so."""
    got = [
        (
            port.any_name,
            _DTYPES.get(port.element_type.to_string(), port.element_type.to_string()),
            tuple(None if n.is_dynamic else n.get_length() for n in port.partial_shape),
        )
        for port in found
    ]
    expected = [
        (s.name, s.dtype, tuple(n if isinstance(n, int) else None for n in s.shape)) for s in specs
    ]
    check_tensors(file, "OpenVINO", got, expected)
