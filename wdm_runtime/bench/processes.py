"""Starts fresh processes with `wdm_runtime.bench.child` and reads what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wdm_runtime.bench.child import Start
from wdm_runtime.bench.report import Opening
from wdm_runtime.engines import Choice
from wdm_runtime.errors import EngineError
from wdm_runtime.io.child import command_of

_STARTS = 3  # with a cache, after the one that fills it and warms the disk


def measure_opening(
    bundle: Path, choice: Choice, threads: int | None, key: Path | None = None
) -> Opening:
    """A process with an empty cache folder, then several with what it left there.

    Each asks for a signature as this process did, since a folder may change in between.

    Raises
    ------
    EngineError
        A process could not open the bundle, or died.
    """
    with tempfile.TemporaryDirectory() as cache:
        first, *later = (_start(bundle, choice, threads, key, cache) for _ in range(1 + _STARTS))
    return Opening(
        choice.kind,
        choice.precision,
        first.open_s,
        float(np.median([s.open_s for s in later])),
        float(np.median([s.cold_start_s for s in later])),
        _largest(s.loaded_mib for s in later),
        _largest(s.peak_mib for s in later),
        _largest(s.device_mib for s in later),
        None,
    )


def _start(
    bundle: Path, choice: Choice, threads: int | None, key: Path | None, cache: str
) -> Start:
    request = {
        "bundle": str(bundle.absolute()),
        "engine": choice.kind,
        "precision": choice.precision,
        "threads": threads,
        "key": None if key is None else str(key),
    }
    done = subprocess.run(
        command_of("wdm_runtime.bench.child", json.dumps(request)),
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": cache},
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        last = (done.stderr.strip() or "it printed nothing").splitlines()[-1]
        raise EngineError(
            f"A process with {choice.kind} in {choice.precision} ended with status "
            f"{done.returncode} ({last}); expected its times. Run 'wdm-run selftest --engine "
            f"{choice.kind}'."
        ) from error
    if "problem" in answer:
        raise EngineError(answer["problem"])
    return Start(**answer)


def _largest(values: Iterable[float | None]) -> float | None:
    return max((v for v in values if v is not None), default=None)
