"""Ensembles of small convolutional regressors of fixed-length sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fastguide.nn.layers import ConvNorm, NormDense, in_blocks

Tensor = torch.Tensor


class SequenceRegressor(nn.Module):
    """Residual convolutions, learned position-weighted sums, a dense layer, one output per head.

    Args:
        length: L, number of sites.   vocab_size: V.   num_heads: outputs.
        channels: width of the convolutions.   kernel_size: taps, odd.   stem_size: taps of the
            first convolution, odd.
        dilations: one residual convolution each. A dilation of 3 steps from codon to codon.
        features: channels whose weighted sums over sites the dense layer reads.
        sums: weighted sums per feature; the first three start as the three reading frames.
        hidden: width of the dense layer.   dropout: rate before and after the dense layer.
        conv_dropout: rate of the convolutions.
        batch_norm: True to train; False for weights whose normalisation was fused.

    [B, L, V] float probabilities or one-hot rows -> [B, num_heads].
    """

    def __init__(
        self,
        length: int,
        vocab_size: int,
        num_heads: int,
        *,
        channels: int = 64,
        kernel_size: int = 5,
        stem_size: int = 7,
        dilations: Sequence[int] = (1, 3, 3, 3),
        features: int = 32,
        sums: int = 8,
        hidden: int = 128,
        dropout: float = 0.2,
        conv_dropout: float = 0.1,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.stem = ConvNorm(vocab_size, channels, stem_size, batch_norm=batch_norm)
        self.convs = nn.ModuleList(
            ConvNorm(channels, channels, kernel_size, step, batch_norm=batch_norm)
            for step in dilations
        )
        self.project = ConvNorm(channels, features, 1, batch_norm=batch_norm)
        self.pool = nn.Parameter(_frame_sums(features, sums, length))
        self.dense = NormDense(features * sums, hidden, dropout, batch_norm=batch_norm)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, num_heads)
        self.conv_dropout = nn.Dropout(conv_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [B, num_heads] of rows x [B, L, V] float."""
        x = self.stem(x.transpose(1, 2)).relu()
        for conv in self.convs:
            x = x + self.conv_dropout(conv(x).relu())
        x = self.project(x).relu()
        pooled = torch.einsum("bfl,fsl->bfs", x, self.pool).flatten(1)
        out: Tensor = self.head(self.dropout(self.dense(pooled).relu()))
        return out


class Ensemble(nn.Module):
    """Mean of the members' heads, put back into the units of the measurements.

    Args:
        members: networks [B, L, V] -> [B, H] that predict standardised targets.
        centre, scale: [H] mean and standard deviation of each head's training targets.

    [B, L, V] float -> [B, H] float32.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, members: Sequence[nn.Module], centre: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("centre", centre.float())
        self.register_buffer("scale", scale.float())

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [B, H] of rows x [B, L, V] float, in the units of the measurements."""
        return in_blocks(self._outputs, x)

    def _outputs(self, x: Tensor) -> Tensor:
        mean = torch.stack([member(x) for member in self.members]).mean(dim=0)
        out: Tensor = self.centre + self.scale * mean
        return out


def _frame_sums(features: int, sums: int, length: int) -> Tensor:
    """Weights [features, sums, length]: the sums of each reading frame, then random directions.

    Frames are counted from the last site, where translation starts.
    """
    weights = torch.randn(features, sums, length) / length**0.5
    site = torch.arange(length)
    for frame in range(min(sums, 3)):
        weights[:, frame] = ((length - 1 - site) % 3 == frame).float() / (length / 3) ** 0.5
    return weights
