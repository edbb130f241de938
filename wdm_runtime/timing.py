"""Calls of an engine that only warm it up or time it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from wdm_runtime.engines import Engine
from wdm_runtime.manifest import TensorSpec

Array = npt.NDArray[np.float32]


def feeds_of(inputs: Sequence[TensorSpec], batch: int) -> dict[str, Array]:
    """Inputs of a score graph for ``batch`` tiles: seeded normals and t = 0.5.

    The time a network takes does not depend on them, denormals excepted, which these are not.
    """
    rng = np.random.default_rng(0)
    feeds = {
        spec.name: rng.standard_normal(
            [size if isinstance(size, int) else batch for size in spec.shape], dtype=np.float32
        )
        for spec in inputs
    }
    return {**feeds, "t": np.array([0.5], dtype=np.float32)}


def timed_call(engine: Engine, feeds: dict[str, Array]) -> float:
    """Wall time of one call [s]. Let an untimed one go before it.

    Without that a small network pays for the caches that another one has just emptied.
    """
    began = time.perf_counter()
    engine.run(feeds)
    return time.perf_counter() - began


def percentiles_ms(seconds: Iterable[float]) -> tuple[float, float, float]:
    """Median, 95th and 99th percentile of at least one time [s], to the microsecond [ms]."""
    p50, p95, p99 = np.percentile([1e3 * one for one in seconds], (50, 95, 99))
    return round(float(p50), 3), round(float(p95), 3), round(float(p99), 3)
