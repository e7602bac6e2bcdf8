"""SMC: sequential Monte Carlo with any value function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion import Diffusion, Step
from fastguide.policy import Choice, Selection
from fastguide.samplers.particles import ParticleSampler

Tensor = torch.Tensor


class SMC(ParticleSampler):
    """Propagate P particles by the pre-trained kernel, weigh by the gain in value, resample.

    With the twist psi(x) = exp(v(x) / alpha), a particle that moves from x to x' multiplies its
    weight by psi(x') / psi(x). Clean samples have psi = exp(r / alpha), and psi = 1 before the
    first step, so the weights of a path multiply to exp(r(x0) / alpha) whatever the value function:
    the weighted particles target p_pre(x) exp(r(x)/alpha), and exp(log_z) is an unbiased estimate
    of Z = E_pre[exp(r/alpha)].

    Args:
        diffusion: what is sampled.   reward: callable(samples [B, ...]) -> [B].
        value: estimate of the soft value; see `Sampler`. It decides the variance, not the target.
        num_particles: P, the size of a group; groups never mix.
        alpha: temperature in reward units per nat, positive.
        resampler: "multinomial", "stratified", "systematic", "residual", "ssp" or "killing".
        ess_threshold: share of P below which the effective number of particles makes a group
            resample; 0 never, 1 at every step.
        output: the sample of a group is drawn by the final weights ("sample"), or is the particle
            of the highest reward ("best").
        on_invalid: see `Sampler`.
    Raises:
        ArgumentError: alpha <= 0, num_particles < 1, or an unknown name.

    `result.particles` [N, P, ...], `log_weights` [N, P] (normalised) and `log_z` [N] hold the
    groups.
    Source: Del Moral, Doucet, Jasra 2006; Wu et al. 2023 (TDS, arXiv 2306.17775), algorithm 1
    without the gradient.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        value: Any = "posterior_mean",
        num_particles: int = 64,
        alpha: float = 0.1,
        resampler: str = "systematic",
        ess_threshold: float = 0.5,
        *,
        output: str = "sample",
        on_invalid: str = "raise",
    ) -> None:
        super().__init__(
            diffusion, reward, value=value, num_particles=num_particles, on_invalid=on_invalid
        )
        self._start(alpha=alpha, resampler=resampler, ess_threshold=ess_threshold, output=output)

    def memory(self, num_chains: int) -> dict[str, Tensor]:
        """Weights, and log psi of each particle, [N, P]."""
        kept = super().memory(num_chains)
        return {**kept, "log_twist": torch.zeros_like(kept["log_weight"])}

    def scores(self, step: Step, num_candidates: int) -> bool:
        """Always."""
        return True

    def select(self, selection: Selection) -> Choice:
        """Weigh the moved particles and resample."""
        old = selection.memory["log_twist"]
        twist = selection.values.view(old.shape) / self.alpha
        index = torch.arange(old.numel(), device=old.device)
        return self.reweigh(selection, index, twist - old, {"log_twist": twist})
