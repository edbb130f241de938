"""What this machine has, what of it each engine can use, and what to install for the rest."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict, dataclass

from wdm_runtime.engines import Finding, select, survey
from wdm_runtime.engines.ort_libraries import CUDA_PROVIDER, Provider, providers
from wdm_runtime.engines.probe import Gpu, jetson_release, probe_gpu
from wdm_runtime.engines.tensorrt_module import MODULES, wheel_cuda
from wdm_runtime.errors import EngineError, WdmError
from wdm_runtime.machine import available_threads
from wdm_runtime.records import to_json
from wdm_runtime.version import version

# Distributions that engines come from, with the names JetPack and CUDA 12 give some of them.
_PACKAGES = (
    *("numpy", "netCDF4", "onnxruntime", "onnxruntime-gpu", "openvino", "cuda-bindings"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    *("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "torch"),
)


@dataclass(frozen=True)
class Diagnosis:
    """What `wdm-run doctor` found.

    ``gpu`` is None where the driver shows none, ``gpu_problem`` then says why; ``auto`` is the line
    a run would print, None where no engine works.
    """

    version: str
    python: str
    platform: str
    cpu_threads: int
    jetson: str | None
    gpu: Gpu | None
    gpu_problem: str | None
    packages: dict[str, str]
    providers: tuple[Provider, ...]
    engines: tuple[Finding, ...]
    auto: str | None
    advice: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether some engine works."""
        return self.auto is not None

    def to_json(self) -> str:
        """The diagnosis as JSON."""
        return to_json(asdict(self))


def diagnose() -> Diagnosis:
    """Look at this machine. Engines are asked exactly as a run asks them."""
    gpu, problem = _gpu()
    packages, jetson = _packages(), jetson_release()
    parts, damage = _providers()
    findings = survey()
    try:
        auto: str | None = select().why
    except EngineError:
        auto = None
    return Diagnosis(
        version=version(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu_threads=available_threads(),
        jetson=jetson,
        gpu=gpu,
        gpu_problem=problem,
        packages=packages,
        providers=parts,
        engines=findings,
        auto=auto,
        advice=(*damage, *_advice(gpu, packages, parts, jetson)),
    )


def _gpu() -> tuple[Gpu | None, str | None]:
    try:
        return probe_gpu(), None
    except WdmError as error:
        return None, str(error)


def _providers() -> tuple[tuple[Provider, ...], tuple[str, ...]]:
    """Those of ONNX Runtime, or none and what is wrong with them."""
    try:
        return providers(), ()
    except EngineError as error:
        return (), (str(error),)


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _advice(
    gpu: Gpu | None, packages: dict[str, str], parts: tuple[Provider, ...], jetson: str | None
) -> list[str]:
    """What to do next, of which engines' own errors say nothing."""
    if gpu is None:
        return []
    advice: list[str] = []
    if jetson:
        advice.append(
            "On Jetson use the TensorRT module of JetPack (python3 -c 'import tensorrt'), in a "
            "virtual environment made with --system-site-packages, and for ort-cuda an "
            "onnxruntime-gpu made for that JetPack. Wheels of tensorrt from pip have no libraries "
            "for it."
        )
    advice += [text for part in parts if (text := _advice_on(part, gpu))]
    bindings = packages.get("cuda-bindings", "")
    wheels = [cuda for kind in MODULES if (cuda := wheel_cuda(kind)) is not None]
    # Where every TensorRT is too new as well, its engine says what to install for both.
    fits = min(wheels, default=0) <= gpu.cuda[0]
    if fits and bindings and int(bindings.partition(".")[0]) > gpu.cuda[0]:
        advice.append(
            f"cuda-bindings {bindings} is for CUDA {bindings.partition('.')[0]}, and the driver "
            f"runs up to CUDA {gpu.cuda[0]}.{gpu.cuda[1]}. Update the driver, or run: pip install "
            f"{gpu.bindings}"
        )
    return advice


def _advice_on(part: Provider, gpu: Gpu) -> str | None:
    """What keeps a provider of ONNX Runtime from loading."""
    unused = "" if part.file == CUDA_PROVIDER else " No engine here needs it."
    if part.cuda is not None and part.cuda > gpu.cuda[0]:
        return (
            f"{part.file} is for CUDA {part.cuda}, and the driver runs up to CUDA {gpu.cuda[0]}."
            f"{gpu.cuda[1]}: that provider does not work.{unused} Update the driver, or install an "
            f"onnxruntime-gpu for CUDA {gpu.cuda[0]}."
        )
    if part.missing:
        return (
            f"{part.file} needs {', '.join(library.name for library in part.missing)}, which "
            f"cannot be found: that provider does not work.{unused} {part.remedy}"
        ).strip()
    return None
