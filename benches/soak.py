"""Does a process that downscales for ever stay as it was? Memory and descriptors over many frames.

One file after the other is read, downscaled by the tiny bundle and written over the same output, in
one process with one `ReaderProcess`. The resident memory's slope is a least-squares line over all
but the first tenth, in which caches fill.

    python benches/soak.py --frames 2000

Exit code 1: memory grows by 1 MiB per 100 frames or more, or a descriptor is lost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from wdm_runtime import job
from wdm_runtime.downscale import Downscaler
from wdm_runtime.io.reader import ReaderProcess
from wdm_runtime.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "models" / "tiny"
SAMPLE = ROOT / "models" / "sample" / "mrms_10km.nc"
MOST_MIB_PER_100 = 1.0
WARM_UP = 0.1
FRAMES_A_FILE = 10


def input_file(folder: Path) -> Path:
    """Ten times of a part of the sample, each turned by one cell more."""
    import netCDF4

    path = folder / "in.nc"
    with netCDF4.Dataset(SAMPLE) as source, netCDF4.Dataset(path, "w") as data:
        rate = source["precipitation_rate"][0, 20:32, 30:42].filled(0.0)
        axes = {
            "time": ("minutes since 2022-08-09 15:00:00", np.arange(FRAMES_A_FILE)),
            "lat": ("degrees_north", source["lat"][20:32]),
            "lon": ("degrees_east", source["lon"][30:42]),
        }
        for name, (units, values) in axes.items():
            data.createDimension(name, len(values))
            axis = data.createVariable(name, "f8", (name,))
            axis.units = units
            axis[:] = values
        rain = data.createVariable("rain", "f4", tuple(axes), zlib=True)
        rain.setncatts({"units": "mm h-1", "standard_name": "lwe_precipitation_rate"})
        rain[:] = np.stack([np.roll(rate, shift, axis=1) for shift in range(FRAMES_A_FILE)])
    return path


def held(pid: int | None = None) -> tuple[float, int]:
    """MiB and open descriptors of a process, by default this one."""
    of = Path("/proc") / ("self" if pid is None else str(pid))
    pages = int((of / "statm").read_text().split()[1])
    return pages * 4096 / 2**20, len(list((of / "fd").iterdir()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    files = -(-options.frames // FRAMES_A_FILE)
    rows, began = [], time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as name,
        ReaderProcess() as reader,
        Downscaler.open(BUNDLE, "ort-cpu") as downscaler,
    ):
        path, target = input_file(Path(name)), Path(name) / "out.nc"
        for index in range(files):
            settings = Settings(seed=index, steps=options.steps)
            coarse = job.load(path, settings, downscaler.manifest, reader)
            facts = job.provenance(downscaler, path, "benches/soak.py")
            job.run(downscaler, coarse, target, settings, facts, overwrite=index > 0)
            rows.append((*held(), *held(reader.pid)))
            if (index + 1) % max(files // 10, 1) == 0:
                mib, descriptors, reader_mib, reader_descriptors = rows[-1]
                print(
                    f"{FRAMES_A_FILE * (index + 1):6} frames: {mib:6.1f} MiB, {descriptors} "
                    f"descriptors; reader {reader_mib:6.1f} MiB, {reader_descriptors}",
                    flush=True,
                )
    return verdict(np.array(rows), time.perf_counter() - began)


def verdict(rows: np.ndarray, seconds: float) -> int:
    """Prints slopes and lost descriptors; the exit code."""
    kept = rows[int(WARM_UP * len(rows)) :]
    files = np.arange(len(kept)) * FRAMES_A_FILE / 100
    slopes = [float(np.polyfit(files, kept[:, column], 1)[0]) for column in (0, 2)]
    lost = [int(kept[-1, column] - kept[0, column]) for column in (1, 3)]
    print(
        f"{FRAMES_A_FILE * len(rows)} frames in {seconds:.0f} s: {slopes[0]:+.3f} MiB per 100 "
        f"frames (reader {slopes[1]:+.3f}; limit {MOST_MIB_PER_100:g}), {lost[0]} descriptors lost "
        f"(reader {lost[1]})"
    )
    return int(max(slopes) >= MOST_MIB_PER_100 or any(lost))


if __name__ == "__main__":
    sys.exit(main())
