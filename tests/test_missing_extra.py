"""Without the extra `export`, `wdm-export` says what to install, and ends in no traceback."""

import subprocess
import sys

import pytest
from conftest import MODELS, TRUTH

EXTRA = {
    *("torch", "pytorch_wavelets", "pywt", "onnx", "onnxscript", "safetensors", "eccodes"),
    *("matplotlib", "skimage", "scipy"),
}
WITHOUT = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Nothing())
from wdm_export.cli import main
main()
"""
TINY = MODELS / "tiny"
WEIGHTS = MODELS / "tiny.safetensors"


def export_without(hidden, *arguments):
    """Call `wdm-export` where some modules are not installed: exit code and errors."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(hidden=hidden), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", TRUTH, "-o", "made"),
        ("train", "store", "-o", "made"),
        ("export", WEIGHTS, "-o", "made"),
        ("sign", TINY, "--key", "key.pem"),
        ("check", TINY),
        ("evaluate", TINY, TRUTH),
        ("identity", TINY, TRUTH),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_names_what_to_install(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, err = export_without(EXTRA, *arguments)
    assert code == 4 and "Traceback" not in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "pip install '.[export]' 'torch==2.13.0' in the clone" in err
    assert not list(tmp_path.iterdir())


def test_help_goes_without():
    assert export_without(EXTRA, "evaluate", "--help") == (0, "")


def test_a_module_of_our_own_that_is_missing_is_a_fault_of_ours():
    code, err = export_without({"wdm_export.parity"}, "check", TINY)
    assert code == 1 and "Traceback" in err


def test_block_means_of_netcdf_need_no_extra(tmp_path):
    code, err = export_without(EXTRA, "coarsen", TRUTH, "-o", tmp_path / "made.nc")
    assert (code, err) == (0, "") and (tmp_path / "made.nc").exists()
