"""What `fastguide.zoo.load` returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from fastguide.diffusion import MaskedDiffusion

Tensor = torch.Tensor


class Reward(Protocol):
    """A differentiable reward of token sequences."""

    deterministic: bool

    def __call__(self, samples: Tensor) -> Tensor:
        """Reward [B] float32 of clean samples [B, L] int64; no gradient."""

    def heads(self, samples: Tensor) -> Tensor:
        """The measured quantities [B, H] float32 whose mean the reward is."""

    def soft(self, probs: Tensor) -> Tensor:
        """Reward [B] float32 of token probabilities [B, L, V] float; differentiable in them."""


@dataclass(frozen=True)
class Task:
    """A design problem with its pre-trained models.

    Attributes:
        name: as in `fastguide.zoo.names()`.
        diffusion: the pre-trained model of natural samples.
        reward: guides.   oracle: judges; trained on a disjoint half of the measurements.
        encode: list of strings -> samples [B, L] int64.   decode: the way back.
        card: data, split, metrics, recipe and hashes, as stored beside the weights.
    """

    name: str
    diffusion: MaskedDiffusion
    reward: Reward
    oracle: Reward
    encode: Callable[[Sequence[str]], Tensor]
    decode: Callable[[Tensor], list[str]]
    card: dict[str, Any]
