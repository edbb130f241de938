"""The fused step on TensorRT: states stay on the GPU, and a step is one launch.

A step's noise, time and scalars go up, the new state takes the place of the old on the device, and
the denoised estimate comes down once, after the last step. Calls return while the GPU works, so
that the host draws the next noise meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from wdm_runtime.engines.device_step import DeviceStep
from wdm_runtime.engines.tensorrt import LoadedPlan

Array = npt.NDArray[np.float32]
_KEPT = ("x", "condition", "previous")
_SENT = ("noise", "t", "scalars")


class TensorRtStep(LoadedPlan, DeviceStep):
    """See `DeviceStep`."""

    def _place(self, states: Mapping[str, Array]) -> None:
        self._device.synchronize()  # a copy may still read the host arrays
        self._tiles = len(states["x"])
        for name in _KEPT:
            self._tensors[name].host[: self._tiles] = states[name]
            self._device.upload(self._tensors[name])

    def _advance(self, t: npt.ArrayLike, scalars: Array, noise: Array | None) -> None:
        self._device.synchronize()  # the step before may still read them
        self._tensors["t"].host[...] = t
        self._tensors["scalars"].host[...] = scalars
        if noise is not None:  # what is there is finite, and counts 0 times
            self._tensors["noise"].host[: self._tiles] = noise
        self._launch()

    def _fetch(self, name: str) -> Array:
        """A tensor's values on the GPU, all tiles."""
        self._device.download(self._tensors[name])
        self._device.synchronize()
        values: Array = self._tensors[name].host.copy()
        return values

    def _queue(self) -> None:
        for name in _SENT:
            self._device.upload(self._tensors[name])
        self._execute()
        # Not in place of the inputs: kernels may read those until the last of them ends.
        self._device.copy(self._tensors["x"], self._tensors["x_next"])
        self._device.copy(self._tensors["previous"], self._tensors["denoised"])

    def _answer(self, feeds: Mapping[str, Array]) -> Array:
        """The state and the estimate after one step from given ones."""
        self._place(feeds)
        self._advance(feeds["t"], feeds["scalars"], feeds["noise"])
        return np.stack([self._fetch("x"), self._fetch("previous")])
