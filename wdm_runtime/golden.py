"""A bundle's golden inputs and outputs: what its network gives, whatever engine runs it."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wdm_runtime.bundle import GOLDEN_NAME, Bundle
from wdm_runtime.engines import Engine
from wdm_runtime.errors import BundleError, EngineError

Array = npt.NDArray[np.float32]
# Largest difference over the golden output's largest value. The shipped network gave 5e-6, 7e-4 and
# 2e-2 on CPUs, an untrained one 5e-2 in bf16; GPUs sum in another order and, in fp16, round between
# other kernels.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1}


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
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            x, condition, t, v = (file[name].astype(np.float32) for name in Golden.__annotations__)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{bundle.path / GOLDEN_NAME}: is no golden file ({error}); expected arrays "
            f"{', '.join(Golden.__annotations__)}. Export the bundle again."
        ) from error
    tile = bundle.manifest.graphs["score_fp32"].inputs[0].shape[1:]
    got, expected = [a.shape for a in (x, condition, v)], [(1, *tile)] * 2 + [(len(t), *tile)]
    if got != expected:
        raise BundleError(
            f"{bundle.path / GOLDEN_NAME}: has shapes {got}; expected {expected}. Export the "
            "bundle again."
        )
    return Golden(x, condition, t, v)


def check_engine(bundle: Bundle, engine: Engine) -> None:
    """Refuse an engine that computes something else than the bundle's network, by one call.

    Bundles without a golden file are let pass.

    Raises
    ------
    EngineError
        Its answer differs by more than its precision explains.
    BundleError
        The golden file is altered.
    """
    if all(entry.file != GOLDEN_NAME for entry in bundle.manifest.files):
        return
    golden, tolerance = read_golden(bundle), TOLERANCES[engine.precision]
    answer = engine.run(golden.feeds(golden.x, float(golden.t[0])))[0]
    difference = float(np.abs(answer - golden.v[0]).max() / np.abs(golden.v[0]).max())
    if not difference <= tolerance:  # NaN fails too
        raise EngineError(
            f"Engine '{engine.kind}' in {engine.precision} ({engine.version}) gives other numbers "
            f"than the bundle's network: they differ by {difference:.1e} of the largest; expected "
            f"at most {tolerance:.0e}. Choose another --engine or --precision, and look closer "
            "with 'wdm-run selftest'."
        )
