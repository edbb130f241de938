"""docs/licences.md says what the metadata of the installed packages says."""

import json
import re
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest

packaging = pytest.importorskip("packaging.requirements", reason="comes with pytest")
tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TABLES = (ROOT / "docs" / "licences.md").read_text()
# What a text of whatever form says; two texts that name the same kinds agree.
KINDS = {
    "MIT": r"\bMIT\b|\bMIT-",
    "BSD": r"BSD",
    "Apache": r"Apache",
    "PSF": r"\bPSF\b|Python Software Foundation",
    "ISC": r"\bISC",
    "Zlib": r"Zlib",
    "CC0": r"CC0",
    "BSL": r"\bBSL\b",
    "MPL": r"\bMPL\b|Mozilla Public",
    "GPL": r"GPL|General Public License",
    "restricted": r"[Rr]estricted",
    "proprietary": r"[Pp]roprietary",
}
FREE = {"MIT", "BSD", "Apache", "PSF", "ISC", "Zlib", "CC0", "BSL"}
SILENT = {"eccodeslib", "eckitlib"}  # their metadata names no licence


def kinds(text):
    return {kind for kind, pattern in KINDS.items() if re.search(pattern, text)}


def rows(heading):
    """The cells of the table below a heading, without its two first rows."""
    part = TABLES.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def required(distribution, extra=""):
    """What a distribution requires on this machine, for an extra or without any."""
    for text in metadata.requires(distribution) or []:
        requirement = packaging.Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def stated(distribution):
    """The licence in a distribution's metadata: an expression, classifiers or a short text."""
    facts = metadata.metadata(distribution)
    classifiers = [c for c in facts.get_all("Classifier") or [] if c.startswith("License ::")]
    free_text = (facts.get("License") or "").partition("\n")[0]
    return facts.get("License-Expression") or "; ".join(classifiers) or free_text


def installed(name):
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def declared():
    """Package -> extras of pyproject.toml, whatever is installed."""
    groups = {"none": PROJECT["dependencies"]}
    groups |= {f"`{extra}`": texts for extra, texts in PROJECT["optional-dependencies"].items()}
    found = {}
    for extra, texts in groups.items():
        for text in texts:
            found.setdefault(plain(packaging.Requirement(text).name), set()).add(extra)
    return found


def brought_along():
    """All that is installed and required by what wdm-edge requires, but for the extra `dev`."""
    wanted = [(name, "") for name, extras in declared().items() if extras != {"`dev`"}]
    seen = set()
    while wanted:
        name, extra = wanted.pop()
        if (name, extra) in seen or not installed(name):
            continue
        seen.add((name, extra))
        for requirement in required(name, extra):
            wanted += [(plain(requirement.name), e) for e in ("", *requirement.extras)]
    return {name for name, _ in seen} - declared().keys()


def test_every_requirement_has_its_row_and_no_other():
    listed = {package: set(extras.split(", ")) for extras, package, _ in rows("Required")}
    assert listed == declared()


def test_the_licences_are_those_of_the_metadata():
    compared = 0
    for _, package, licence in rows("Required"):
        assert kinds(licence), f"{package}: '{licence}' is no licence that this test knows"
        if not installed(package):
            continue
        compared += 1
        text = stated(package)
        if package == "pytorch-wavelets":  # its classifier is of the part that is not used
            assert "restricted" in kinds(text) <= kinds(licence)
            continue
        assert kinds(text) == kinds(licence), f"{package}: '{licence}', its metadata: '{text}'"
    assert compared >= 4  # NumPy, netCDF4, typer and rich are everywhere


def test_what_comes_along_is_free_or_named():
    named = {package: licence for package, _, licence in rows("What these require in turn")}
    found = brought_along()
    assert "cftime" in found
    for package in sorted(found - SILENT):
        text = stated(package)
        row = next((named[pattern] for pattern in named if fnmatch(package, pattern)), None)
        if row is not None:
            assert kinds(text) == kinds(row), f"{package}: '{row}', its metadata: '{text}'"
        else:
            free = kinds(text) and kinds(text) <= FREE
            assert free, f"{package}: its licence is '{text}'; give it a row in docs/licences.md"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Apache-2.0 OR BSD-3-Clause", {"Apache", "BSD"}),
        ("License :: OSI Approved :: MIT License", {"MIT"}),
        ("License :: OSI Approved :: GNU Lesser General Public License v3", {"GPL"}),
        ("LGPL-2.1-or-later", {"GPL"}),
        ("permitted to all", set()),
    ],
)
def test_texts_are_told_apart(text, found):
    assert kinds(text) == found


def test_the_project_itself():
    assert kinds(PROJECT["license"]) == {"Apache"}
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    for manifest in (ROOT / "models").glob("*/manifest.json"):
        assert json.loads(manifest.read_text())["licence"] == PROJECT["license"], manifest
