"""What the operating system says of the machine, and of what this process takes of it."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

from wdm_runtime.container import cpus_of_container, memory_left_in_container

_CPUINFO = Path("/proc/cpuinfo")
# By Linux's names on x86 and ARM; libraries choose their code by these.
_VECTORS = ("fma", "avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "asimddp", "sve", "bf16")


def available_threads() -> int:
    """CPU cores this process may use, in a container as many as its share of time is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, cpus_of_container() or cores or 1)


def available_bytes() -> int | None:
    """Memory the system can give without swapping, None where it does not say.

    In a container at most what is left below its limit.
    """
    found = []
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
    left = memory_left_in_container()
    if left is not None:
        found.append(left)
    return min(found, default=None)


def machine() -> str:
    """What makes two machines differ in speed, in words."""
    model = _cpu().get("model name", platform.processor())
    return f"{platform.machine()}, {model}, {available_threads()} cores"


def processor() -> str:
    """What makes two machines round differently, in words: the vector instructions they have."""
    cpu = _cpu()
    known = (cpu.get("flags") or cpu.get("Features", "")).split()  # x86, ARM
    vectors = " ".join(name for name in _VECTORS if name in known)
    model = cpu.get("model name", platform.processor())
    return ", ".join(part for part in (platform.machine(), model, vectors) if part)


def _cpu() -> dict[str, str]:
    """Linux's words of the first core; none elsewhere."""
    try:
        first = _CPUINFO.read_text().partition("\n\n")[0]
    except OSError:
        return {}
    lines = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def load() -> float:
    """Processes that ran or waited over the last minute."""
    return round(os.getloadavg()[0], 1)


def resident_bytes() -> int | None:
    """Memory this process holds now, None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def peak_rss_mib() -> float | None:
    """Largest resident set of this process so far [MiB], None where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        # Not getrusage, whose peak of a new process begins at its parent's.
        status = Path("/proc/self/status").read_text()
        return round(int(status.partition("VmHWM:")[2].split()[0]) / 2**10, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def seconds_since_process_start() -> float:
    """Wall time since the operating system started this process, a shell's before it included.

    For a process that its parent started as this program and nothing else.
    """
    try:
        start_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - start_ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.process_time()  # no /proc: the CPU time is a lower bound
