"""The conditional score network: a U-Net over wavelet coefficients (or pixels).

Residual blocks after Ho et al. 2020 (arXiv 2006.11239), self-attention after the coarsest encoder
blocks.
Widths are multiples of 64 in the shipped model, decoder concatenations included, because GPU
compilers fuse group norm and SiLU only then. Parts touch nothing but (x, condition, t): no noise,
schedule or normalisation lives here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wdm_export.config import NetworkConfig

_TIME_SCALE = 1000.0  # spreads t in [0, 1] over the periods 2 pi .. 2e4 pi of the sinusoids


class TimeEmbedding(nn.Module):
    """t (n,) in [0, 1] -> (n, channels); always computed in fp32."""

    frequencies: Tensor

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        rate = -math.log(10_000.0) / (features // 2 - 1)
        self.register_buffer(
            "frequencies", torch.exp(rate * torch.arange(features // 2)), persistent=False
        )
        self.layers = nn.Sequential(
            nn.Linear(features, channels), nn.SiLU(), nn.Linear(channels, channels), nn.SiLU()
        )

    def sinusoids(self, t: Tensor) -> Tensor:
        """What the layers take: (n, features)."""
        angles = _TIME_SCALE * t[:, None] * self.frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=1)

    def forward(self, t: Tensor) -> Tensor:
        return self.layers(self.sinusoids(t))


def _group_norm(channels: int, group: int) -> nn.GroupNorm:
    """Groups of ``group`` channels or the next fewer that divide them evenly, but at least two.

    Of one group of all channels TensorRT 10.16 is known to compute something else.
    """
    return nn.GroupNorm(channels // math.gcd(channels // 2, group), channels)


def _start_at_zero(conv: nn.Conv2d) -> None:
    """What it adds is nothing until it has learnt: the block before it passes its input on."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv, plus the time's term (n or 1, outputs, 1, 1), norm, SiLU, conv, plus input.

    The term is the block's own ``time`` of the embedding: `UNet.time_terms` makes those of all.
    """

    def __init__(self, inputs: int, outputs: int, time_channels: int, group: int) -> None:
        super().__init__()
        self.norm1 = _group_norm(inputs, group)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time_channels, outputs)
        self.norm2 = _group_norm(outputs, group)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        _start_at_zero(self.conv2)

    def forward(self, x: Tensor, term: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + term
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.skip(x)


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions."""

    def __init__(self, channels: int, head_channels: int, group: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = _group_norm(channels, group)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        _start_at_zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        c, h, w = x.shape[1:]
        # -1, not the batch: exported graphs then hold the target shape as a constant
        qkv = self.qkv(self.norm(x)).reshape(-1, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(3, 4).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(2, 3).reshape(-1, c, h, w))


class Upsample(nn.Conv2d):
    """Each position doubled along both axes, then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """v(x, condition, t): (b, s, h, w), (b, s, h, w), (b,) or (1,) -> (b, s, h, w).

    s is the number of subbands; h and w are multiples of 2^(depths - 1).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        subbands = config.wavelet.subbands
        widths = [config.base_channels * m for m in config.multipliers]
        group = config.norm_channels
        emb = 4 * config.base_channels
        self.time = TimeEmbedding(config.base_channels, emb)
        self.stem = nn.Conv2d(2 * subbands, widths[0], 3, padding=1)

        def attention(depth: int) -> nn.Module:
            coarsest = depth == len(widths) - 1
            if not (config.attention and coarsest):
                return nn.Identity()
            return SelfAttention(widths[depth], config.head_channels, group)

        skips = [widths[0]]
        width = widths[0]
        self.encoder = nn.ModuleList()
        self.encoder_attention = nn.ModuleList()
        self.down = nn.ModuleList()
        for depth, target in enumerate(widths):
            for _ in range(config.blocks):
                self.encoder.append(ResidualBlock(width, target, emb, group))
                self.encoder_attention.append(attention(depth))
                width = target
                skips.append(width)
            if depth < len(widths) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle1 = ResidualBlock(width, width, emb, group)
        self.middle2 = ResidualBlock(width, width, emb, group)
        self.decoder = nn.ModuleList()
        self.up = nn.ModuleList()
        for depth in reversed(range(len(widths))):
            for _ in range(config.blocks + 1):
                self.decoder.append(ResidualBlock(width + skips.pop(), widths[depth], emb, group))
                width = widths[depth]
            if depth:
                self.up.append(Upsample(width))
        self.norm = _group_norm(width, group)
        self.head = nn.Conv2d(width, subbands, 3, padding=1)
        _start_at_zero(self.head)

    def residual_blocks(self) -> list[ResidualBlock]:
        """Every block, in the order in which they compute."""
        return [*self.encoder, self.middle1, self.middle2, *self.decoder]

    def time_terms(self, t: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """What the time adds to each of `residual_blocks`: (n, channels, 1, 1)."""
        emb = self.time(t).to(dtype)
        return [block.time(emb)[:, :, None, None] for block in self.residual_blocks()]

    def forward(self, x: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        return self.body(torch.cat((x, condition), dim=1), self.time_terms(t, x.dtype))

    def body(self, inputs: Tensor, terms: Sequence[Tensor]) -> Tensor:
        """v from x and the condition as channels of one tensor, and `time_terms`."""
        h, term = self.stem(inputs), iter(terms)
        skips, blocks = [h], self.config.blocks
        for i, (block, attend) in enumerate(zip(self.encoder, self.encoder_attention, strict=True)):
            h = attend(block(h, next(term)))
            skips.append(h)
            if (i + 1) % blocks == 0 and i // blocks < len(self.down):
                h = self.down[i // blocks](h)
                skips.append(h)
        h = self.middle2(self.middle1(h, next(term)), next(term))
        for i, block in enumerate(self.decoder):
            h = block(torch.cat((h, skips.pop()), dim=1), next(term))
            if (i + 1) % (blocks + 1) == 0 and i // (blocks + 1) < len(self.up):
                h = self.up[i // (blocks + 1)](h)
        return self.head(F.silu(self.norm(h)))


def parameter_count(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in network.parameters())
