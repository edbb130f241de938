"""The score network in the operations that compilers make most of: the same function of (x, c, t).

Two forms. That for CPUs, in fp32, computes each upsampling convolution before the upsampling. That
for GPUs, in fp16, has as few kernels a step as TensorRT-RTX 1.7 can be brought to: at these sizes
a kernel takes little longer than its launch.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wdm_export.unet import TimeEmbedding, UNet, Upsample

# Largest group, in values, that TensorRT-RTX 1.7 normalises in one kernel without counters that
# another kernel has to clear: what one thread block holds in registers (1024 threads of 16).
ONE_BLOCK = 16384
# A doubled position meets the 3 taps of a row as 2: the left copy as (0, 1 + 2), the right as
# (0 + 1, 2). Which of both it is also says where the row starts.
_TAPS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


class CpuForm(nn.Module):
    """The network in fp32, with upsampling by phases and one product of matrices for the time."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        for i, up in enumerate(network.up):
            self.network.up[i] = PhaseUpsample(up)
        self.terms = TimeTerms(network)

    def forward(self, x: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        terms = self.terms(self.network.time(t))
        return self.network.body(torch.cat((x, condition), dim=1), terms)


class GpuForm(nn.Module):
    """The network in fp16 between fp32 inputs and outputs, its time embedding in fp32.

    Statistics are sums in fp32: small norms cast inside the one kernel they become, larger ones
    and softmax stay fp16 nodes, whose kernels accumulate in fp32. Casts around those would break
    the fusion of norm and SiLU.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()
        _replace_norms(self.network)
        # Not .float(): the frequencies are no fp16 numbers, and 1000 t multiplies their error.
        self.network.time = FlatTimeEmbedding(network.time)
        self.terms = FlatTimeTerms(network)

    def forward(self, x: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        terms = [term.half() for term in self.terms(self.network.time(t))]
        return self.network.body(torch.cat((x.half(), condition.half()), dim=1), terms).float()


class TimeTerms(nn.Module):
    """`UNet.time_terms` of one embedding (1, channels), all blocks in one product of matrices."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        layers = [block.time for block in network.residual_blocks()]
        self.sizes = [layer.out_features for layer in layers]
        self.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]))
        self.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]))

    def forward(self, emb: Tensor) -> tuple[Tensor, ...]:
        # Shaped before the split: TensorRT-RTX then copies all parts in one kernel.
        return F.linear(emb, self.weight, self.bias)[:, :, None, None].split(self.sizes, dim=1)


class FlatTimeTerms(TimeTerms):
    """The same in fp32 without a product of matrices: see `FlatTimeEmbedding`."""

    def __init__(self, network: UNet) -> None:
        super().__init__(network)
        self.half()  # as stored; `_flat_linear` computes in fp32

    def forward(self, emb: Tensor) -> tuple[Tensor, ...]:
        terms = _flat_linear(emb, self.weight, self.bias)
        return terms[:, :, None, None].split(self.sizes, dim=1)


class FlatTimeEmbedding(nn.Module):
    """`TimeEmbedding` of one time, its products of matrix and vector written as sums.

    They then share kernels with what is around them, and GPUs of compute capability 7.5 can have
    them: TensorRT-RTX 1.7 has no matrix product in fp32 for those.
    """

    def __init__(self, embedding: TimeEmbedding) -> None:
        super().__init__()
        self.embedding = copy.deepcopy(embedding)

    def forward(self, t: Tensor) -> Tensor:
        first, _, second, _ = self.embedding.layers
        h = self.embedding.sinusoids(t)
        h = F.silu(_flat_linear(h, first.weight, first.bias))
        return F.silu(_flat_linear(h, second.weight, second.bias))


def _flat_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer on one row (1, inputs) -> (1, outputs)."""
    return (weight.float() * x).sum(dim=1)[None] + bias.float()


class BlockNorm(nn.Module):
    """Group norm in fp16 with statistics in fp32, one kernel if its groups are small enough."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        group = channels // self.norm.num_groups * height * width
        if group > ONE_BLOCK:
            return self.norm(x)
        values = x.reshape(-1, self.norm.num_groups, group).float()
        centred = values - values.mean(dim=2, keepdim=True)
        variance = (centred * centred).mean(dim=2, keepdim=True)
        h = (centred / torch.sqrt(variance + self.norm.eps)).to(x.dtype)
        h = h.reshape(-1, channels, height, width)
        return h * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]


def _replace_norms(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, BlockNorm(child))
        else:
            _replace_norms(child)


class PhaseUpsample(nn.Module):
    """`Upsample` with 4/9 of its multiplications, by 2 x 2 convolutions before the doubling.

    Of the 3 x 3 taps around a doubled position some meet the same value: their weights add up.
    Which ones depends on whether the row and the column are even, so there are four convolutions,
    whose results alternate. The sums of weights are constants that engines fold when they load a
    graph; the weights themselves stay what they were.
    """

    def __init__(self, up: Upsample) -> None:
        super().__init__()
        self.weight, self.bias = up.weight, up.bias
        self.register_buffer("taps", torch.tensor(_TAPS), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        rows = []
        for a in (0, 1):
            phases = []
            for b in (0, 1):
                kernel = self.taps[a] @ self.weight @ self.taps[b].T
                padded = F.pad(x, (1 - b, b, 1 - a, a))
                phases.append(F.conv2d(padded, kernel, self.bias))
            rows.append(torch.stack(phases, dim=-1).reshape(-1, channels, height, 1, 2 * width))
        return torch.cat(rows, dim=3).reshape(-1, channels, 2 * height, 2 * width)
