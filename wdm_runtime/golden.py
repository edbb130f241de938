"""A bundle's golden inputs and outputs: what its network gives, whatever engine runs it."""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wdm_runtime.bundle import Bundle
from wdm_runtime.engines import Choice, Engine
from wdm_runtime.engines.step import StepEngine
from wdm_runtime.errors import BundleError, EngineError
from wdm_runtime.manifest import GOLDEN_NAME

Array = npt.NDArray[np.float32]
# Largest difference over the golden output's largest value. The shipped network gave 5e-6, 7e-4 and
# 2e-2 on CPUs, an untrained one 5e-2 in bf16; GPUs sum in another order and, in fp16, round between
# other kernels.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1}
# What NumPy and zipfile say of a file that is no archive of arrays, or a crafted one.
_NO_ARCHIVE = (
    *(ValueError, TypeError, KeyError, OSError, EOFError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error),
)
_MAX_TIMES = 64
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<f(?P<size>[248])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9, ]{0,40})\), \} *\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class Golden:
    """Inputs of the score graph and what the trained network gives for them, in fp32.

    x, condition (1, c, h, w); t (k); v (k, c, h, w), one for each time.
    """

    x: Array
    condition: Array
    t: Array
    v: Array

    def feeds(self, x: Array, t: float) -> dict[str, Array]:
        """The graph's inputs for tiles x (b, c, h, w) at a time."""
        condition = np.repeat(self.condition, len(x), axis=0)
        return {"x": x, "condition": condition, "t": np.array([t], dtype=np.float32)}


def read_golden(bundle: Bundle) -> Golden:
    """The bundle's golden file.

    Raises
    ------
    BundleError
        It has none, or one that is damaged or of another network.
    """
    data = bundle.file(GOLDEN_NAME)
    tile = bundle.manifest.graphs["score_fp32"].inputs[0].shape[1:]
    try:
        x, condition, t, v = _arrays(data, tile)
    except _NO_ARCHIVE as error:
        raise BundleError(
            f"{bundle.path / GOLDEN_NAME}: is no golden file ({error}); expected arrays "
            f"{', '.join(Golden.__annotations__)}. Export the bundle again."
        ) from error
    times = len(t) if t.ndim == 1 else 0
    got, expected = [a.shape for a in (x, condition, v)], [(1, *tile)] * 2 + [(times, *tile)]
    if got != expected or not times:
        raise BundleError(
            f"{bundle.path / GOLDEN_NAME}: has shapes {got}; expected {expected}. Export the "
            "bundle again."
        )
    return Golden(x, condition, t, v)


def _arrays(data: bytes, tile: tuple[int | str, ...]) -> list[Array]:
    """The golden arrays; no more is unpacked of any than the tile and some times may take."""
    limit = 4096 + 8 * _MAX_TIMES * math.prod(size for size in tile if isinstance(size, int))
    arrays = []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in Golden.__annotations__:
            with archive.open(f"{name}.npy") as file:
                raw = file.read(limit + 1)
            if len(raw) > limit:
                raise ValueError(f"'{name}' has more than {limit} bytes")
            array = _array(raw)
            if not (array.ndim <= 4 and np.isfinite(array).all()):
                raise ValueError(f"'{name}' has {array.ndim} axes or values that are not finite")
            arrays.append(array)
    return arrays


def _array(raw: bytes) -> Array:
    """A .npy file as `numpy.savez` writes floats; NumPy's reader evaluates the header."""
    header = _NPY_HEADER.match(raw)
    if header is None:
        raise ValueError("an array is not one of floats in NumPy's format 1.0")
    values = np.frombuffer(raw, f"<f{int(header['size'])}", offset=header.end())
    shape = [int(size) for size in header["shape"].split(b",") if size.strip()]
    return values.reshape(shape).astype(np.float32)


# The factors of a `wdm_runtime.samplers.Step` with which the denoised estimate and the new state
# are v, and then those with which the estimate is the state.
_V_TO_STATE = np.array([0, -1, 0, 1, 0, 0], dtype=np.float32)
_STATE_AS_IT_IS = np.array([1, 0, 0, 0, 0, 0], dtype=np.float32)


def check_engine(bundle: Bundle, engine: Engine) -> None:
    """Refuse an engine that computes something else than the bundle's network, by one call.

    An engine of a fixed batch has to give it for each of the tiles. Bundles without a golden file
    are let pass.

    Raises
    ------
    EngineError
        Its answer differs by more than its precision explains.
    BundleError
        The golden file is altered.
    """
    if not has_golden(bundle):
        return
    golden = read_golden(bundle)
    tiles = np.repeat(golden.x, getattr(engine, "batch", 1), axis=0)
    answer = engine.run(golden.feeds(tiles, float(golden.t[0])))
    who = f"Engine '{engine.kind}' in {engine.precision} ({engine.version})"
    _check_answer(answer, golden, engine.precision, who)


def check_step(bundle: Bundle, step: StepEngine, choice: Choice, batch: int) -> None:
    """As `check_engine`, of a fused step: what the network gives, by way of the state it keeps.

    Parameters
    ----------
    bundle, choice, batch
        What it was opened with.
    step
        Its states are lost.
    """
    if not has_golden(bundle):
        return
    golden = read_golden(bundle)
    tiles = golden.feeds(np.repeat(golden.x, batch, axis=0), float(golden.t[0]))
    step.load(tiles["x"], tiles["condition"])
    for scalars in (_V_TO_STATE, _STATE_AS_IT_IS):
        step.step(float(golden.t[0]), scalars, None)
    who = f"The fused step of engine '{choice.kind}' in {choice.precision}"
    _check_answer(step.read(), golden, choice.precision, who)


def has_golden(bundle: Bundle) -> bool:
    """Whether a bundle has a golden file; older ones do not."""
    return any(entry.file == GOLDEN_NAME for entry in bundle.manifest.files)


def _check_answer(answer: Array, golden: Golden, precision: str, who: str) -> None:
    """All tiles' v (b, c, h, w) at the first of the golden times."""
    tolerance = TOLERANCES[precision]
    difference = float(np.abs(answer - golden.v[:1]).max() / np.abs(golden.v[0]).max())
    if not difference <= tolerance:  # NaN fails too
        raise EngineError(
            f"{who} gives other numbers than the bundle's network: they differ by "
            f"{difference:.1e} of the largest; expected at most {tolerance:.0e}. Choose another "
            "--engine or --precision, and look closer with 'wdm-run selftest'."
        )
