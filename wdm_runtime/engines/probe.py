"""The NVIDIA GPU and its driver, asked of the driver alone.

Asked before any TensorRT object exists: TensorRT 11 without a driver ends the process with a
segmentation fault instead of an error.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wdm_runtime.errors import EngineError, NoDeviceError

DRIVER_LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_JETSON_RELEASE = Path("/etc/nv_tegra_release")
_NAME_BYTES, _BUS_ID_BYTES = 256, 32


@dataclass(frozen=True)
class Gpu:
    """The first GPU the driver shows (`CUDA_VISIBLE_DEVICES` decides which that is).

    ``cuda`` is the newest CUDA the driver can run, as (major, minor); ``bus_id`` where it sits on
    the PCI bus, which names it to other tools whatever the order they count in, "" if unknown.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    cuda: tuple[int, int]
    bus_id: str = ""

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name}, compute capability {major}.{minor}"

    @property
    def bindings(self) -> str:
        """The cuda-bindings that the driver can run, as pip is told.

        For a driver before CUDA 12 there are none: the oldest, which will say so.
        """
        return f"'cuda-bindings>=12.9,<{max(self.cuda[0], 12) + 1}'"


def probe_gpu(library: str = DRIVER_LIBRARY) -> Gpu:
    """Ask the driver for its first GPU.

    Parameters
    ----------
    library
        Name or path of the driver's library.

    Raises
    ------
    NoDeviceError
        There is no driver.
    EngineError
        It does not start, or has no GPU.
    """
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise NoDeviceError(
            f"There is no NVIDIA driver ({error}); expected its library {library}. Install the "
            "driver, in a container start it with --gpus all, or choose --engine auto."
        ) from error
    version, count, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
    place = ctypes.create_string_buffer(_BUS_ID_BYTES)
    _call(driver, "cuInit", ctypes.c_uint(0))
    _call(driver, "cuDriverGetVersion", ctypes.byref(version))
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise EngineError(
            "The NVIDIA driver shows no GPU; expected one. Check CUDA_VISIBLE_DEVICES and "
            "nvidia-smi, or choose --engine auto."
        )
    _call(driver, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
    _call(driver, "cuDeviceGetName", name, ctypes.c_int(_NAME_BYTES), device)
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    bus_id = ""
    with suppress(EngineError, AttributeError):  # no engine needs it, and not all GPUs sit on one
        _call(driver, "cuDeviceGetPCIBusId", place, ctypes.c_int(_BUS_ID_BYTES), device)
        bus_id = place.value.decode(errors="replace")
    return Gpu(
        name.value.decode(errors="replace"),
        (
            _attribute(driver, _CAPABILITY_MAJOR, device),
            _attribute(driver, _CAPABILITY_MINOR, device),
        ),
        memory.value,
        (version.value // 1000, version.value % 1000 // 10),
        bus_id,
    )


def jetson_release() -> str | None:
    """The first line of the release file that JetPack installs; None elsewhere."""
    try:
        return _JETSON_RELEASE.read_text(errors="replace").splitlines()[0].strip()
    except (OSError, IndexError):
        return None


def library_loads(name: str) -> bool:
    """Whether the loader finds a shared library, by name or path."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _attribute(driver: ctypes.CDLL, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
    return value.value


def _call(driver: ctypes.CDLL, function: str, *arguments: object) -> None:
    status: int = getattr(driver, function)(*arguments)
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorName(ctypes.c_int(status), ctypes.byref(text))
        cause = text.value.decode() if text.value else "an unknown status"
        raise EngineError(
            f"The NVIDIA driver's {function} gave {cause} ({status}); expected CUDA_SUCCESS. Check "
            "nvidia-smi, restart after an update of the driver, or choose --engine auto."
        )
