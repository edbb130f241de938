"""Typed errors with exit codes, and the checks of optional dependencies and plain numbers.

Every message is one sentence of fact (what was found, what was expected) and one of remedy.
"""

from __future__ import annotations

import importlib
import operator
from numbers import Real
from types import ModuleType

DISTRIBUTION = "wdm-edge"


class WdmError(Exception):
    """Base of every error this project raises on purpose. `exit_code` is the process's."""

    exit_code = 1


class InputError(WdmError):
    """A file, field or option handed in cannot be used."""

    exit_code = 2


class OutputError(WdmError):
    """A result cannot be written where it was asked for."""

    exit_code = 2


class BundleError(WdmError):
    """A bundle is incomplete, altered, or written by a newer version."""

    exit_code = 3


class EngineError(WdmError):
    """An engine cannot be had, or did not do what the bundle says."""

    exit_code = 4


class NoDeviceError(EngineError):
    """This machine has no device of the kind an engine runs on."""


class MissingDependencyError(WdmError):
    """An optional package is not installed; `extra` names the extra that brings it.

    ``package`` names what is missing, and ``install`` is the command that brings it.
    """

    exit_code = 4

    def __init__(
        self, message: str, extra: str, package: str = "", install: str | None = None
    ) -> None:
        super().__init__(message)
        self.extra, self.package = extra, package
        self.install = install or install_line(extra)


class ParityError(WdmError):
    """Two implementations that must agree do not."""

    exit_code = 5


class SuspectError(WdmError):
    """A result holds numbers that cannot be true, and was to be refused then."""

    exit_code = 6


def whole(name: str, value: object) -> int:
    """A plain integer, of any type that is one.

    Raises
    ------
    InputError
        It is none; ``name`` is what the message calls it.
    """
    try:
        return int(operator.index(value))  # type: ignore[arg-type]  # of a bool it is the bool
    except TypeError as error:
        raise InputError(
            f"Got {name} = {value!r}; expected a whole number. Hand in an int."
        ) from error


def check_number(name: str, value: object) -> None:
    """Refuse what is no real number; NaN and infinity are.

    Raises
    ------
    InputError
        It is none; ``name`` is what the message calls it.
    """
    if not isinstance(value, Real):
        raise InputError(f"Got {name} = {value!r}; expected a number. Hand in an int or a float.")


def install_line(extra: str, *pins: str) -> str:
    """The command that installs an extra; by name it cannot be had, it is on no package index."""
    packages = " ".join(f"'{package}'" for package in (f".[{extra}]", *pins))
    return f"pip install {packages} in the clone"


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Parameters
    ----------
    module
        Import name, for example ``"onnxruntime"``.
    extra
        The extra of this distribution that installs it.
    purpose
        What it is needed for, as the sentence's subject: ``"reading GRIB2"``.

    Raises
    ------
    MissingDependencyError
        The module is not installed, or fails to import (the cause is chained).
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} needs the Python package '{module}', which cannot be imported ({error}). "
            f"Install it with: {install_line(extra)}",
            extra,
            module,
        ) from error
