"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.engines.engine import REPORT, check_tensors
from wdm_runtime.errors import EngineError, MissingDependencyError, install_line, require
from wdm_runtime.manifest import GraphEntry

_PROVIDER = "CPUExecutionProvider"
# Two builds of the same files, of which one may be installed.
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
_ERRORS_ONLY = 3
_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"


def load_onnxruntime(kind: str, extra: str) -> Any:
    """ONNX Runtime without its telemetry.

    Since 1.32 it keeps a database and a device identifier in the user's cache folder and uploads
    from there. The variable is read once, when the library is loaded; `disable_telemetry_events`
    comes too late for both. Whoever has set the variable decides.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require("onnxruntime", extra, f"Engine '{kind}'")


def check_distribution(kind: str, extra: str) -> None:
    """One of ONNX Runtime's two packages is installed, and not both.

    Raises
    ------
    MissingDependencyError
        None is.
    EngineError
        Both are.
    """
    import importlib.metadata  # 20 ms, which an import of the package should not cost

    installed = []
    for name in _DISTRIBUTIONS:
        try:
            installed.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if not installed:
        raise MissingDependencyError(
            f"Engine '{kind}' is not installed; expected {' or '.join(_DISTRIBUTIONS)}. "
            f"Install one with: {install_line(extra)}",
            extra,
            "onnxruntime",
        )
    if len(installed) > 1:
        raise EngineError(
            f"Found both {' and '.join(installed)}, which overwrite each other's files; expected "
            f"one of them. Keep one with: pip uninstall -y {' '.join(_DISTRIBUTIONS)} && "
            f"{install_line(extra)}"
        )


def session_options(ort: Any) -> Any:
    """Options of every session: errors only, and a record of which provider has which node."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(_RECORD_PLACEMENT, "1")
    return options


def cpu_options(ort: Any, threads: int, entry: GraphEntry) -> Any:
    """Options of a session on the CPU, as benches/ort_options.py found them for a single stream."""
    options = session_options(ort)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # the graph is a chain: nothing to run side by side
    # Spinning threads fight their neighbours for the few cores of a small box: beside one busy
    # process a call took 1.3 times as long with them, on an idle machine 0.98 times.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if any(isinstance(size, str) for spec in entry.inputs for size in spec.shape[1:]):
        # The arena never gives back what the largest field took, several times its size.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    return options


class OrtCpuEngine:
    """A graph in ONNX Runtime's CPU provider."""

    kind = "ort-cpu"

    @staticmethod
    def precisions() -> tuple[str, ...]:
        """What a CPU can be asked for, best first: it has no fp16 arithmetic, only casts.

        Raises
        ------
        EngineError, MissingDependencyError
            ONNX Runtime is not installed, or twice, or cannot be imported.
        """
        check_distribution("ort-cpu", "cpu")
        load_onnxruntime("ort-cpu", "cpu")
        return ("fp32", "fp16")

    def __init__(self, graph: bytes, entry: GraphEntry, precision: str, threads: int) -> None:
        ort = load_onnxruntime(self.kind, "cpu")
        self.version = f"onnxruntime {ort.__version__}"
        self.device = f"CPU, {threads} thread" + ("s" if threads > 1 else "")
        self.precision, self.inputs, self.outputs = precision, entry.inputs, entry.outputs
        try:
            self._session: Any = ort.InferenceSession(
                graph, cpu_options(ort, threads, entry), providers=[_PROVIDER]
            )
        except Exception as error:  # its exceptions share no base class below Exception
            raise EngineError(
                f"{self.version} does not load {entry.file} ({error}). "
                "Export the bundle again or upgrade: pip install -U onnxruntime"
            ) from error
        check_placement(self._session, entry.file, _PROVIDER)
        for specs, found in (
            (entry.inputs, self._session.get_inputs()),
            (entry.outputs, self._session.get_outputs()),
        ):
            expected = [(s.name, s.dtype, s.shape) for s in specs]
            check_tensors(entry.file, self.version, described(found), expected)
        self._outputs = [spec.name for spec in entry.outputs]

    def run(self, feeds: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The graph's first output for the inputs by name."""
        return self.run_all(feeds)[0]

    def run_all(
        self, feeds: Mapping[str, npt.NDArray[np.float32]]
    ) -> tuple[npt.NDArray[np.float32], ...]:
        """All outputs of the graph."""
        try:
            return tuple(self._session.run(self._outputs, dict(feeds)))
        except Exception as error:
            shapes = {name: value.shape for name, value in feeds.items()}
            raise EngineError(
                f"{self.version} failed on inputs {shapes} ({error}). Lower --batch, or {REPORT}."
            ) from error

    def close(self) -> None:
        """Free the session."""
        self._session = None


def check_placement(session: Any, file: str, provider: str) -> None:
    """The provider that was asked for has every node of the graph.

    Raises
    ------
    EngineError
        Another has one, or it is not the session's first.
    """
    # A session's last provider is always the CPU's, with or without a node.
    got = session.get_providers()[:1]
    if hasattr(session, "get_provider_graph_assignment_info"):  # since 1.24
        got = got + [part.ep_name for part in session.get_provider_graph_assignment_info()]
    if set(got) != {provider}:
        raise EngineError(
            f"{file} was to run on {provider} but got {', '.join(sorted(set(got)))}. "
            f"Choose another --engine, or {REPORT}."
        )


def described(tensors: list[Any]) -> list[tuple[str, str, tuple[Any, ...]]]:
    """Name, data type and shape of a session's tensors, in the manifest's words."""
    return [(t.name, _DTYPES.get(t.type, t.type), tuple(t.shape)) for t in tensors]
