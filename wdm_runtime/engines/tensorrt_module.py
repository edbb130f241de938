"""The Python modules of TensorRT and TensorRT-RTX, imported and named."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

from wdm_runtime.engines.probe import Gpu, jetson_release
from wdm_runtime.errors import EngineError, MissingDependencyError, require

MODULES = {"tensorrt": ("tensorrt", "gpu"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}
_CUDAS = (13, 12)  # that there are wheels for
_JETPACK = "python3 -m venv --system-site-packages"
_LOGGED = 6  # errors a message repeats: the first names the cause, the last what came of it


def load_module(kind: str) -> Any:
    """The module of an engine. Only for a machine with a driver: see `wdm_runtime.engines.probe`.

    Raises
    ------
    EngineError
        It is older than TensorRT 10.
    MissingDependencyError
        It is not installed.
    """
    module, extra = MODULES[kind]
    try:
        trt: Any = require(module, extra, f"Engine '{kind}'")
    except MissingDependencyError as error:
        if kind == "tensorrt" and jetson_release():  # what pip has brings no libraries for it
            raise MissingDependencyError(
                f"Engine '{kind}' needs JetPack's Python package '{module}', which cannot be "
                f"imported ({error.__cause__}). Make the virtual environment with: {_JETPACK}",
                extra,
                module,
                _JETPACK,
            ) from error
        raise
    if "STRONGLY_TYPED" not in trt.NetworkDefinitionCreationFlag.__members__:
        raise EngineError(
            f"Engine '{kind}' found {version_of(trt)}; expected TensorRT 10 or newer, on Jetson "
            "that of JetPack 6. Upgrade it, or choose --engine ort-cpu."
        )
    return trt


def wheel_cuda(kind: str) -> int | None:
    """The CUDA that an engine's wheel is built for; None for a module that pip did not bring."""
    import importlib.metadata  # 20 ms, which an import of the package should not cost

    for cuda in _CUDAS:  # their files are the same: beside an older one the newer is to go
        try:
            importlib.metadata.version(f"{kind}-cu{cuda}")
        except importlib.metadata.PackageNotFoundError:
            continue
        return cuda
    return None


def check_driver(kind: str, gpu: Gpu) -> None:
    """The driver runs the CUDA that an engine's wheel holds: started without, it may crash.

    cuda-bindings hold a CUDA of their own, which says nothing of this one.

    Raises
    ------
    EngineError
        It does not.
    """
    cuda, (runs, minor) = wheel_cuda(kind), gpu.cuda
    if cuda is None or cuda <= runs:
        return
    replace = ""
    if runs >= min(_CUDAS):
        wheel = f"{kind}-cu{cuda}"
        replace = (
            f", or replace it with: pip uninstall -y {wheel} {wheel}-bindings {wheel}-libs && "
            f"pip install {kind}-cu{runs} {gpu.bindings}"
        )
    raise EngineError(
        f"Engine '{kind}' found {kind}-cu{cuda}, which is for CUDA {cuda}, and a driver that runs "
        f"up to CUDA {runs}.{minor}; expected a driver as new. Update the NVIDIA driver"
        f"{replace or '.'}"
    )


def start(trt: Any, part: Callable[[Any], Any]) -> Any:
    """A ``Runtime`` or ``Builder`` of a TensorRT module, the first of which starts its CUDA.

    Raises
    ------
    EngineError
        It does not start.
    """
    log = logger(trt)
    try:
        return part(log)
    except Exception as error:  # the bindings raise TypeError for what only the log explains
        raise EngineError(
            f"{version_of(trt)} does not start on this machine ({error}: {log.take()}). Update the "
            "NVIDIA driver, or choose --engine ort-cpu."
        ) from error


def version_of(trt: Any) -> str:
    """The module and its version, for people."""
    return f"{trt.__name__} {trt.__version__}"


def dtype_name(dtype: Any) -> str:
    """NumPy's name of a TensorRT data type."""
    text = str(dtype.name)
    return {"FLOAT": "float32", "HALF": "float16"}.get(text, text.lower())


@cache
def logger(trt: Any) -> Any:
    """The one logger of a TensorRT module, which ignores every later one. Keeps errors only."""

    class ErrorLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=_LOGGED)

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self._errors.append(msg.strip())

        def take(self) -> str:
            """What went wrong since the last call."""
            text = "; ".join(self._errors) or "no reason given"
            self._errors.clear()
            return text

    return ErrorLog()
