"""What `fastguide.zoo.load` returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from fastguide.diffusion import GaussianDiffusion, MaskedDiffusion

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


class PictureReward(Protocol):
    """A reward of pictures."""

    deterministic: bool

    def __call__(self, samples: Tensor) -> Tensor:
        """Reward [B] float32 of samples [B, C, H, W] float in [-1, 1]; differentiable in them."""


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


@dataclass(frozen=True)
class PictureTask:
    """Pictures to guide, with their pre-trained models.

    Attributes:
        name: as in `fastguide.zoo.names()`.
        diffusion: the pre-trained model of natural samples [B, C, H, W] float in [-1, 1].
        rewards: guides, by name.   oracles: judges, by the same names; learned ones are trained on
            a disjoint half of the data.
        default: the name of `reward` and `oracle`.
        encode: images [B, H, W] uint8 -> samples.   decode: the way back, clamping.
        references: [N, H, W] uint8, training data to compare with.
        nearest_distance: samples -> [B] float32, distance to the nearest reference. The card holds
            the distances of held-out data, by which it can be read.
        card: data, splits, metrics, recipe and hashes, as stored beside the weights.
    """

    name: str
    diffusion: GaussianDiffusion
    rewards: Mapping[str, PictureReward]
    oracles: Mapping[str, PictureReward]
    default: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    references: Tensor
    nearest_distance: Callable[[Tensor], Tensor]
    card: dict[str, Any]

    @property
    def reward(self) -> PictureReward:
        """The default guide."""
        return self.rewards[self.default]

    @property
    def oracle(self) -> PictureReward:
        """The default judge."""
        return self.oracles[self.default]
