"""A few seconds of what `benches/fuzz_inputs.py` does for many minutes."""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parent.parent.parent / "benches" / "fuzz_inputs.py"
NEEDS = {"GRIB2": "eccodes", "ODIM_H5": "h5py"}
FORMATS = [
    *("NetCDF-3", "NetCDF-3 64-bit", "NetCDF-4", "NetCDF-4 zlib"),
    *("GRIB2 simple", "GRIB2 png", "GRIB2 jpeg", "GRIB2 ccsds", "ODIM_H5"),
]
INPUTS = 150


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("fuzz_inputs", BENCH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_give_fields_or_typed_errors(name, bench, tmp_path):
    pytest.importorskip("pyproj")
    if name.partition(" ")[0] in NEEDS:
        pytest.importorskip(NEEDS[name.partition(" ")[0]])
    tally = bench.fuzz(name, INPUTS, 1, tmp_path, time.monotonic() + 300)
    assert tally.inputs == INPUTS == tally.fields + sum(tally.errors.values())
    assert tally.fields and tally.errors, "damage is neither always found nor never"
    assert not tally.failed, tally.found


def test_every_format_is_fuzzed_here_too(bench):
    assert list(bench.FORMATS) == FORMATS


def test_damage_is_damage_and_the_same_again(bench):
    content = bytes(range(256)) * 8
    first, again = (bench.damaged(content, np.random.default_rng(3)) for _ in range(2))
    assert first == again
    rng = np.random.default_rng(0)
    assert sum(bench.damaged(content, rng) != content for _ in range(200)) > 190
