"""What benches have of networks on torch: random weights, operations, and a call of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wdm_export.config import NetworkConfig
from wdm_export.unet import UNet


def random_network(config: NetworkConfig) -> UNet:
    """A network with random weights.

    The time does not depend on them: every kernel does the same arithmetic whatever the numbers,
    denormals excepted. Layers that training starts at zero get weights too, so that activations
    stay of order one, far from denormals, and no engine can fold a layer away.
    """
    torch.manual_seed(0)
    network = UNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1 and not parameter.any():
                torch.nn.init.kaiming_uniform_(parameter, a=5**0.5)  # as the other layers start
    return network.eval()


def torch_gflop(config: NetworkConfig, shape: tuple[int, ...]) -> float:
    """Operations that torch counts for tiles (b, c, h, w), two a multiply-add; none is computed."""
    with torch.device("meta"):
        network = UNet(config).eval()
        x, t = torch.empty(shape), torch.empty(1)
    # Only attention written out as matrix products is counted on every version of torch.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(x, x, t)
    return float(counter.get_total_flops()) / 1e9


def calling(
    module: Callable[..., torch.Tensor], tensors: Iterable[torch.Tensor]
) -> Callable[[], object]:
    """A network's call on x, condition and t, without gradients."""
    given = tuple(tensors)

    def call() -> object:
        with torch.inference_mode():
            return module(*given)

    return call
