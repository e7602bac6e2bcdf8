"""BlockwiseBestOfN: plain chains for a block of steps, then one of them for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion import Diffusion, Step
from fastguide.errors import ArgumentError
from fastguide.policy import Choice, Final, Selection
from fastguide.samplers.base import Sampler, best_of_each
from fastguide.samplers.svdd import choose_within

Tensor = torch.Tensor


class BlockwiseBestOfN(Sampler):
    """Run N plain chains from one state for `block` steps, keep one by its value, and repeat.

    block = 1 is `SVDD` with N candidates, bit for bit; a block as long as the run is best-of-N.

    Args:
        diffusion: what is sampled.   reward: callable(samples [B, ...]) -> [B].
        value: estimate of the soft value; see `Sampler`.
        num_candidates: N chains.   block: steps between choices; the last step always chooses.
        alpha: temperature in reward units per nat; 0 takes the best (first on ties).
        on_invalid: see `Sampler`.
    Raises:
        ArgumentError: alpha < 0, block < 1 or num_candidates < 1.

    Source: Singh et al. 2025 (CoDe, arXiv 2502.00968).
    """

    couples = True

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        value: Any = "posterior_mean",
        num_candidates: int = 10,
        block: int = 8,
        alpha: float = 0.0,
        *,
        on_invalid: str = "raise",
    ) -> None:
        if not alpha >= 0:
            raise ArgumentError(f"alpha must not be negative, got {alpha}")
        if block < 1:
            raise ArgumentError(f"block must be at least 1 step, got {block}")
        # whole chains side by side are particles to the engine
        super().__init__(
            diffusion, reward, value=value, num_particles=num_candidates, on_invalid=on_invalid
        )
        self.block = block
        self.alpha = float(alpha)

    def scores(self, step: Step, num_candidates: int) -> bool:
        """At the end of each block, and at the last step."""
        return step.clean or (step.index + 1) % self.block == 0

    def select(self, selection: Selection) -> Choice:
        """One chain of each group, which all go on from."""
        size = self.num_particles
        group = Selection(
            selection.step,
            selection.seed,
            selection.chains.view(-1, size)[:, 0],
            selection.particles.view(-1, size)[:, 0],
            selection.values.view(-1, size),
            selection.memory,
        )
        index, log_mean, ess = choose_within(group, self.alpha)
        shared = index[:, None].expand(-1, size).flatten()
        return Choice(shared, ess, valid=log_mean > float("-inf"))

    def finish(self, rewards: Tensor | None, selection: Selection) -> Final:
        """They are all the same."""
        assert rewards is not None
        return Final(best_of_each(rewards, self.num_particles))

    def settings(self) -> dict[str, Any]:
        """The sampler's name and arguments."""
        common = super().settings()
        del common["num_particles"]
        return {
            **common,
            "num_candidates": self.num_particles,
            "block": self.block,
            "alpha": self.alpha,
        }
