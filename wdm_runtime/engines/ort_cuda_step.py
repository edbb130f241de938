"""The fused step on ONNX Runtime's CUDA provider: states stay on the GPU.

There are two places for the state and the estimate. A step reads one and writes the other, so that
nothing has to be copied, and each direction has a binding and a CUDA graph of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.engines.device_step import DeviceStep
from wdm_runtime.engines.ort_cuda import CudaSession

Array = npt.NDArray[np.float32]
# An input that a step writes anew, and the output that takes its place.
_NEXT = {"x": "x_next", "previous": "denoised"}


class OrtCudaStep(CudaSession, DeviceStep):
    """See `DeviceStep`."""

    _places: list[dict[str, Any]]

    def _bind(self) -> None:
        specs = {spec.name: spec for spec in (*self.inputs, *self.outputs)}
        shared = {
            name: self._tensor(spec)
            for name, spec in specs.items()
            if name not in (*_NEXT, *_NEXT.values())
        }
        places = [{name: self._tensor(specs[name]) for name in _NEXT} for _ in range(2)]
        self._tensors, self._places, self._turn = shared, places, 0
        for name, host in self._host.items():  # what is never sent must be finite all the same
            self._at(name).update_inplace(host)
        self._bindings = []
        for number in range(2):
            other = places[1 - number]
            after = {output: other[name] for name, output in _NEXT.items()}
            self._bindings.append(self._binding(shared | places[number], shared | after))

    def _release(self) -> None:
        super()._release()
        self._places = []

    def _at(self, name: str) -> Any:
        """Where an input of the next step lies."""
        return self._places[self._turn][name] if name in _NEXT else self._tensors[name]

    def _send(self, name: str, values: npt.ArrayLike, tiles: int | None = None) -> None:
        self._host[name][:tiles] = values
        self._at(name).update_inplace(self._host[name])

    def _place(self, states: Mapping[str, Array]) -> None:
        self._turn, self._tiles = 0, len(states["x"])
        for name, values in states.items():
            self._send(name, values, self._tiles)

    def _advance(self, t: npt.ArrayLike, scalars: Array, noise: Array | None) -> None:
        self._send("t", t)
        self._send("scalars", scalars)
        if noise is not None:  # what is there is finite, and counts 0 times
            self._send("noise", noise, self._tiles)
        self._launch(self._turn)
        self._turn = 1 - self._turn

    def _fetch(self, name: str) -> Array:
        values: Array = self._at(name).numpy()
        return values

    def _answer(self, feeds: Mapping[str, Array]) -> Array:
        """The state and the estimate after two steps from given ones: one of each direction."""
        self._place({name: feeds[name] for name in ("x", "condition", "previous")})
        for _ in self._bindings:
            self._advance(feeds["t"], feeds["scalars"], feeds["noise"])
        return np.stack([self._fetch("x"), self._fetch("previous")])
