"""ONNX Runtime's provider libraries: what they link against, and what would install it.

They are read as files: loading one may end the process, and the wheel lists a provider as
available whether or not its libraries can be loaded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wdm_runtime.elf import needed_libraries
from wdm_runtime.engines.probe import library_loads

CUDA_PROVIDER = "libonnxruntime_providers_cuda.so"
DRIVER = "the NVIDIA driver"
_FILES = "libonnxruntime_providers_*.so"
# Loaded by name when the first convolution is set up, so the file does not list it under NEEDED.
_LOADED_LATER = {CUDA_PROVIDER: ("libcudnn.so.9",)}
# Folders of wheels, none of which the loader searches, below a folder of packages.
_WHEEL_FOLDERS = ("nvidia/*/lib", "tensorrt_libs")
_VERSIONED = re.compile(r"lib(\w+)\.so\.(\d+)")
# Distributions by library, as onnxruntime-gpu's own extras name them. From CUDA 13 on those of CUDA
# itself have no suffix; the major versions of cuRAND and cuFFT are not CUDA's.
_CUDA_PARTS = {
    "cudart": "nvidia-cuda-runtime",
    "cublas": "nvidia-cublas",
    "cublasLt": "nvidia-cublas",
    "curand": "nvidia-curand",
    "cufft": "nvidia-cufft",
    "nvrtc": "nvidia-cuda-nvrtc",
}
_OLDEST_TENSORRT = {("10", 13): "10.13"}  # the first of a major version for a CUDA version


@dataclass(frozen=True)
class Library:
    """A shared library that another one needs.

    ``found`` says whether it is where the loader or ONNX Runtime looks; ``install`` what to give to
    pip for it, `DRIVER`, or None for a part of the system.
    """

    name: str
    found: bool
    install: str | None = None


@dataclass(frozen=True)
class Provider:
    """A part of ONNX Runtime with what it needs."""

    file: str
    needs: tuple[Library, ...]

    @property
    def missing(self) -> tuple[Library, ...]:
        """What cannot be found of it."""
        return tuple(library for library in self.needs if not library.found)

    @property
    def cuda(self) -> int | None:
        """The CUDA version it is built for."""
        return _cuda_of(library.name for library in self.needs)

    @property
    def remedy(self) -> str:
        """What to do about what is missing; empty where nothing known brings it."""
        wanted = dict.fromkeys(library.install for library in self.missing)
        pins = [f"'{pin}'" for pin in wanted if pin not in (None, DRIVER)]
        driver = "Install or start the NVIDIA driver. " if DRIVER in wanted else ""
        packages = f"Install them with: pip install {' '.join(pins)}" if pins else ""
        return (driver + packages).strip()


def providers(pattern: str = _FILES) -> tuple[Provider, ...]:
    """Those of the installed ONNX Runtime whose file names match; none for a wheel without any."""
    folders = [Path(entry or ".") / "onnxruntime" / "capi" for entry in sys.path]
    files = next((found for f in folders if (found := sorted(f.glob(pattern)))), [])
    return tuple(described(file.name, needed_libraries(file)) for file in files)


def described(file: str, needed: tuple[str, ...]) -> Provider:
    """A provider of a file name and the names it links against."""
    names = (*needed, *(name for name in _LOADED_LATER.get(file, ()) if name not in needed))
    cuda = _cuda_of(names)
    return Provider(file, tuple(Library(n, _found(n), _install(n, cuda)) for n in names))


def _found(name: str) -> bool:
    """Whether a wheel brings a library, or else the loader finds it.

    In this order: what was loaded to look at it stays, and goes by its name before a wheel's.
    """
    in_wheels = any(
        next(Path(entry or ".").glob(f"{folder}/{name}"), None)
        for entry in sys.path
        for folder in _WHEEL_FOLDERS
    )
    return in_wheels or library_loads(name)


def _cuda_of(names: Iterable[str]) -> int | None:
    parts = [match for name in names if (match := _VERSIONED.fullmatch(name))]
    return next((int(m[2]) for m in parts if m[1] in ("cudart", "cublas")), None)


def _install(name: str, cuda: int | None) -> str | None:
    """What brings a library, in a version with its name, for a CUDA version."""
    match = _VERSIONED.fullmatch(name)
    if match is None or cuda is None:
        return None
    part, major = match.groups()
    if part == "cuda":
        return DRIVER
    if part in ("nvinfer", "nvonnxparser"):
        oldest = _OLDEST_TENSORRT.get((major, cuda), major)
        return f"tensorrt-cu{cuda}>={oldest},<{int(major) + 1}"
    if part == "cudnn":
        return f"nvidia-cudnn-cu{cuda}>={major},<{int(major) + 1}"
    if part not in _CUDA_PARTS:
        return None
    distribution = _CUDA_PARTS[part] + ("" if cuda >= 13 else f"-cu{cuda}")
    return f"{distribution}>={major},<{int(major) + 1}"
