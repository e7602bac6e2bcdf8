"""NestedSMC: SVDD within each particle, SMC across particles; and SVDD-R."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion import Diffusion, Step
from fastguide.errors import ArgumentError
from fastguide.policy import Choice, Final, Selection
from fastguide.rng import Purpose
from fastguide.samplers.base import Sampler
from fastguide.samplers.particles import ParticleSampler
from fastguide.samplers.svdd import choose_within

Tensor = torch.Tensor


class NestedSMC(ParticleSampler):
    """Each of P particles picks one of its M candidates by value; the outer weights make it exact.

    A particle at x whose candidates have twists psi_m multiplies its weight by mean(psi_m) / psi(x)
    (psi = 1 before the first step) and moves as in `SVDD`. For any value function the weighted
    particles target p_pre(x) exp(r(x)/alpha), and exp(log_z) is unbiased: the bias that SVDD keeps
    at a finite M, or with an inexact value, is carried by the weights.

    Args:
        num_particles: P.   num_candidates: M.   The others: see `SMC`.
    Raises:
        ArgumentError: alpha <= 0, a size below 1, or an unknown name.

    Source: Naesseth, Lindsten, Schon 2015 (arXiv 1502.02536); Li et al. 2024 (arXiv 2408.08252) for
    the inner step.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        value: Any = "posterior_mean",
        num_particles: int = 16,
        num_candidates: int = 4,
        alpha: float = 0.1,
        resampler: str = "systematic",
        ess_threshold: float = 0.5,
        *,
        output: str = "sample",
        on_invalid: str = "raise",
    ) -> None:
        super().__init__(
            diffusion,
            reward,
            value=value,
            num_particles=num_particles,
            num_candidates=num_candidates,
            on_invalid=on_invalid,
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
        """One candidate per particle, then weights and ancestors."""
        old = selection.memory["log_twist"]
        index, log_mean_twist, _ = choose_within(selection, self.alpha)
        twist = selection.values.flatten()[index].view(old.shape) / self.alpha
        increment = log_mean_twist.view(old.shape) - old
        return self.reweigh(selection, index, increment, {"log_twist": twist})


class SVDDR(Sampler):
    """SVDD on P chains, where at every step the worst few are replaced by copies of good ones.

    After the inner choice, replaced * P chains (rounded, at least one) of the lowest value are
    overwritten by chains drawn in proportion to exp(v / alpha). It trades diversity for reward; no
    weights are kept, so the particles target no known law.

    Args:
        num_particles: P chains of a group.   num_candidates: M.
        replaced: share of the chains that a step replaces, in [0, 1].
        alpha: temperature in reward units per nat; 0 takes the best candidate and the best chain.
        The others: see `SVDD`.
    Raises:
        ArgumentError: a share outside [0, 1], alpha < 0, or a size below 1.

    The sample of a group is one of its chains at random; `result.particles` has all of them.
    Source: Li et al. 2024 (arXiv 2408.08252), algorithm 2.
    """

    couples = True

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        value: Any = "posterior_mean",
        num_particles: int = 64,
        num_candidates: int = 10,
        alpha: float = 0.1,
        replaced: float = 0.04,
        *,
        on_invalid: str = "raise",
    ) -> None:
        if not alpha >= 0:
            raise ArgumentError(f"alpha must not be negative, got {alpha}")
        if not 0 <= replaced <= 1:
            raise ArgumentError(
                f"replaced must be a share of the particles in [0, 1], got {replaced}"
            )
        super().__init__(
            diffusion,
            reward,
            value=value,
            num_particles=num_particles,
            num_candidates=num_candidates,
            on_invalid=on_invalid,
        )
        self.alpha = float(alpha)
        self.replaced = float(replaced)

    def scores(self, step: Step, num_candidates: int) -> bool:
        """Always: chains are compared even where candidates are not."""
        return True

    def select(self, selection: Selection) -> Choice:
        """One candidate per chain, then the exchange within each group."""
        index, log_mean, ess = choose_within(selection, self.alpha)
        size = self.num_particles
        values = selection.values.flatten()[index].view(-1, size)
        num = min(max(round(self.replaced * size), 1), size) if self.replaced else 0
        if num and size > 1:
            chosen = index.view(-1, size)
            worst = values.argsort(dim=1, stable=True)[:, :num]
            chains = selection.chains.view(-1, size)[:, 0]
            drawn = ops.select(
                values.repeat_interleave(num, dim=0),
                alpha=self.alpha,
                seed=selection.seed,
                chains=chains.repeat_interleave(num),
                step=selection.step.counter,
                particles=torch.arange(num, device=chains.device).repeat(len(chains)),
                purpose=Purpose.RESAMPLE,
            ).index.view(-1, num)
            index = chosen.scatter(1, worst, chosen.gather(1, drawn)).flatten()
        return Choice(index, ess, valid=log_mean > float("-inf"))

    def finish(self, rewards: Tensor | None, selection: Selection) -> Final:
        """One chain of each group, all alike."""
        size = self.num_particles
        chains = selection.chains.view(-1, size)[:, 0]
        equal = torch.zeros((len(chains), size), dtype=torch.float64, device=chains.device)
        drawn = ops.select(
            equal,
            alpha=1.0,
            seed=selection.seed,
            chains=chains,
            step=selection.step.counter,
            purpose=Purpose.FINAL,
        )
        index = drawn.index + torch.arange(len(chains), device=chains.device) * size
        return Final(index, equal.log_softmax(dim=1))

    def settings(self) -> dict[str, Any]:
        """The sampler's name and arguments."""
        return {**super().settings(), "alpha": self.alpha, "replaced": self.replaced}
