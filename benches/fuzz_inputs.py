"""What do the readers make of damaged files? Nothing but typed errors, in time and in memory.

Small real files, cut from the sample, are written in every format and packing, and then damaged:
bytes and bits changed, ranges copied, zeroed, dropped or repeated, numbers set to extremes. Each
goes through one `ReaderProcess`, frames included. A crash of the worker counts as the `InputError`
it becomes and is reported of its own; so is an error that the readers did not foresee. The slowest
input is told in seconds of computing; one that gets nowhere for ten seconds of the clock is a hang.
HDF5 wears out a worker with nearly each damaged file. So the workers are forks of this program,
with the libraries loaded, unless ``--fresh`` starts each as `ReaderProcess` does.

    python benches/fuzz_inputs.py --inputs 20000
    python benches/fuzz_inputs.py --only "GRIB2 jpeg" --inputs 500 --keep found --fresh

Exit code 1: an error that is not typed or not foreseen, a hang, or memory beyond the limit.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from wdm_runtime.errors import WdmError
from wdm_runtime.io import child, worker
from wdm_runtime.io.reader import ReaderFault, ReaderProcess

SAMPLE = Path(__file__).resolve().parent.parent / "models/sample/mrms_10km.nc"
ROWS, COLUMNS = slice(20, 32), slice(30, 44)
MAX_BYTES = 512 << 20
HANG_S = 10.0
CRASH, SILENT, UNFORESEEN = "worker crashes", "worker hangs", "unforeseen errors"
EXTREMES = (b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff")


def cut() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates (y, x) [mm h-1], latitudes and longitudes of a rainy part of the sample."""
    import netCDF4

    with netCDF4.Dataset(SAMPLE) as data:
        rate = np.ma.filled(data["precipitation_rate"][0, ROWS, COLUMNS], 0.0)
        return rate.astype(np.float64), data["lat"][ROWS].data, data["lon"][COLUMNS].data


def netcdf(form: Any, **storage: Any) -> Callable[[Path], None]:
    """Writes the part as NetCDF: two times."""

    def write(path: Path) -> None:
        import netCDF4

        rate, lat, lon = cut()
        with netCDF4.Dataset(path, "w", format=form) as data:
            for name, units, values in (
                ("time", "hours since 2022-08-09 15:00:00", np.arange(2.0)),
                ("lat", "degrees_north", lat),
                ("lon", "degrees_east", lon),
            ):
                data.createDimension(name, len(values))
                axis = data.createVariable(name, "f8", (name,))
                axis.units = units
                axis[:] = values
            rain = data.createVariable("rain", "f4", ("time", "lat", "lon"), **storage)
            rain.setncatts({"units": "mm h-1", "standard_name": "lwe_precipitation_rate"})
            rain[:] = np.stack([rate, rate[::-1]])

    return write


def grib2(packing: str) -> Callable[[Path], None]:
    """Writes the part as a message of MRMS's PrecipRate."""

    def write(path: Path) -> None:
        from wdm_runtime.io.grib_header import load_eccodes

        eccodes = load_eccodes("Fuzzing GRIB2")
        rate, lat, lon = cut()
        handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
        for key, value in {
            "discipline": 209, "parameterCategory": 6, "parameterNumber": 1,
            "Ni": lon.size, "Nj": lat.size, "dataDate": 20220809,
            "latitudeOfFirstGridPointInDegrees": float(lat[0]),
            "latitudeOfLastGridPointInDegrees": float(lat[-1]),
            "longitudeOfFirstGridPointInDegrees": float(lon[0]) % 360,
            "longitudeOfLastGridPointInDegrees": float(lon[-1]) % 360,
            "iDirectionIncrementInDegrees": 0.1, "jDirectionIncrementInDegrees": 0.1,
            "jScansPositively": int(lat[0] < lat[-1]),
            "packingType": packing, "bitsPerValue": 16,
        }.items():  # fmt: skip
            eccodes.codes_set(handle, key, value)
        eccodes.codes_set_values(handle, np.round(rate, 1).ravel())
        path.write_bytes(eccodes.codes_get_message(handle))
        eccodes.codes_release(handle)

    return write


def odim(path: Path) -> None:
    """Writes the part as an ODIM_H5 composite."""
    import h5py

    rate, lat, lon = cut()
    place = {
        "projdef": np.bytes_("+proj=longlat +datum=WGS84"),
        "xsize": lon.size, "ysize": lat.size, "xscale": 0.1, "yscale": 0.1,
        "LL_lon": float(lon.min()) - 0.05, "LL_lat": float(lat.min()) - 0.05,
    }  # fmt: skip
    what = {"object": "COMP", "date": "20220809", "time": "150000", "quantity": "RATE"}
    scaling = {"gain": 0.5, "offset": 0.0, "nodata": 255.0, "undetect": 0.0}
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_4")
        for group, attributes in (
            ("what", {name: np.bytes_(text) for name, text in what.items()}),
            ("where", place),
            ("dataset1/data1/what", scaling),
        ):
            file.create_group(group).attrs.update(attributes)
        stored = np.minimum(rate / 0.5, 254).astype(np.uint8)
        file["dataset1/data1"].create_dataset("data", data=stored, compression=6)


FORMATS: dict[str, Callable[[Path], None]] = {
    "NetCDF-3": netcdf("NETCDF3_CLASSIC"),
    "NetCDF-3 64-bit": netcdf("NETCDF3_64BIT_DATA"),
    "NetCDF-4": netcdf("NETCDF4"),
    "NetCDF-4 zlib": netcdf("NETCDF4", zlib=True, shuffle=True, fletcher32=True),
    "GRIB2 simple": grib2("grid_simple"),
    "GRIB2 png": grib2("grid_png"),
    "GRIB2 jpeg": grib2("grid_jpeg"),
    "GRIB2 ccsds": grib2("grid_ccsds"),
    "ODIM_H5": odim,
}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four kinds of damage, more of it in the file's head, where its structure is."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        size = len(data)
        reach = size if rng.random() < 0.5 else min(size, 600)
        at = int(rng.integers(reach))
        length = int(min(size - at, 2 ** rng.integers(0, 7)))
        kind = rng.integers(7)
        if kind == 0:
            data[at] = int(rng.integers(256))
        elif kind == 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:  # numbers of 1 to 8 bytes in both orders
            wide = int(2 ** rng.integers(0, 4))
            data[at : at + wide] = EXTREMES[rng.integers(len(EXTREMES))] * wide
            del data[size:]
        elif kind == 3:
            data[at : at + length] = rng.bytes(length)
        elif kind == 4:
            source = int(rng.integers(size - length + 1))
            data[at : at + length] = data[source : source + length]
        elif kind == 5:
            del data[at : at + length]
        elif rng.random() < 0.3:
            del data[at:]
        else:
            data[at:at] = data[at : at + length]
        if not data:
            return b"\x00"
    return bytes(data)


@dataclass
class Tally:
    """What became of the inputs of one format."""

    inputs: int = 0
    fields: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    peak_bytes: int = 0
    found: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        """As a row of the table."""
        told = ", ".join(f"{count} {kind}" for kind, count in self.errors.most_common()) or "none"
        peak = self.peak_bytes / 2**20
        return (
            f"{name:16} {self.inputs:7} {self.fields:7} {self.slowest_s:8.2f} {peak:8.0f}   {told}"
        )

    @property
    def failed(self) -> bool:
        """Whether something happened that must not."""
        return bool(
            self.errors[UNFORESEEN]
            or self.errors[SILENT]
            or self.slowest_s > HANG_S
            or self.peak_bytes > MAX_BYTES + (256 << 20)
        )


class Fork:
    """What `child.Child` needs of a `subprocess.Popen`, of a fork of this process."""

    def __init__(self) -> None:
        requests, ours = os.pipe()
        theirs, replies = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                os.dup2(requests, 0)
                os.dup2(replies, 1)
                for pipe in (requests, ours, theirs, replies):
                    os.close(pipe)
                worker.main()
                code = 0
            except Exception:
                traceback.print_exc()  # nobody above would tell
            finally:
                os._exit(code)
        os.close(requests)
        os.close(replies)
        self.stdin, self.stdout = os.fdopen(ours, "wb", 0), os.fdopen(theirs, "rb", 0)
        self._code: int | None = None

    def kill(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (np.inf if timeout is None else timeout)
        while self._code is None:
            pid, status = os.waitpid(self.pid, 0 if timeout is None else os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                raise subprocess.TimeoutExpired("worker", timeout or 0.0)
            else:
                time.sleep(0.01)
        return self._code


def fork_workers() -> None:
    """Have every worker be a `Fork`; what the readers import is imported here, once."""
    for name in ("pyproj", "netCDF4", "h5py", "eccodes"):  # pyproj breaks after ecCodes
        with suppress(ImportError):
            importlib.import_module(name)
    child.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=lambda *_, **__: Fork(),
        PIPE=subprocess.PIPE,
        TimeoutExpired=subprocess.TimeoutExpired,
    )


def seconds_of(pid: int | None) -> float:
    """Time a process has computed for: unlike the clock's it does not count other programs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0  # it is gone
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def peak_of(pid: int | None) -> int:
    """The most memory a process has held."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass  # it is gone
    return 0


def kind_of(error: WdmError) -> str:
    """Under what an error is counted."""
    text, name = str(error), type(error).__name__
    if "reading it ended its process" in text:
        return CRASH
    if "reading it made no progress" in text:
        return SILENT
    if "report this fault of the program" in text:
        return UNFORESEEN
    return name if isinstance(error.__cause__, ReaderFault) else f"{name} here"


def fuzz(
    name: str, inputs: int, seed: int, folder: Path, until: float, keep: Path | None = None
) -> Tally:
    """Read damaged files of one format."""
    tally, rng = Tally(), np.random.default_rng([seed, *name.encode()])
    path = folder / "in"
    FORMATS[name](path)
    content = path.read_bytes()
    with ReaderProcess(max_bytes=MAX_BYTES, timeout_s=HANG_S) as reader:
        reader.read_field(path).load()  # the whole file is good
        while tally.inputs < inputs and time.monotonic() < until:
            data = damaged(content, rng)
            path.write_bytes(data)
            began_s, pid = seconds_of(reader.pid), reader.pid
            tally.inputs += 1
            try:
                reader.read_field(path).load()
                tally.fields += 1
            except WdmError as error:
                kind = kind_of(error)
                tally.errors[kind] += 1
                if kind in (CRASH, SILENT, UNFORESEEN):
                    tally.found.append(str(error).replace(str(path), name))
                    if keep:
                        place = f"{name}-{kind}-{tally.inputs}".replace(" ", "_")
                        (keep / place).write_bytes(data)
            tally.slowest_s = max(tally.slowest_s, seconds_of(pid) - began_s)
            if tally.inputs % 50 == 0:
                tally.peak_bytes = max(tally.peak_bytes, peak_of(pid))
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=20_000, help="of each format")
    parser.add_argument("--only", choices=FORMATS, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=np.inf, help="at most, for each format")
    parser.add_argument("--keep", type=Path, help="folder for what crashed, hung or was unforeseen")
    parser.add_argument("--fresh", action="store_true", help="no forks: start each worker anew")
    options = parser.parse_args()
    if not options.fresh:
        fork_workers()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    print(
        f"{'format':16} {'inputs':>7} {'fields':>7} {'slowest':>8} {'MiB':>8}   errors", flush=True
    )
    failed = False
    for name in options.only or FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            until = time.monotonic() + options.seconds
            tally = fuzz(name, options.inputs, options.seed, Path(folder), until, options.keep)
        print(tally.row(name), flush=True)
        for text, count in Counter(tally.found).most_common(5):
            print(f"    {count} x {text}", flush=True)
        failed |= tally.failed
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
