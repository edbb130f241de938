"""What fused steps on a GPU share: who may call when, and what crosses to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wdm_runtime.engines.fixed_batch import Result, Specs, check_states

Array = npt.NDArray[np.float32]


class DeviceStep(ABC):
    """A graph of `wdm_runtime.engines.step.step_graph` as a `StepEngine`; at most a batch at once.

    Tiles of the batch that hold no state compute something too, which nobody reads.
    """

    inputs: Specs
    batch: int
    version: str
    _tiles: int

    def load(self, x: Array, condition: Array) -> None:
        """As `StepEngine.load`."""
        check_states(x, condition, self.inputs, self.batch, self.version)
        # What an earlier sample left as its estimate may be NaN, and 0 times NaN is NaN.
        states = {"x": x, "condition": condition, "previous": np.zeros_like(x)}
        self._alone(self._place, states)

    def step(self, t: float, scalars: Array, noise: Array | None) -> None:
        """As `StepEngine.step`."""
        self._alone(self._advance, np.float32(t), scalars, noise)

    def read(self) -> Array:
        """As `StepEngine.read`."""
        return self._alone(lambda: self._fetch("previous")[: self._tiles])

    @abstractmethod
    def _alone(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Do a piece of work: one at a time, while it is open."""

    @abstractmethod
    def _place(self, states: Mapping[str, Array]) -> None:
        """Bring states to the GPU, and note their number as ``_tiles``."""

    @abstractmethod
    def _advance(self, t: npt.ArrayLike, scalars: Array, noise: Array | None) -> None:
        """Queue a step."""

    @abstractmethod
    def _fetch(self, name: str) -> Array:
        """What an input of the next step holds, all tiles."""
