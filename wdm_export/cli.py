"""`wdm-export`: prepare data, train, export, check, evaluate, or all of it with `build`."""

from __future__ import annotations

from typing import Annotated

import typer

from wdm_export import cli_build, cli_check, cli_data, cli_evaluate, cli_train
from wdm_runtime import console
from wdm_runtime.errors import MissingDependencyError, install_line
from wdm_runtime.io.atomic import exit_on_signals
from wdm_runtime.shared_options import VersionOption

_EXTRA = "export"
_TORCH = "torch==2.13.0"  # as in the README: the one that is tested

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
for command in (
    cli_build.build,
    cli_data.prepare,
    cli_train.train,
    cli_build.export,
    cli_build.sign,
    cli_check.check,
    cli_evaluate.evaluate,
    cli_evaluate.identity,
    cli_data.coarsen,
):
    app.command()(command)


def main() -> None:
    """Entry point."""
    with exit_on_signals():
        console.run(_run)


def _run() -> None:
    """Run the command; where a package of the extra is missing, that is a typed error."""
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name is None or "." in error.name:  # a part of a package, ours among them
            raise
        install = install_line(_EXTRA, _TORCH)
        raise MissingDependencyError(
            f"wdm-export needs the Python package '{error.name}', which is not installed; expected "
            f"all of the extra '{_EXTRA}'. Install it with: {install}",
            _EXTRA,
            error.name,
            install,
        ) from error


@app.callback()
def _options(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="-vv: tracebacks")
    ] = 0,
    version: VersionOption = False,
) -> None:
    """Train wavelet diffusion models on radar data and export them as bundles."""
    console.set_verbosity(verbose)
