"""What reading may take in this process: memory, and how it says that it goes on.

Both belong to the whole process, so only a process that does nothing but read sets them.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What the libraries of the formats hold besides arrays: 113 MiB with all of them imported (netCDF4
# 1.7, ecCodes 2.50, xarray, zarr 3, pyproj), and as much again for what they keep of files.
_LIBRARIES_BYTES = 1 << 28

# Share of the limit held at a failure from which memory is named as the likely cause; unpacking
# libraries double their requests.
_NEAR = 0.25

# Libraries read a file's structure within milliseconds; damaged ones have HDF5 walk in circles.
_STRUCTURE_S = 5.0

_most_bytes: int | None = None
_on_beat: Callable[[], None] | None = None


def memory_bytes() -> int:
    """The machine's memory, or what `limit_memory` left of it."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return machine if _most_bytes is None else min(machine, _most_bytes)


def limit_memory(most_bytes: int) -> None:
    """Refuse declared sizes beyond a limit, and make the system refuse what was not declared.

    Parameters
    ----------
    most_bytes
        For arrays and what is unpacked; the libraries themselves come on top.
    """
    global _most_bytes
    _most_bytes = most_bytes
    # Not RLIMIT_AS: it counts what libraries map and never touch, gigabytes on many cores.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = most_bytes + _LIBRARIES_BYTES
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def forget_peak() -> None:
    """Begin anew to note the most memory that is held."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def shortage() -> str:
    """A sentence for an error's end if memory may be behind it, else ""."""
    if _most_bytes is None:
        return ""
    held = _peak_bytes()
    if held < _NEAR * _most_bytes + _LIBRARIES_BYTES // 2:
        return ""
    return (
        f" Reading it held {held / 2**20:,.0f} MiB of {_most_bytes / 2**20:,.0f} MiB: raise "
        "--max-memory if the file is to be trusted."
    )


def holds_open(path: str) -> bool:
    """Whether this process has a file open, under this or another name."""
    with suppress(OSError):
        file = os.stat(path)
        for descriptor in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # the listing's own is closed by now
                if os.path.samestat(os.fstat(int(descriptor)), file):
                    return True
    return False


def is_crowded() -> bool:
    """Whether so much is held between files that the next one may not find its memory."""
    return _most_bytes is not None and _status_bytes("VmData") > _most_bytes // 2 + _LIBRARIES_BYTES


def _peak_bytes() -> int:
    """The most memory held since `forget_peak`."""
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return 0


def offer_to_the_kernel() -> None:
    """Where memory runs out for all, this process is the one to end."""
    Path("/proc/self/oom_score_adj").write_text("1000")


def on_beat(listener: Callable[[], None]) -> None:
    """Have a function called each time that reading has come a step further."""
    global _on_beat
    _on_beat = listener


@contextmanager
def reads_structure() -> Iterator[None]:
    """End this process if what is within, which reads no data, computes for seconds.

    Waiting for a slow disk does not count. Without effect unless `on_beat` was called.
    """
    if _on_beat is None:
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, _STRUCTURE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def beat() -> None:
    """Reading has come a step further."""
    if _on_beat is not None:
        _on_beat()
