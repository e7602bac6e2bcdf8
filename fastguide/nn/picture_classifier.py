"""A small convolutional classifier of small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

Tensor = torch.Tensor

GROUP = 8
"""Channels that are normalised together."""


class PictureClassifier(nn.Module):
    """Convolutions at halving resolutions; a dense layer reads their means and maxima.

    Args:
        outputs: K.   pixels: channels of a picture.
        channels: width at each resolution, the picture's own first; multiples of 8.
        dropout: rate before the dense layer while training.

    [B, pixels, H, W] float -> [B, K] float32. The mean tells how much there is of something, the
    maximum whether it is anywhere.
    """

    def __init__(
        self,
        outputs: int,
        *,
        pixels: int = 1,
        channels: Sequence[int] = (16, 32, 64),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        layers = [_layer(pixels, channels[0], stride=1)]
        for fine, coarse in pairwise(channels):
            layers += [_layer(fine, coarse, stride=2), _layer(coarse, coarse, stride=1)]
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * channels[-1], outputs)
        # convolutions on the CPU take half the time with the channels innermost
        convert_conv2d_weight_memory_format(self, torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [B, K] of pictures x [B, pixels, H, W] float."""
        x = self.layers(x.float().contiguous(memory_format=torch.channels_last)).flatten(2)
        out: Tensor = self.head(self.dropout(torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)))
        return out


def _layer(before: int, after: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1),
        nn.GroupNorm(after // GROUP, after),
        nn.SiLU(),
    )
