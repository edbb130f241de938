"""The fused step on TensorRT: states stay on the GPU, and a step is one launch.

A step's noise, time and scalars go up, the new state takes the place of the old on the device, and
the denoised estimate comes down once, after the last step. Calls return while the GPU works, so
that the host draws the next noise meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from wdm_runtime.engines.fixed_batch import check_states
from wdm_runtime.engines.tensorrt import LoadedPlan

Array = npt.NDArray[np.float32]
_KEPT = ("x", "condition", "previous")
_SENT = ("noise", "t", "scalars")


class TensorRtStep(LoadedPlan):
    """A graph of `wdm_runtime.engines.step.step_graph` as a `StepEngine`; at most a batch at once.

    Tiles of the batch that hold no state compute something too, which nobody reads.
    """

    def load(self, x: Array, condition: Array) -> None:
        """As `StepEngine.load`."""
        check_states(x, condition, self.inputs, self.batch, self.version)
        with self._in_use():
            # What an earlier sample left as its estimate may be NaN, and 0 times NaN is NaN.
            self._place({"x": x, "condition": condition, "previous": np.zeros_like(x)})

    def step(self, t: float, scalars: Array, noise: Array | None) -> None:
        """As `StepEngine.step`."""
        with self._in_use():
            self._advance(np.float32(t), scalars, noise)

    def read(self) -> Array:
        """As `StepEngine.read`."""
        with self._in_use():
            return self._fetch("previous")[: self._tiles]

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
