"""What can be asked of an engine besides its name and precision."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from wdm_runtime.errors import InputError, whole
from wdm_runtime.machine import available_threads

Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all
_MOST = 1 << 16  # threads, or tiles a call: no machine has more, and engines count in 32 bits


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is opened. Each family takes what concerns it.

    Parameters
    ----------
    threads
        CPU threads; None takes all this process may use.
    batch
        Tiles a call; None is 1. On TensorRT it is the size of the fixed buffers:
        other numbers of tiles work, the last launch with some of its work wasted.
    measure_batch
        Whether a `Downscaler` times a few batches and takes the fastest, in place of ``batch``.
    build
        Whether to build a TensorRT plan that is not in the cache, which takes seconds to minutes.
    cuda_graph
        Whether to replay a CUDA graph instead of launching kernel by kernel.
    fused_step
        Whether the engine does the sampler's update too, where one tile covers a frame's rain;
        None leaves it to engines on which that is faster than the loop in NumPy.
    progress
        Called while a plan is built with phase, steps done and steps in all.
    note
        Told, in one line each, what did not go as planned but is made good.
    """

    threads: int | None = None
    batch: int | None = None
    measure_batch: bool = False
    build: bool = True
    cuda_graph: bool = True
    fused_step: bool | None = None
    progress: Progress | None = None
    note: Callable[[str], None] = warnings.warn

    def __post_init__(self) -> None:
        for name, value in (("threads", self.threads), ("batch", self.batch)):
            if value is not None and not 1 <= whole(name, value) <= _MOST:
                raise InputError(f"Got {name} {value}; expected 1 to {_MOST}. Set --{name}.")

    @property
    def cpu_threads(self) -> int:
        """The number of CPU threads to use."""
        return self.threads or available_threads()
