"""`import wdm_runtime` needs NumPy alone, and the public names come without more."""

import subprocess
import sys

HEAVY = [
    "torch",
    "onnx",
    "onnxruntime",
    "netCDF4",
    "xarray",
    "typer",
    "rich",
    "eccodes",
    "matplotlib",
    "scipy",
]


def loaded_after(statement):
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_import_is_lean():
    modules = loaded_after("import wdm_runtime")
    assert "wdm_runtime" in modules
    assert not modules & set(HEAVY)


def test_the_library_names_are_lean_too():
    statement = "from wdm_runtime import Bundle, Downscaler, Grid, PrecipField, WdmError"
    assert not loaded_after(statement) & set(HEAVY)


def test_import_works_with_everything_else_blocked():
    block = f"sys.modules.update(dict.fromkeys({HEAVY!r}))"
    assert "wdm_runtime.downscale" in loaded_after(f"{block}; from wdm_runtime import Downscaler")
