"""Wheel, sdist and editable installs all find the shipped bundle."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = "wdm2-mrms"
WHEEL_LIMIT_BYTES = 60e6
# No site-packages but the folder under test; NumPy's comes last, whatever else lies in it.
FIND = """
import site, sys
site.addsitedir(sys.argv[1])
sys.path.append(sys.argv[2])
from wdm_runtime import Bundle
bundle = Bundle.open()
bundle.verify()
print(bundle.path)
"""

pytest.importorskip("build", reason="needs the extra 'dev'")
pytest.importorskip("hatchling", reason="needs the extra 'dev'")


def python(*arguments, **options):
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


def find_bundle(site):
    packages = Path(np.__file__).parent.parent
    return Path(python("-I", "-S", "-c", FIND, site, packages))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel built from it: (sdist, wheel)."""
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "-o", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_wheel_holds_the_bundle_and_stays_small(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert f"wdm_runtime/models/{BUNDLE}/manifest.json" in names
    assert {"wdm_runtime/py.typed", "wdm_export/py.typed"} <= set(names)
    assert not [n for n in names if n.startswith(("tests/", "benches/", "models/"))]
    assert wheel.stat().st_size < WHEEL_LIMIT_BYTES


def test_sdist_holds_tests_and_models(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"models/{BUNDLE}/manifest.json", "models/tiny/manifest.json"} <= names
    assert {"LICENSE", "README.md", "tests/conftest.py", "models/sample/mrms_10km.nc"} <= names


def test_the_same_sources_give_the_same_bytes(tmp_path):
    """Whoever doubts a wheel builds it again and compares."""
    code = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"
    wheels = []
    for name in ("first", "second"):
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1600000000"}
        file = python("-c", code, tmp_path / name, cwd=ROOT, env=environment).splitlines()[-1]
        wheels.append((tmp_path / name / file).read_bytes())
    assert wheels[0] == wheels[1]
    with zipfile.ZipFile(tmp_path / "first" / file) as archive:
        assert {info.date_time[0] for info in archive.infolist()} == {2020}


def test_an_installed_wheel_finds_it(built, tmp_path):
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(tmp_path)
    assert find_bundle(tmp_path) == tmp_path / "wdm_runtime" / "models" / BUNDLE


def test_an_editable_install_finds_it(tmp_path):
    code = "import sys, hatchling.build as b; print(b.build_editable(sys.argv[1]))"
    name = python("-c", code, tmp_path, cwd=ROOT).splitlines()[-1]
    with zipfile.ZipFile(tmp_path / name) as archive:
        archive.extractall(tmp_path / "site")
    assert find_bundle(tmp_path / "site").name == BUNDLE
