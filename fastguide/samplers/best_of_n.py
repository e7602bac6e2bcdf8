"""Best-of-N: draw N plain samples per output, keep the best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion import Diffusion
from fastguide.errors import ArgumentError
from fastguide.policy import Final, Selection
from fastguide.samplers.base import Sampler, best_of_each

Tensor = torch.Tensor


class BestOfN(Sampler):
    """Of `num_candidates` plain samples the one with the highest reward (first on ties).

    Args:
        diffusion: what is sampled.   reward: callable(samples [B, ...]) -> [B].
        num_candidates: plain samples per output; 1 is `Unguided`.
        on_invalid: see `Sampler`.
    Raises:
        ArgumentError: num_candidates < 1.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        num_candidates: int = 10,
        *,
        on_invalid: str = "raise",
    ) -> None:
        # to the engine these are whole chains side by side, that is, particles
        if isinstance(num_candidates, int) and num_candidates < 1:
            raise ArgumentError(f"num_candidates must be at least 1, got {num_candidates}")
        super().__init__(diffusion, reward, num_particles=num_candidates, on_invalid=on_invalid)

    def finish(self, rewards: Tensor | None, selection: Selection) -> Final:
        """The best particle of each chain."""
        assert rewards is not None
        return Final(best_of_each(rewards, self.num_particles))

    def settings(self) -> dict[str, Any]:
        """The sampler's name and arguments."""
        return {
            "method": "BestOfN",
            "num_candidates": self.num_particles,
            "on_invalid": self.on_invalid,
        }
