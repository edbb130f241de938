"""What does kill -9 leave, at any moment of a run or an export?

Starts the real commands over an output that exists, kills each after a random time and opens what
then bears the name: it has to be the old output or the new one, whole. Beside it there may be one
hidden folder, which the next run throws away.

    python benches/kill.py
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np

from wdm_runtime.bundle import Bundle

MODELS = Path(__file__).resolve().parent.parent / "models"
_QUIET = "import sys; sys.argv[0] = 'wdm'; "
INFER = [sys.executable, "-c", _QUIET + "from wdm_runtime.cli import main; main()", "infer"]
EXPORT = [sys.executable, "-c", _QUIET + "from wdm_export.cli import main; main()", "export"]


def infer_command(out: Path, number: int) -> list[str]:
    options = ["--bundle", MODELS / "tiny", "--steps", "2", "--no-pixel-probe", "--overwrite"]
    seed = ["--seed", str(number), "-q", "-o", out / "out.nc"]
    return [*map(str, (*INFER, MODELS / "sample" / "mrms_10km.nc", *options, *seed))]


def whole_run(out: Path) -> str:
    """The seed of the output, all of whose values can be read."""
    with netCDF4.Dataset(out / "out.nc") as dataset:
        rates = np.ma.filled(dataset["precipitation_rate"][:].astype(float), np.nan)
        if rates.shape[-2:] != (520, 760) or not np.isfinite(rates).any():
            raise ValueError(f"an output of shape {rates.shape}")
        return str(int(dataset.wdm_seed))


def export_command(out: Path, number: int) -> list[str]:
    options = ["--tile", "64", "--overwrite", "--name", f"n{number}", "-o", out / "bundle"]
    return [*map(str, (*EXPORT, MODELS / "tiny.safetensors", *options))]


def whole_bundle(out: Path) -> str:
    bundle = Bundle.open(out / "bundle")
    bundle.verify()
    return bundle.manifest.name.removeprefix("n")


def kills(
    name: str, command: Callable[[Path, int], list[str]], whole: Callable[[Path], str], count: int
) -> None:
    draw, found = random.Random(name), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        out.mkdir()
        env = {**os.environ, "XDG_CACHE_HOME": folder}
        quiet: dict[str, Any] = {
            "env": env,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        lasts = float("inf")
        for _ in range(3):  # the shortest: others may use this machine
            began = time.monotonic()
            subprocess.run(command(out, 0), check=True, **quiet)
            lasts = min(lasts, time.monotonic() - began)
        most, number, before = 0, 0, whole(out)
        while found["killed"] < count:
            number += 1
            process = subprocess.Popen(command(out, number), **quiet)
            try:
                process.wait(draw.uniform(0.05, 1.1) * lasts)
            except subprocess.TimeoutExpired:
                found["killed"] += 1
            process.kill()
            process.wait()
            now = whole(out)  # raises if it is anything but whole
            if now not in (before, str(number)):
                raise AssertionError(f"{name} {number}: neither {before} nor {number}, but {now}")
            found["the new one" if now == str(number) else "the old one"] += 1
            before = now
            left = sorted(path.name for path in out.iterdir() if path.name.startswith("."))
            most = max(most, len(left))
            found["left a folder"] += bool(left)
        subprocess.run(command(out, 0), check=True, **quiet)
        left = sorted(path.name for path in out.iterdir() if path.name.startswith("."))
    print(
        f"{name}: {number} starts, {found['killed']} killed before their end (a run takes "
        f"{lasts:.1f} s); then the name held the old output {found['the old one']} times, the new "
        f"one {found['the new one']} times, nothing else; {found['left a folder']} times hidden "
        f"leftovers beside it, {most} at most, {len(left)} after the next run"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--infer", type=int, default=200, help="kills of wdm-run infer")
    parser.add_argument("--export", type=int, default=40, help="kills of wdm-export export")
    options = parser.parse_args()
    if options.infer:
        kills("wdm-run infer", infer_command, whole_run, options.infer)
    if options.export:
        kills("wdm-export export", export_command, whole_bundle, options.export)


if __name__ == "__main__":
    main()
