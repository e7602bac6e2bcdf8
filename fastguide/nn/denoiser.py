"""A small convolutional denoiser of masked sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fastguide.nn.layers import ConvNorm, in_blocks

Tensor = torch.Tensor


class MaskedDenoiser(nn.Module):
    """Residual dilated convolutions over token and position embeddings.

    Args:
        length: L, number of sites.   vocab_size: V; the mask is token V.
        channels: width of every layer.   kernel_size: taps of a dilated convolution, odd.
        dilations: one residual block each; together they should reach across L.
        dropout: rate inside the blocks while training.
        batch_norm: True to train; False for weights whose normalisation was fused.

    Calling it maps tokens x [B, L] int64 in 0..V and times t [B] float, which are ignored (the
    best prediction from a masked sequence does not depend on t), to logits [B, L, V] float32.
    Source: SUBS parameterisation, Sahoo et al. 2024 (arXiv 2406.07524), section 3.2.
    """

    def __init__(
        self,
        length: int,
        vocab_size: int,
        *,
        channels: int = 96,
        kernel_size: int = 5,
        dilations: Sequence[int] = (1, 2, 4, 8),
        dropout: float = 0.1,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size + 1, channels)
        self.position = nn.Parameter(torch.zeros(channels, length))
        self.blocks = nn.Sequential(
            *(_Block(channels, kernel_size, step, dropout, batch_norm) for step in dilations)
        )
        self.head = nn.Conv1d(channels, vocab_size, 1)
        # a uniform prediction to start from
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits [B, L, V] of tokens x [B, L] int64 in 0..V; t [B] is ignored."""
        return in_blocks(lambda rows: self._logits(self.embed(rows)), x)

    def soft(self, onehot: Tensor, t: Tensor) -> Tensor:
        """Logits [B, L, V] of relaxed tokens [B, L, V + 1] float; t [B] is ignored.

        Equal to `forward` where rows are one-hot; differentiable in `onehot`.
        """
        return self._logits(onehot.to(self.embed.weight.dtype) @ self.embed.weight)

    def _logits(self, embedded: Tensor) -> Tensor:
        x = self.blocks(embedded.transpose(1, 2) + self.position)
        logits: Tensor = self.head(x).transpose(1, 2)
        return logits


class _Block(nn.Module):
    """x + pointwise(relu(dilated convolution(x))), zero at initialisation."""

    def __init__(
        self, channels: int, kernel_size: int, dilation: int, dropout: float, batch_norm: bool
    ) -> None:
        super().__init__()
        self.mix = ConvNorm(channels, channels, kernel_size, dilation, batch_norm=batch_norm)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Conv1d(channels, channels, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.out(self.dropout(self.mix(x).relu()))
        return x + change
