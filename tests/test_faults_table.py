"""docs/faults.md names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = (ROOT / "docs" / "faults.md").read_text()


def test_every_fault_has_its_test():
    rows = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]
    named = [re.search(r"`(tests/[\w/]+\.py)::(test_\w+)` \|$", row) for row in rows]
    assert len(rows) > 20 and all(named), [r for r, n in zip(rows, named, strict=True) if not n]
    for file, test in (match.groups() for match in named):
        tree = ast.parse((ROOT / file).read_text())
        functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        assert test in functions, f"{file} has no {test}"
