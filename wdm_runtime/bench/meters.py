"""Energy and device memory, where the machine lets them be read; None where not."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from wdm_runtime.engines.probe import Gpu

POWERCAP = Path("/sys/class/powercap")
_NVIDIA_SMI = "nvidia-smi"
_TIMEOUT_S = 10.0
_PERIOD_S = 0.1  # between two readings of a GPU's power, which its driver averages over as much


class Meter(Protocol):
    """Measures one device's energy."""

    @property
    def device(self) -> str:
        """Whose energy it is, in words."""
        ...

    def joules(self, work: Callable[[], object]) -> float | None:
        """Energy while ``work`` runs [J]; None if it could not be read after all."""
        ...


class Rapl:
    """A package of the CPU, by the counter of the kernel's powercap (Intel and AMD)."""

    def __init__(self, zone: Path) -> None:
        self._counter = zone / "energy_uj"
        self._range_uj = int((zone / "max_energy_range_uj").read_text())
        self.device = f"CPU {(zone / 'name').read_text().strip()}"
        self._read()

    def joules(self, work: Callable[[], object]) -> float | None:
        """The counter's difference; it wraps around."""
        before = self._read()
        work()
        with suppress(OSError, ValueError):
            after = self._read()
            return 1e-6 * (after - before + (self._range_uj if after < before else 0))
        return None

    def _read(self) -> int:
        return int(self._counter.read_text())


class NvidiaSmi:
    """A GPU's board, by the power that `nvidia-smi` reads again and again.

    ``bus_id`` is the GPU's, as engines and `nvidia-smi` count GPUs differently.
    """

    def __init__(self, bus_id: str) -> None:
        if not bus_id:
            raise ValueError("the driver does not say which GPU it is")
        self._bus_id = bus_id
        self.device = f"GPU {self._ask('name')}"
        self._watts()

    def joules(self, work: Callable[[], object]) -> float | None:
        """Mean power times time."""
        watts: list[float] = []
        done = threading.Event()

        def watch() -> None:
            with suppress(OSError, ValueError, subprocess.SubprocessError):
                while not done.is_set():
                    watts.append(self._watts())
                    done.wait(_PERIOD_S)

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        try:
            work()
        finally:
            seconds = time.perf_counter() - began
            done.set()
            watcher.join()
        return seconds * sum(watts) / len(watts) if watts else None

    def _watts(self) -> float:
        return float(self._ask("power.draw"))

    def _ask(self, what: str) -> str:
        return _nvidia_smi(f"--query-gpu={what}", f"--id={self._bus_id}").strip()


def meters(gpu: Gpu | None, powercap: Path = POWERCAP) -> list[Meter]:
    """Of an engine on a GPU, or on the CPU alone: all that can be read here by this user.

    None on most virtual machines, and none of a GPU engine's where its GPU's cannot be read: what
    the CPU takes beside it would pass for all.
    """
    found: list[Meter] = []
    if gpu:
        try:
            found.append(NvidiaSmi(gpu.bus_id))
        except (OSError, ValueError, subprocess.SubprocessError):
            return []
    for zone in sorted(powercap.glob("*:*")):
        with suppress(OSError, ValueError):
            # Zones within a package, such as its cores, are part of it.
            if (zone / "name").read_text().startswith("package"):
                found.append(Rapl(zone))
    return found


def gpu_process_mib() -> float | None:
    """Device memory of this process [MiB]; None without a GPU, or where it does not say."""
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        for line in _nvidia_smi("--query-compute-apps=pid,used_gpu_memory").splitlines():
            process, used = line.split(",")
            if int(process) == os.getpid():
                return float(used)
    return None


def _nvidia_smi(*query: str) -> str:
    command = [_NVIDIA_SMI, *query, "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    if not done.stdout.strip():
        raise ValueError("it says nothing")
    return done.stdout
