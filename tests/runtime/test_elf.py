"""Which libraries a shared library needs, read from the file."""

import shutil
import subprocess
import sys

import pytest

from wdm_runtime.elf import needed_libraries
from wdm_runtime.errors import EngineError


@pytest.fixture
def library(tmp_path):
    compiler = shutil.which("cc")
    if not compiler or sys.platform != "linux":
        pytest.skip("no C compiler for ELF files")
    for name, options in (("libneeded.so.13", ()), ("libuser.so", ("-L.", "-l:libneeded.so.13"))):
        options = ("-Wl,--no-as-needed", *options, "-Wl,-soname=" + name)
        source = tmp_path / "code.c"
        source.write_text(f"int {name[3]}() {{ return 0; }}\n")
        command = [compiler, "-shared", "-fPIC", str(source), *options, "-o", name]
        subprocess.run(command, check=True, cwd=tmp_path)
    return tmp_path / "libuser.so"


def test_what_the_linker_was_told_is_found(library):
    assert "libneeded.so.13" in needed_libraries(library)


def test_a_library_cut_short_is_refused_wherever_it_ends(library):
    whole = library.read_bytes()
    for share in (0, 3, 40, 60, len(whole) // 2, len(whole) - 1):
        library.write_bytes(whole[:share])
        with pytest.raises(EngineError, match=r"cannot be read as a shared library.*Install"):
            needed_libraries(library)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "notes.so"
    path.write_text("no library " * 20)
    with pytest.raises(EngineError, match="expected a 64-bit little-endian ELF"):
        needed_libraries(path)
