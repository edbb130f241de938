"""Downscale precipitation from 10 km to 1 km with a wavelet diffusion model, without torch.

`Downscaler` turns a `PrecipField` into an ensemble; `read_field` reads one from a file. Importing
this package needs NumPy alone: engines and file formats are imported when they are first used.
"""

from wdm_runtime import began as began  # first: what follows takes a while
from wdm_runtime.bundle import Bundle
from wdm_runtime.downscale import Downscaler, Sample
from wdm_runtime.engines.options import EngineOptions
from wdm_runtime.errors import (
    BundleError,
    EngineError,
    InputError,
    MissingDependencyError,
    OutputError,
    ParityError,
    SuspectError,
    WdmError,
)
from wdm_runtime.field import PrecipField
from wdm_runtime.grid import Grid
from wdm_runtime.io import read_field
from wdm_runtime.manifest import Manifest
from wdm_runtime.sampling import Balance
from wdm_runtime.stepping import StepTime
from wdm_runtime.version import version

__all__ = [
    "Balance",
    "Bundle",
    "BundleError",
    "Downscaler",
    "EngineError",
    "EngineOptions",
    "Grid",
    "InputError",
    "Manifest",
    "MissingDependencyError",
    "OutputError",
    "ParityError",
    "PrecipField",
    "Sample",
    "StepTime",
    "SuspectError",
    "WdmError",
    "read_field",
    "version",
]
