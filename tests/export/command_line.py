"""`wdm-export` and `wdm-run` as users call them, as processes or within this one."""

import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

import wdm_export.cli
import wdm_runtime.cli

NETWORK = ["--base", "4", "--depths", "1,1", "--blocks", "1", "--crop", "32", "--batch", "4"]
QUICK = ["--base", "4", "--depths", "1", "--blocks", "1", "--no-attention", "--batch", "2"]


ENVIRONMENT = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
MAINS = {"wdm-export": wdm_export.cli.main, "wdm-run": wdm_runtime.cli.main}


def run_script(command, *arguments):
    """Call a console script of this interpreter: exit code, output, errors."""
    script = shutil.which(command, path=str(Path(sys.executable).parent)) or command
    result = subprocess.run(
        [script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        timeout=900,  # a minute alone; machines may be busy
    )
    return result.returncode, result.stdout, result.stderr


def run(command, *arguments, code=0):
    """Call an entry point in this process, which spares seconds of imports, and return its output.

    A call that must fail returns its errors; an exception that is no typed error gets through.
    """
    out, err = io.StringIO(), io.StringIO()
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command, *map(str, arguments)])
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with redirect_stdout(out), redirect_stderr(err):
            try:
                MAINS[command]()
                got = 0
            except SystemExit as end:
                got = end.code or 0
    torch.set_num_threads(threads)
    assert got == code, err.getvalue()
    return err.getvalue() if code else out.getvalue()
