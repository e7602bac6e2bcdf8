"""Layers shared by the small sequence models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Tensor = torch.Tensor

BLOCK_ROWS = 128
"""Rows whose activations stay in cache; 256 at once cost about 1.6 times as much a row."""


def in_blocks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), on the CPU without gradients in even blocks of at most BLOCK_ROWS rows."""
    if not x.is_cpu or torch.is_grad_enabled() or x.shape[0] <= BLOCK_ROWS:
        return function(x)
    blocks = x.tensor_split(-(-x.shape[0] // BLOCK_ROWS))
    return torch.cat([function(block) for block in blocks])


class ConvNorm(nn.Module):
    """A length-preserving dilated convolution, with batch normalisation while training.

    Args:
        in_channels, out_channels: channels.   kernel_size: odd.   dilation: step between taps.
        batch_norm: False for a model whose normalisation is already part of its weights.

    [B, in_channels, L] -> [B, out_channels, L].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        *,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv1d(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation
        )
        self.norm = nn.BatchNorm1d(out_channels) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Normalised convolution of x."""
        out: Tensor = self.norm(self.conv(x))
        return out


class NormDense(nn.Module):
    """Batch normalisation while training, dropout, a dense layer.

    Args:
        in_features, out_features: sizes.   dropout: rate while training.
        batch_norm: False for a model whose normalisation is already part of its weights.

    [B, in_features] -> [B, out_features].
    """

    def __init__(
        self, in_features: int, out_features: int, dropout: float, *, batch_norm: bool
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_features) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Dense layer of normalised x."""
        out: Tensor = self.dense(self.dropout(self.norm(x)))
        return out


@torch.no_grad()
def fuse_norms(model: nn.Module) -> nn.Module:
    """Move every batch normalisation of `model`, in place, into the layer beside it.

    The result computes the same function in eval mode, and cannot be trained as before. Returns
    the model.
    """
    model.eval()
    for layer in model.modules():
        norm = getattr(layer, "norm", None)
        if not isinstance(norm, nn.BatchNorm1d):
            continue
        if isinstance(layer, ConvNorm):
            layer.conv = fuse_conv_bn_eval(layer.conv, norm)
        elif isinstance(layer, NormDense):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            shift = norm.bias - norm.running_mean * scale
            layer.dense.bias.add_(layer.dense.weight @ shift)
            layer.dense.weight.mul_(scale)
        layer.norm = nn.Identity()
    return model


def count_flops(model: nn.Module, length: int) -> int:
    """Floating-point operations of one row of `length` sites, 2 per multiply-add.

    Counts convolutions (once per site) and dense layers (once per row), which is all but a few per
    cent of the work of the models here.
    """
    total = 0
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d):
            total += 2 * length * layer.weight.numel()
        elif isinstance(layer, nn.Linear):
            total += 2 * layer.weight.numel()
    return total
