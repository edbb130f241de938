"""What a fresh process takes to open a bundle and run it: the process that `wdm-run bench` starts.

It prints one line of JSON. Its imports are those a program needs that downscales, and no more.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from wdm_runtime.bench.meters import gpu_process_mib
from wdm_runtime.bench.models import tile_field
from wdm_runtime.bundle import Bundle
from wdm_runtime.downscale import Downscaler
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import WdmError
from wdm_runtime.machine import peak_rss_mib, resident_bytes, seconds_since_process_start
from wdm_runtime.timing import feeds_of


@dataclass(frozen=True)
class Start:
    """One process.

    ``open_s``: reading the bundle and opening its engines; ``cold_start_s``: from the start of the
    process to the end of its first step; ``loaded_mib``: resident after opening; ``peak_mib`` and
    ``device_mib``: at the end of one tile with one member, None where they cannot be read.
    """

    open_s: float
    cold_start_s: float
    loaded_mib: float | None
    peak_mib: float | None
    device_mib: float | None


def start(bundle: str, engine: str, precision: str, threads: int | None, key: str | None) -> Start:
    """Open a bundle on an engine, take one step, then downscale one tile."""
    options = EngineOptions(threads, note=lambda text: None)
    began = time.perf_counter()
    opened = Bundle.open(bundle, None if key is None else Path(key))
    with Downscaler.open(opened, engine, precision, options) as downscaler:
        open_s = time.perf_counter() - began
        loaded = resident_bytes()
        downscaler.engine.run(feeds_of(downscaler.engine.inputs, 1))
        cold_start_s = seconds_since_process_start()
        for _ in downscaler.downscale(tile_field(opened.manifest)):
            pass
        return Start(
            round(open_s, 3),
            round(cold_start_s, 3),
            None if loaded is None else round(loaded / 2**20, 1),
            peak_rss_mib(),
            gpu_process_mib(),
        )


def main() -> None:
    """Print what was measured, or what is in the way."""
    warnings.simplefilter("ignore")  # the one line of output is the parent's
    try:
        print(json.dumps(asdict(start(**json.loads(sys.argv[2])))))
    except WdmError as error:
        print(json.dumps({"problem": str(error)}))
