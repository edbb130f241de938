"""The wavelet transforms in NumPy, for engines whose graphs cannot be of any size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from wdm_runtime.engines.engine import REPORT
from wdm_runtime.errors import EngineError
from wdm_runtime.manifest import TensorSpec
from wdm_runtime.wavelets import WaveletSpec, dwt, idwt


class NumpyTransform:
    """What the bundle's graph ``"dwt"`` or ``"idwt"`` computes, as an engine."""

    kind, device, precision = "numpy", "CPU, 1 thread", "fp32"
    version = f"numpy {np.__version__}"

    def __init__(self, role: str, spec: WaveletSpec) -> None:
        field = TensorSpec("field", "float32", (1, 1, "height", "width"))
        coeffs = TensorSpec("coeffs", "float32", (1, spec.subbands, "rows", "columns"))
        given, made = {"dwt": (field, coeffs), "idwt": (coeffs, field)}[role]
        self.inputs, self.outputs = (given,), (made,)
        self._transform, self._spec = {"dwt": dwt, "idwt": idwt}[role], spec

    def run(self, feeds: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The transform of the one tensor (1, c, y, x)."""
        name = self.inputs[0].name
        if feeds.keys() != {name} or feeds[name].ndim != 4 or len(feeds[name]) != 1:
            got = {key: value.shape for key, value in feeds.items()}
            raise EngineError(
                f"The wavelet transform got {got}; expected '{name}' of shape "
                f"{self.inputs[0].shape}. Hand in that, or {REPORT}."
            )
        return self._transform(feeds[name][0], self._spec)[None]

    def close(self) -> None:
        """Nothing is held."""
