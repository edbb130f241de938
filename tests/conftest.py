"""Bundles, fields and inputs that many tests share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wdm_runtime import cli
from wdm_runtime.bundle import Bundle, sha256
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import Grid
from wdm_runtime.io import child
from wdm_runtime.manifest import MANIFEST_NAME

with suppress(ImportError):  # before any test imports ecCodes: see `load_eccodes`
    import pyproj  # noqa: F401

MODELS = Path(__file__).resolve().parent.parent / "models"
SAMPLE = MODELS / "sample" / "mrms_10km.nc"
TRUTH = MODELS / "sample" / "mrms_1km_truth.nc"


@pytest.fixture(autouse=True, scope="session")
def measured_children():
    """Under coverage, processes that read may end by themselves: killed ones write nothing down."""
    if "COVERAGE_PROCESS_CONFIG" not in os.environ:
        yield
        return
    kill = child._end

    def end(process, owner):
        if os.getpid() == owner:
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):  # it hangs, or was stopped
                process.wait(1)
        kill(process, owner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "_end", end)
        yield


@pytest.fixture
def tiny() -> Path:
    """The small bundle in the repository: 64-cell tiles."""
    return MODELS / "tiny"


@pytest.fixture
def tiny_copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(tiny, tmp_path / "bundle"))


@pytest.fixture
def field() -> PrecipField:
    """Two frames of 13 x 17 coarse cells with rain, dry ground and nothing missing."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.4, 6.0, (2, 13, 17)).astype(np.float32)
    rate[rate < 0.5] = 0
    grid = Grid(
        40.05 - 0.1 * np.arange(13),
        -99.95 + 0.1 * np.arange(17),
        attributes=({"units": "degrees_north"}, {"units": "degrees_east"}),
    )
    return PrecipField(rate, grid, ("2022-08-09T15:00:00", "2022-08-09T15:02:00"))


@pytest.fixture
def run(monkeypatch, tmp_path, tmp_path_factory, capsys):
    """Call wdm-run in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["wdm-run", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def infer(run, tiny):
    """`wdm-run infer` on the sample with the tiny bundle and three steps."""

    def call(*arguments, source=SAMPLE):
        options = () if "--bundle" in arguments else ("--bundle", tiny)
        return run("infer", source, "--steps", 3, *options, *arguments)

    return call


def feeds(tiles: int = 1, seed: int = 0, size: float = 1.0) -> dict[str, np.ndarray]:
    """Inputs of the tiny bundle's score graph: Gaussian, times ``size``."""
    rng = np.random.default_rng(seed)
    x, condition = size * rng.standard_normal((2, tiles, 16, 16, 16), dtype=np.float32)
    return {"x": x, "condition": condition, "t": np.array([0.4], dtype=np.float32)}


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mknod, (str(self.path),)


def edit_manifest(bundle: Path, **changes: object) -> None:
    """Change top-level keys of a manifest; ``None`` removes a key."""
    path = bundle / MANIFEST_NAME
    values = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            values.pop(key)
        else:
            values[key] = value
    path.write_text(json.dumps(values))


def rewrite_graph(bundle: Path, role: str, data: bytes) -> None:
    """Replace a graph's file and make the manifest agree with its hash."""
    opened = Bundle.open(bundle)
    entry = opened.manifest.graphs[role]
    (bundle / entry.file).write_bytes(data)
    entry = replace(entry, sha256=sha256(data), bytes=len(data))
    manifest = replace(opened.manifest, graphs={**opened.manifest.graphs, role: entry})
    (bundle / MANIFEST_NAME).write_text(manifest.to_json())
