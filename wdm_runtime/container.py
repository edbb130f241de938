"""What a container, or another control group of Linux, leaves of the machine to its processes.

Of version 2 of control groups, where each group from the process's own up to the root may have a
limit and the tightest counts. Within a container the own group is seen as the root.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def memory_left_in_container() -> int | None:
    """Bytes below the tightest limit, file cache that can be dropped included; None without one."""
    left = []
    for group in _groups():
        with suppress(OSError, ValueError, StopIteration):  # no such file, or "max"
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
            statistics = (group / "memory.stat").read_text().splitlines()
            cache = next(line for line in statistics if line.startswith("inactive_file "))
            left.append(max(0, limit - used + int(cache.split()[1])))
    return min(left, default=None)


def cpus_of_container() -> int | None:
    """Processors' worth of time of the tightest limit, rounded up; None without one."""
    found = []
    for group in _groups():
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = map(int, (group / "cpu.max").read_text().split())
            found.append(max(1, math.ceil(quota / period)))
    return min(found, default=None)


def _groups() -> Iterator[Path]:
    """The own group and those it is in."""
    with suppress(OSError, ValueError):
        for line in _OWN.read_text().splitlines():
            number, _, path = line.split(":", 2)
            if number == "0":
                group = _ROOT / path.strip("/")
                yield from (group, *(above for above in group.parents if _ROOT in above.parents))
                if group != _ROOT:
                    yield _ROOT
