"""A network small enough for tests, stores to train it on, and graphs exported only once."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from conftest import TRUTH

from wdm_export import graphs
from wdm_export.checkpoint import Checkpoint
from wdm_export.config import ModelConfig, NetworkConfig, TrainConfig
from wdm_export.data import PatchStore, prepare
from wdm_export.unet import UNet
from wdm_runtime.diffusion import VPSchedule
from wdm_runtime.manifest import Domain
from wdm_runtime.transform import PrecipTransform, SubbandScale
from wdm_runtime.wavelets import WaveletSpec

torch.set_num_threads(1)  # networks this small only lose by more
TILE, CROP = 64, 32
FACTOR = 10
SMALL = NetworkConfig(base_channels=4, multipliers=(1, 1), blocks=1, head_channels=4)
SOURCES = (
    {"file": "a.nc", "sha256": "0", "valid_time": "2019-06-10T00:00:00", "first": 0, "count": 2},
    {"file": "b.nc", "sha256": "1", "valid_time": "2019-06-10T00:02:00", "first": 2, "count": 1},
    {"file": "c.nc", "sha256": "2", "valid_time": "2022-06-02T12:00:00", "first": 3, "count": 1},
)
DOMAIN = Domain(1.0, (20.0, 55.0))
_exported: dict[tuple[object, ...], object] = {}
_score_graph = graphs.score_graph


def small(levels: int = 2, **changes: object) -> NetworkConfig:
    """The small network on another wavelet."""
    return replace(SMALL, wavelet=WaveletSpec(levels=levels), **changes)


def settings(steps: int = 12, **changes: object) -> TrainConfig:
    """A training of seconds."""
    values = {"batch": 4, "crop_px": CROP, "learning_rate": 2e-3, "warmup_steps": 5, "threads": 1}
    return TrainConfig(steps=steps, **values | changes)


def random_network(config: NetworkConfig = SMALL, seed: int = 0) -> UNet:
    """Every weight random, also those that start at 0, and exact in fp16 as released ones are."""
    network = UNet(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
            parameter.copy_(parameter.half().float())
    return network.eval()


def random_checkpoint(config: NetworkConfig = SMALL, seed: int = 0) -> Checkpoint:
    """Released weights of a random network, with subband scales near what radar data have."""
    subbands = config.wavelet.subbands
    stds = tuple(0.8 / (1 + k) for k in range(subbands))
    residual = SubbandScale((0.0,) * subbands, tuple(0.3 * s for s in stds))
    condition = SubbandScale((1.0, *(0.0,) * (subbands - 1)), stds)
    model = ModelConfig(config, FACTOR, PrecipTransform(), VPSchedule(), residual, condition)
    tensors = {f"ema.{k}": v for k, v in random_network(config, seed).state_dict().items()}
    return Checkpoint(model, TrainConfig(steps=5), 5, 3.0, SOURCES, DOMAIN, tensors).released()


def score_graph_once(network: UNet, tile_px: int, fp16: bool):
    """`graphs.score_graph`, which takes seconds, called once for the same weights."""
    weights = hashlib.sha256()
    for value in network.state_dict().values():
        weights.update(value.numpy().tobytes())
    key = (network.config, tile_px, fp16, weights.hexdigest())
    if key not in _exported:
        _exported[key] = _score_graph(network, tile_px, fp16)
    return copy.deepcopy(_exported[key])


def sample_store(folder: Path) -> PatchStore:
    """Patches of 64 cells from the sample in the repository."""
    return prepare([TRUTH], folder, size=TILE)


def rain(shape=(120, 160), seed=0):
    """Showers on a smooth background, all of it wet."""
    rng = np.random.default_rng(seed)
    return (0.2 + rng.gamma(0.5, 4.0, shape)).astype(np.float32)
