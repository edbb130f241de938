"""The score network in the operations that compilers make most of: the same function of (x, c, t).

Two forms. That for CPUs, in fp32, has nothing that makes an engine leave the order of values in
memory that its convolutions want. That for GPUs, in fp16, has as few kernels a step as TensorRT-RTX
1.7 can be brought to: at these sizes a kernel takes little longer than its launch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wdm_export.unet import TimeEmbedding, UNet, Upsample

_Replaced = TypeVar("_Replaced", bound=nn.Module)

# Largest group, in values, that TensorRT-RTX 1.7 normalises in one kernel without counters that
# another kernel has to clear: what one thread block holds in registers (1024 threads of 16).
ONE_BLOCK = 16384
# A doubled position meets the 3 taps of a row as 2: the left copy as (0, 1 + 2), the right as
# (0 + 1, 2). Each row here is what a value gives to one of the four positions around it.
_TAPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


class CpuForm(nn.Module):
    """The network in fp32, with few multiplications and in any order of values in memory."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        _replace(self.network, nn.GroupNorm, MomentNorm)
        _replace(self.network, Upsample, TransposedUpsample)
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
        _replace(self.network, nn.GroupNorm, BlockNorm)
        # Not .float(): the frequencies are no fp16 numbers, and 1000 t multiplies their error.
        self.network.add_module("time", FlatTimeEmbedding(network.time))
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
        first, first_bias, second, second_bias = self.embedding.layers.parameters()
        h = self.embedding.sinusoids(t)
        h = F.silu(_flat_linear(h, first, first_bias))
        return F.silu(_flat_linear(h, second, second_bias))


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


class MomentNorm(nn.Module):
    """Group norm from each channel's first two moments: no group is ever gathered in memory.

    Engines that keep a position's channels together (OpenVINO, for AVX-512 and AMX) rearrange all
    values before and after a norm over groups, not before a mean over positions.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm, channels = self.norm, x.shape[1]
        mean, square = self._of_groups(x), self._of_groups(x * x)
        # Rounding may leave less than nothing of it where all values of a group are alike.
        variance = F.relu(square - mean * mean)
        scale = norm.weight.reshape(1, norm.num_groups, -1) / torch.sqrt(variance + norm.eps)
        shift = norm.bias.reshape(1, norm.num_groups, -1) - mean * scale
        return x * scale.reshape(-1, channels, 1, 1) + shift.reshape(-1, channels, 1, 1)

    def _of_groups(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> means over groups, (n, groups, 1)."""
        groups = self.norm.num_groups
        of_channels = x.mean(dim=(2, 3)).reshape(-1, groups, x.shape[1] // groups)
        return of_channels.mean(dim=2, keepdim=True)


def _replace(
    module: nn.Module, kind: type[_Replaced], form: Callable[[_Replaced], nn.Module]
) -> None:
    """Put the form of it in the place of every module of a kind."""
    for name, child in list(module.named_children()):
        if isinstance(child, kind):
            module.add_module(name, form(child))
        else:
            _replace(child, kind, form)


class TransposedUpsample(nn.Module):
    """`Upsample` with 4/9 of its multiplications, as one transposed convolution of 4 x 4.

    Of the 3 x 3 taps around a doubled position some meet the same value: their weights add up. The
    sums are constants that engines fold when they load a graph; the weights themselves stay what
    they were.
    """

    taps: Tensor

    def __init__(self, up: Upsample) -> None:
        super().__init__()
        self.weight, self.bias = up.weight, up.bias
        self.register_buffer("taps", torch.tensor(_TAPS), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = (self.taps @ self.weight @ self.taps.T).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)
