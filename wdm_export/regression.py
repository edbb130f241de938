"""The deterministic baseline: the same network trained to predict the mean, called once.

Without noise it needs no sampler, so it never becomes a bundle: it is run from its weights with
torch, on the runtime's own tiles and with its own condition, transforms and consistency step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from wdm_export.checkpoint import Checkpoint
from wdm_export.config import REGRESSION
from wdm_export.residual_frame import ResidualFrame
from wdm_export.unet import UNet
from wdm_runtime.consistency import DEFAULT_CONSISTENCY
from wdm_runtime.errors import InputError
from wdm_runtime.field import PrecipField
from wdm_runtime.manifest import SCHEMA_VERSION, Manifest
from wdm_runtime.skill import Array, Places


@dataclass(frozen=True)
class Regression:
    """One field: the condition's own answer to no noise at t = 1, where v is minus the mean."""

    name: str
    manifest: Manifest
    network: UNet
    consistency: str = DEFAULT_CONSISTENCY
    random: bool = False

    @classmethod
    def load(cls, path: Path, tile_px: int, consistency: str = DEFAULT_CONSISTENCY) -> Regression:
        """From ``weights.safetensors`` of a run with ``--objective regression``.

        Raises
        ------
        InputError
            No such weights, weights of a diffusion model, or tiles the network cannot halve.
        """
        checkpoint = Checkpoint.load(path)
        if checkpoint.training.objective != REGRESSION:
            raise InputError(
                f"{path}: holds weights of a {checkpoint.training.objective} model; expected those "
                "of a regression, or a bundle. Export them first: wdm-export export WEIGHTS -o "
                "BUNDLE"
            )
        checkpoint.model.network.check_edge(tile_px, "--tile")
        manifest = _manifest(checkpoint, tile_px)
        name = f"regression {path.parent.name or path.stem}"
        return cls(name, manifest, checkpoint.released().network(), consistency)

    def draw(
        self, coarse: PrecipField, places: Places, size: int, members: int, seed: int
    ) -> Iterator[Array]:
        frame = ResidualFrame(coarse, places, size, self.manifest, self.consistency)
        residual = np.zeros_like(frame.standardised)
        for tile in range(len(frame.tiling.tiles)):
            mean = self._mean(frame.tiling.cut(frame.standardised, tile))
            frame.tiling.blend(mean, tile, residual)
        yield frame.tiles(residual)

    @torch.no_grad()
    def _mean(self, given: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Standardised residual (c, h, w) of one tile's condition."""
        standardised = torch.from_numpy(np.ascontiguousarray(given))[None]
        v = self.network(torch.zeros_like(standardised), standardised, torch.ones(1))
        return np.asarray(-v[0].numpy())


def _manifest(checkpoint: Checkpoint, tile_px: int) -> Manifest:
    """What the runtime's functions read of a manifest; there are no graphs."""
    model = checkpoint.model
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=REGRESSION,
        licence="",
        factor=model.factor,
        tile_px=tile_px,
        domain=checkpoint.domain,
        wavelet=model.network.wavelet,
        transform=model.transform,
        schedule=model.schedule,
        prediction="v",
        residual_scale=model.residual_scale,
        condition_scale=model.condition_scale,
        graphs={},
        files=(),
        training={},
    )
