"""What this machine has, what of it each engine can use, and what to install for the rest."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from wdm_runtime.elf import needed_libraries
from wdm_runtime.engines import Finding, select, survey
from wdm_runtime.engines.options import available_threads
from wdm_runtime.engines.probe import Gpu, library_loads, probe_gpu
from wdm_runtime.errors import EngineError, WdmError
from wdm_runtime.version import version

# Distributions that engines come from, with the names JetPack and CUDA 12 give some of them.
_PACKAGES = (
    *("numpy", "netCDF4", "onnxruntime", "onnxruntime-gpu", "openvino", "cuda-bindings"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "torch"),
)
_PROVIDERS = "libonnxruntime_providers_*.so"
_JETSON_RELEASE = Path("/etc/nv_tegra_release")


@dataclass(frozen=True)
class Library:
    """A shared library that another one links against, and whether the loader finds it."""

    name: str
    found: bool


@dataclass(frozen=True)
class Provider:
    """A part of ONNX Runtime with what it links against."""

    file: str
    needs: tuple[Library, ...]


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
        return json.dumps(asdict(self), indent=1) + "\n"


def diagnose() -> Diagnosis:
    """Look at this machine. Engines are asked exactly as a run asks them."""
    gpu, problem = _gpu()
    packages, jetson = _packages(), _jetson()
    providers, findings = _providers(), survey()
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
        providers=providers,
        engines=findings,
        auto=auto,
        advice=tuple(_advice(gpu, packages, providers, jetson)),
    )


def _gpu() -> tuple[Gpu | None, str | None]:
    try:
        return probe_gpu(), None
    except WdmError as error:
        return None, str(error)


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _jetson() -> str | None:
    """The first line of the release file that JetPack installs."""
    try:
        return _JETSON_RELEASE.read_text(errors="replace").splitlines()[0].strip()
    except (OSError, IndexError):
        return None


def _providers() -> tuple[Provider, ...]:
    """ONNX Runtime's provider libraries, read as files: loading one may end the process."""
    folders = [Path(entry or ".") / "onnxruntime" / "capi" for entry in sys.path]
    files = next((found for f in folders if (found := sorted(f.glob(_PROVIDERS)))), [])
    return tuple(
        Provider(file.name, tuple(Library(n, library_loads(n)) for n in needed_libraries(file)))
        for file in files
    )


def _advice(
    gpu: Gpu | None, packages: dict[str, str], providers: tuple[Provider, ...], jetson: str | None
) -> list[str]:
    """What to do next, of which engines' own errors say nothing."""
    advice: list[str] = []
    if gpu is None:
        return advice
    if jetson:
        advice.append(
            "On Jetson use the TensorRT module of JetPack (python3 -c 'import tensorrt'), in a "
            "virtual environment made with --system-site-packages. Wheels of tensorrt from pip "
            "have no libraries for it."
        )
    for provider in providers:
        missing = [library.name for library in provider.needs if not library.found]
        if missing:
            advice.append(
                f"{provider.file} needs {', '.join(missing)}, which cannot be found: that provider "
                "does not work. Install the packages of that CUDA version, or another release of "
                "onnxruntime-gpu."
            )
    bindings = packages.get("cuda-bindings", "")
    if bindings and int(bindings.partition(".")[0]) > gpu.cuda[0]:
        advice.append(
            f"cuda-bindings {bindings} is for CUDA {bindings.partition('.')[0]}, and the driver "
            f"runs up to CUDA {gpu.cuda[0]}.{gpu.cuda[1]}. Update the driver, or run: pip install "
            f"'cuda-bindings<{gpu.cuda[0] + 1}'"
        )
    return advice
