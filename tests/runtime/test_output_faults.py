"""Faults on the way out of real runs: full disks, quotas, lost folders, signals, kills."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import netCDF4
import pytest
from conftest import SAMPLE
from output_files import rate_field, write_output

RUN = [sys.executable, "-c", "from wdm_runtime.cli import main; main()"]
ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".nc", ".zarr", ".grib2")
WRITE = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from output_files import rate_field, write_output
from wdm_runtime.errors import OutputError
try:
    write_output(Path(sys.argv[1]), rate_field(), overwrite=True)
except OutputError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def command(tiny: Path, output: Path, *more: str) -> list[str]:
    options = ["--bundle", str(tiny), "--steps", "3", "--no-pixel-probe", "--overwrite"]
    return [*RUN, "infer", str(SAMPLE), "-o", str(output), *options, *more]


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(folder), **more}


def write_in_a_process(path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WRITE, str(path), str(Path(__file__).parent)],
        cwd=ROOT,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        timeout=120,
    )


def needs(suffix: str) -> None:
    pytest.importorskip({".nc": "netCDF4", ".zarr": "zarr", ".grib2": "eccodes"}[suffix])


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk(mounted: Path, suffix: str, existing: bool) -> None:
    needs(suffix)
    path = mounted / f"out{suffix}"
    (mounted / "filler").write_bytes(bytes(60 << 10))
    if existing:
        path.mkdir() if suffix == ".zarr" else path.touch()
        (path / ".zgroup").touch() if suffix == ".zarr" else None
    before = sorted(mounted.rglob("*"))
    result = write_in_a_process(path)
    assert result.returncode == 2 and "cannot be written" in result.stdout, result.stderr
    assert sorted(mounted.rglob("*")) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_read_only_disk(mounted: Path, suffix: str) -> None:
    needs(suffix)
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    result = write_in_a_process(mounted / f"out{suffix}")
    assert result.returncode == 2 and "is not writable" in result.stdout, result.stderr


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_limit_on_the_size_of_files(tmp_path: Path, suffix: str) -> None:
    needs(suffix)
    limit = 2 << 10
    result = subprocess.run(
        [sys.executable, "-c", WRITE, str(tmp_path / f"out{suffix}"), str(Path(__file__).parent)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 2 and "cannot be written" in result.stdout, result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes writes fail below every other library."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("shim") / "failing_writes.so"
    source = Path(__file__).with_name("failing_writes.c")
    build = ["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(build, check=True)
    return library


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ESTALE, errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("after", [0, 1500])
def test_quotas_and_lost_folders(
    tmp_path: Path, shim: Path, suffix: str, number: int, after: int
) -> None:
    needs(suffix)
    path = write_output(tmp_path / f"out{suffix}", rate_field(variable="old"))
    before = everything(tmp_path)
    result = write_in_a_process(
        path,
        LD_PRELOAD=str(shim),
        FAIL_PATH=".writing.tmp/",
        FAIL_ERRNO=str(number),
        FAIL_AFTER=str(after),
    )
    assert result.returncode == 2 and "cannot be written" in result.stdout, result.stderr
    assert everything(tmp_path) == before


def everything(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_ends_soon_and_leaves_nothing(
    tmp_path: Path, tiny: Path, number: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = command(tiny, out / "out.nc", "--members", "500", "--stats", "also")
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        # Shells have background jobs ignore SIGINT, perhaps these tests, and it is inherited.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    with process:
        wait_for(lambda: list(out.iterdir()), process)
        time.sleep(1.0)
        process.send_signal(number)
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 5, errors
    assert process.returncode not in (0, None) and "Traceback" not in errors
    assert list(out.iterdir()) == []


def test_two_runs_of_one_output(tmp_path: Path, tiny: Path) -> None:
    """The first wins, the second is told at once."""
    out = tmp_path / "out"
    out.mkdir()
    slow = command(tiny, out / "out.nc", "--members", "20")
    first = subprocess.Popen(slow, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.DEVNULL)
    with first:
        wait_for(lambda: list(out.iterdir()), first)
        second = subprocess.run(
            command(tiny, out / "out.nc"),
            cwd=ROOT,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert first.poll() is None, "the first was too fast to be in the way"
        assert second.returncode == 2 and "by another process" in second.stderr
        assert first.wait(120) == 0
    assert [path.name for path in out.iterdir()] == ["out.nc"]
    with netCDF4.Dataset(out / "out.nc") as dataset:
        assert len(dataset.dimensions["realization"]) == 20


def test_a_killed_run_leaves_the_old_output_or_the_new_one(tmp_path: Path, tiny: Path) -> None:
    """A few of what `benches/kill.py` does hundreds of times."""
    out, draw = tmp_path / "out", random.Random(0)
    out.mkdir()
    arguments, env = command(tiny, out / "out.nc"), environment(tmp_path)
    began = time.monotonic()
    subprocess.run([*arguments, "--seed", "1", "-q"], cwd=ROOT, env=env, check=True, timeout=120)
    lasts = time.monotonic() - began
    for number in range(10):
        process = subprocess.Popen([*arguments, "--seed", str(number + 2), "-q"], cwd=ROOT, env=env)
        with process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0.2, 1.1) * lasts)
            process.kill()
        with netCDF4.Dataset(out / "out.nc") as dataset:
            assert dataset.wdm_seed in range(1, number + 3)
            assert not dataset["precipitation_rate"][:].mask.all()
        assert {p.name for p in out.iterdir()} <= {"out.nc", ".out.nc.writing.tmp"}
    subprocess.run([*arguments, "-q"], cwd=ROOT, env=env, check=True, timeout=120)
    assert [p.name for p in out.iterdir()] == ["out.nc"]


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    assert callable(condition)
    for _ in range(600):
        if condition():
            return
        assert process.poll() is None, "ended before it began to write"
        time.sleep(0.05)
    raise AssertionError("did not begin to write")
