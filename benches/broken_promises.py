"""Does the test of each promise fail once the promise is broken?

Copies the runtime and its tests, takes one check out of the copy at a time and runs the test that
holds what it promises: it has to pass on the copy as it is, and to fail on the broken one.

    python benches/broken_promises.py

Exit code 1: a test stayed green, or does not run here. Needs the extra 'dev'.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("wdm_runtime", "tests", "pyproject.toml")
SHOWN = ("models",)  # only read
PASSED = re.compile(r"\b(\d+) passed\b")
FAILED = 1  # pytest's exit code for tests that ran and failed; others are of tests that did not run


@dataclass(frozen=True)
class Promise:
    """What is promised, the source that keeps it, the same without it, and the test."""

    text: str
    file: str
    kept: str
    broken: str
    test: str


PROMISES = (
    Promise(
        "every file of a bundle is hashed before a parser sees it",
        "wdm_runtime/bundle.py",
        "if sha256(data) != entry.sha256:",
        "if False:",
        "tests/runtime/test_bundle.py::test_altered_truncated_and_missing_files_are_refused",
    ),
    Promise(
        "no name leaves a bundle's folder",
        "wdm_runtime/manifest.py",
        "if not _FILE_NAME.fullmatch(name) or _DEVICES.fullmatch(name):",
        "if _DEVICES.fullmatch(name):",
        "tests/runtime/test_bundle.py::test_no_file_outside_the_folder",
    ),
    Promise(
        "graphs hold arithmetic of the standard domain only",
        "wdm_runtime/onnx_gate.py",
        "if domain or op not in ALLOWED_OPS:",
        "if False:",
        "tests/runtime/test_onnx_gate.py::test_a_graph_with_more_than_arithmetic_is_refused",
    ),
    Promise(
        "a bundle runs only if it is signed, where that is asked for",
        "wdm_runtime/bundle.py",
        "if key is not None:\n            check_signature(raw, path, key)",
        "if False:\n            check_signature(raw, path, key)",
        "tests/runtime/test_signing.py::test_commands_refuse_what_is_not_signed",
    ),
    Promise(
        "plans come only from a folder that nobody else may write to",
        "wdm_runtime/engines/plan_cache.py",
        "self._check_private(path.parent)",
        "pass",
        "tests/runtime/test_plan_cache.py::test_a_folder_others_may_write_to_is_refused",
    ),
    Promise(
        "a file that crashes its library crashes no program",
        "wdm_runtime/io/reader.py",
        "request = Request(str(Path(path)), _folder(), variable, accumulation_h)\n",
        "from wdm_runtime.io.formats import read_file\n"
        "        return read_file(Path(path), variable, accumulation_h)\n"
        "        request = Request(str(Path(path)), _folder(), variable, accumulation_h)\n",
        "tests/runtime/test_bad_files.py::test_a_typed_error_says_what_where_and_what_to_do"
        "[JPEG 2000 that crashes its library]",
    ),
    Promise(
        "after a crash the next file is read by a new process",
        "wdm_runtime/io/reader.py",
        "child, self._child, self._worn = self._child, None, False",
        "child = self._child",
        "tests/runtime/test_reader_process.py::test_a_crash_is_an_error_and_the_next_read_works",
    ),
    Promise(
        "what a reading process says is believed in nothing",
        "wdm_runtime/io/reader.py",
        "if (rate < 0).any() or np.isinf(rate).any():",
        "if False:",
        "tests/runtime/test_wire.py::"
        "test_a_reading_process_that_lies_is_ended_and_nothing_of_it_used",
    ),
    Promise(
        "what is declared beyond memory is not allocated",
        "wdm_runtime/io/dataset.py",
        "if needed_bytes > memory_bytes():",
        "if False:",
        "tests/runtime/test_bad_files.py::test_a_typed_error_says_what_where_and_what_to_do[huge]",
    ),
    Promise(
        "what unpacks beyond memory is refused while it does",
        "wdm_runtime/io/grib2.py",
        "while len(content) <= most_bytes and (chunk := file.read(_CHUNK_BYTES)):",
        "while chunk := file.read(_CHUNK_BYTES):",
        "tests/runtime/test_grib2_damaged.py::test_what_inflates_without_end_is_refused_while_it_does",
    ),
    Promise(
        "an output has its name when it is whole, or not at all",
        "wdm_runtime/io/atomic.py",
        "return self._folder / self.path.name",
        "return self.path",
        "tests/runtime/test_output_faults.py::test_quotas_and_lost_folders",
    ),
    Promise(
        "of two runs of one output the second is told",
        "wdm_runtime/io/atomic.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/runtime/test_output_faults.py::test_two_runs_of_one_output",
    ),
    Promise(
        "rates that are not finite are found",
        "wdm_runtime/suspect.py",
        "count = abs(unknown_cells(rate_mm_h) - missing) + infinite",
        "count = infinite",
        "tests/runtime/test_suspect.py::test_rates_that_are_no_numbers",
    ),
    Promise(
        "an engine that computes something else is not used",
        "wdm_runtime/golden.py",
        "if not difference <= tolerance:",
        "if False:",
        "tests/runtime/test_golden_check.py::test_another_network_is_refused",
    ),
)


def copy_tree(folder: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    for name in SHOWN:
        (folder / name).symlink_to(ROOT / name)
    found = python(folder, "-c", "import wdm_runtime; print(wdm_runtime.__file__)").stdout
    if not found.startswith(str(folder)):
        raise SystemExit(f"Tests would import {found.strip()}; expected the copy in {folder}.")


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python on the copy; no bytecode, which a change within a second would not make stale."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@contextmanager
def broken(folder: Path, promise: Promise) -> Iterator[None]:
    """The copy without what keeps the promise."""
    path = folder / promise.file
    source = path.read_text(encoding="utf-8")
    if promise.kept not in source:
        raise SystemExit(f"{promise.file} has no {promise.kept!r} any more: correct this script.")
    path.write_text(source.replace(promise.kept, promise.broken), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(source, encoding="utf-8")


def outcome(folder: Path, test: str) -> str:
    """passed, failed (a crash counts), or why it is neither."""
    options = ["-p", "no:cacheprovider", "-o", "addopts=", "-x", "--tb=no"]
    done = python(folder, "-m", "pytest", *options, test)
    if done.returncode == FAILED or done.returncode < 0:
        return "failed"
    if done.returncode == 0 and PASSED.search(done.stdout):
        return "passed"
    return f"did not run: {(done.stdout + done.stderr).strip().splitlines()[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="promises with this text in them")
    chosen = [p for p in PROMISES if parser.parse_args().only in p.text]
    table = Table("promise", "test", "intact", "broken")
    good = bool(chosen)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy_tree(folder)
        for promise in chosen:
            intact = outcome(folder, promise.test)
            with broken(folder, promise):
                without = outcome(folder, promise.test)
            good &= (intact, without) == ("passed", "failed")
            table.add_row(promise.text, promise.test.rpartition("::")[2], intact, without)
    Console(width=150).print(table)
    sys.exit(not good)


if __name__ == "__main__":
    main()
