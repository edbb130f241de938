"""benches/broken_promises.py still fits the source it breaks, and tells a test that stays green."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location(
    "broken_promises", ROOT / "benches" / "broken_promises.py"
)
bench = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = bench  # dataclasses look themselves up there
SPEC.loader.exec_module(bench)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree").resolve()
    bench.copy_tree(folder)
    return folder


@pytest.mark.parametrize("promise", bench.PROMISES, ids=lambda promise: promise.text)
def test_every_promise_can_be_broken(promise, tree):
    path = tree / promise.file
    before = path.read_text()
    with bench.broken(tree, promise):
        compile(path.read_text(), path, "exec")
        assert path.read_text() != before
    assert path.read_text() == before
    file, _, test = promise.test.partition("::")
    assert f"def {test.partition('[')[0]}(" in (tree / file).read_text()


def test_source_that_has_moved_on_is_an_error(tree):
    stale = replace(bench.PROMISES[0], kept="if nothing_like_this:")
    with pytest.raises(SystemExit, match="correct this script"), bench.broken(tree, stale):
        pass


def test_passing_failing_and_not_running_are_told_apart(tree):
    promise = next(p for p in bench.PROMISES if p.test.endswith("test_rates_that_are_no_numbers"))
    assert bench.outcome(tree, promise.test) == "passed"
    with bench.broken(tree, promise):
        assert bench.outcome(tree, promise.test) == "failed"
    with bench.broken(tree, replace(promise, broken=promise.kept)):  # a check nobody would miss
        assert bench.outcome(tree, promise.test) == "passed"
    assert bench.outcome(tree, f"{promise.test}_be").startswith("did not run")
