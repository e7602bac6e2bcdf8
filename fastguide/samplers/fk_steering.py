"""FKSteering: particles weighed by potentials of the predicted reward, every few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion import Diffusion, Step
from fastguide.errors import ArgumentError
from fastguide.policy import Choice, Selection
from fastguide.samplers.particles import ParticleSampler

Tensor = torch.Tensor

POTENTIALS = ("difference", "max", "sum", "immediate")


class FKSteering(ParticleSampler):
    """Particles weighed at every `interval`-th step by a potential G_k of the values so far.

    With r_1, r_2, ... the values at those steps, log G_k times alpha is

        difference   r_k - r_(k-1), with r_0 = 0
        max          max(r_1, ..., r_k)
        sum          r_1 + ... + r_k
        immediate    r_k

    and the last step, with the reward itself, gives exp(r(x0)/alpha) / prod G_k. So the potentials
    of a path multiply to exp(r(x0)/alpha) for each of them, and the weighted particles target
    p_pre(x) exp(r(x)/alpha).

    Args:
        potential: one of the above.
        interval: steps from one potential to the next; others score nothing.
        The others: see `SMC`.
    Raises:
        ArgumentError: interval < 1, alpha <= 0, num_particles < 1, or an unknown name.

    Candidates are scored where they stand, with the denoiser output that the next step uses anyway.
    Source: Singhal et al. 2025 (arXiv 2501.06848), section 4.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        value: Any = "posterior_mean",
        num_particles: int = 4,
        alpha: float = 0.1,
        potential: str = "difference",
        interval: int = 20,
        resampler: str = "systematic",
        ess_threshold: float = 0.5,
        *,
        output: str = "sample",
        on_invalid: str = "raise",
    ) -> None:
        if potential not in POTENTIALS:
            raise ArgumentError(
                f"potential must be one of {', '.join(POTENTIALS)}, got {potential!r}"
            )
        if interval < 1:
            raise ArgumentError(f"interval must be at least 1 step, got {interval}")
        super().__init__(
            diffusion, reward, value=value, num_particles=num_particles, on_invalid=on_invalid
        )
        self._start(alpha=alpha, resampler=resampler, ess_threshold=ess_threshold, output=output)
        self.potential = potential
        self.interval = interval

    def memory(self, num_chains: int) -> dict[str, Tensor]:
        """Weights; the log-product of the potentials; and what the next one needs, in nats."""
        kept = super().memory(num_chains)
        product = torch.zeros_like(kept["log_weight"])
        # no value has been seen: the largest of none is -inf, not 0 (rewards may be negative)
        seen = torch.full_like(product, float("-inf") if self.potential == "max" else 0.0)
        return {**kept, "log_product": product, "seen": seen}

    def scores(self, step: Step, num_candidates: int) -> bool:
        """At every `interval`-th step, and at the last."""
        return step.clean or (step.index >= 0 and (step.index + 1) % self.interval == 0)

    def select(self, selection: Selection) -> Choice:
        """The potential, then weights and ancestors."""
        product, seen = selection.memory["log_product"], selection.memory["seen"]
        value = selection.values.view(product.shape) / self.alpha
        if selection.step.clean:
            potential = value - product
        elif self.potential == "difference":
            potential, seen = value - seen, value
        elif self.potential == "max":
            potential = seen = torch.maximum(seen, value)
        elif self.potential == "sum":
            potential = seen = seen + value
        else:
            potential = value
        # an invalid value has no weight, whatever the largest so far
        potential = potential.where(value > float("-inf"), float("-inf"))
        index = torch.arange(product.numel(), device=product.device)
        kept = {"log_product": product + potential, "seen": seen}
        return self.reweigh(selection, index, potential, kept)

    def settings(self) -> dict[str, Any]:
        """The sampler's name and arguments."""
        return {
            **super().settings(),
            "potential": self.potential,
            "interval": self.interval,
        }
