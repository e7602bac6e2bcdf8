"""A compact U-Net that denoises small pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from fastguide.nn.attention import attention

Tensor = torch.Tensor

GROUP = 8
"""Channels that are normalised together."""


class UNet(nn.Module):
    """Residual blocks at halving resolutions, attention at the lowest, on patches of pixels.

    Args:
        pixels: channels of a picture.   patch: side of the squares that become channels, so that
            every convolution runs at 1/patch of the resolution or below.
        channels: width at each resolution, the finest first; multiples of 8.
        heads: of the attention.   features: width of the time embedding, even.

    Calling it maps pictures x [B, pixels, H, W] float and times t [B], on any scale from 0 to
    about 1000, to [B, pixels, H, W] float32. H and W are multiples of
    patch · 2^(len(channels) - 1).
    Sources: Ho et al. 2020 (arXiv 2006.11239), appendix B; patches as in Hoogeboom et al. 2023
    (arXiv 2301.11093); scale and shift by time, Dhariwal and Nichol 2021 (arXiv 2105.05233).
    """

    def __init__(
        self,
        *,
        pixels: int = 1,
        patch: int = 2,
        channels: Sequence[int] = (32, 96),
        heads: int = 3,
        features: int = 64,
    ) -> None:
        super().__init__()
        self.features = features
        width = 2 * features
        self.time = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        finest, lowest = channels[0], channels[-1]
        self.into = nn.PixelUnshuffle(patch)
        self.stem = nn.Conv2d(pixels * patch**2, finest, 3, padding=1)
        self.down = nn.ModuleList(_Block(size, width) for size in channels[:-1])
        self.shrink = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(channels)
        )
        self.before = _Block(lowest, width)
        self.mix = _Attention(lowest, heads)
        self.after = _Block(lowest, width)
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairwise(channels)
        )
        self.up = nn.ModuleList(_Block(size, width) for size in channels[:-1])
        self.norm = nn.GroupNorm(finest // GROUP, finest)
        self.head = nn.Conv2d(finest, pixels * patch**2, 3, padding=1)
        self.out = nn.PixelShuffle(patch)
        _zero(self.head)
        # convolutions on the CPU take half the time with the channels innermost
        convert_conv2d_weight_memory_format(self, torch.channels_last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Prediction [B, pixels, H, W] of pictures x at times t [B]."""
        embedded = self.time(_waves(t, self.features))
        x = self.stem(self.into(x.float()).contiguous(memory_format=torch.channels_last))
        kept = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            x = block(x, embedded)
            kept.append(x)
            x = shrink(x)
        x = self.after(self.mix(self.before(x, embedded)), embedded)
        for block, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            x = block(grow(x) + kept.pop(), embedded)
        out: Tensor = self.out(self.head(nn.functional.silu(self.norm(x))))
        return out.contiguous()


class _Block(nn.Module):
    """x + a change that depends on the time; zero at initialisation."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(channels // GROUP, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(width, 2 * channels)
        self.norm2 = nn.GroupNorm(channels // GROUP, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        _zero(self.conv2)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """Changed x [B, C, H, W], given the embedded times [B, width]."""
        silu = nn.functional.silu
        scale, shift = self.modulate(silu(embedded))[..., None, None].chunk(2, dim=1)
        change = self.norm2(self.conv1(silu(self.norm1(x)))) * (1 + scale) + shift
        out: Tensor = x + self.conv2(silu(change))
        return out


class _Attention(nn.Module):
    """x + attention among all sites; zero at initialisation."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(channels // GROUP, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        _zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        """Mixed x [B, C, H, W]."""
        sites = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(sites).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = self.out(attention(q, k, v).flatten(2)).transpose(1, 2)
        out: Tensor = x + mixed.reshape(x.shape)
        return out


def _waves(t: Tensor, features: int) -> Tensor:
    """Cosines and sines [B, features] of times t [B], with periods from 2 pi to 2 pi · 10^4."""
    steps = torch.arange(features // 2, device=t.device, dtype=torch.float32) / (features // 2)
    angle = t.float()[:, None] * torch.exp(-math.log(1e4) * steps)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
