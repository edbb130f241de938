"""Golden inputs and outputs of a trained network, by which a machine can test its engines."""

from __future__ import annotations

import io

import numpy as np
import torch

from wdm_export.unet import UNet

_TIMES = (0.1, 0.9)
_INPUT_STEP = 1 / 2  # coarse numbers compress well and are exact in every precision


def golden_file(network: UNet, tile_px: int) -> bytes:
    """An npz file of x and condition (1, c, h, w), t (k) and torch's v (k, c, h, w) in fp32.

    Inputs are normal numbers, as both are in a run, rounded so that they are exact in bf16.
    """
    spec = network.config.wavelet
    size = tile_px // spec.stride
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2, 1, spec.subbands, size, size))
    x, condition = (_INPUT_STEP * np.round(inputs / _INPUT_STEP)).astype(np.float16)
    t = np.array(_TIMES, dtype=np.float32)
    tensors = [torch.from_numpy(a.astype(np.float32)) for a in (x, condition)]
    with torch.inference_mode():
        v = torch.cat([network(*tensors, torch.tensor([time])) for time in t]).numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=x, condition=condition, t=t, v=v)
    return buffer.getvalue()
