"""SVDD: soft value-based decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion import Diffusion, Step
from fastguide.errors import ArgumentError
from fastguide.policy import Choice, Selection
from fastguide.samplers.base import Sampler

Tensor = torch.Tensor


def choose_within(selection: Selection, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """One candidate of each row in proportion to exp(value / alpha), by `ops.select`.

    Returns:
        index [R] int64 into the R*K candidates; log of the mean weight [R]; ess [R] float64.
    """
    values = selection.values
    index, log_mean_weight, ess, _ = ops.select(
        values,
        alpha=alpha,
        seed=selection.seed,
        chains=selection.chains,
        step=selection.step.counter,
        particles=selection.particles,
    )
    start = torch.arange(values.shape[0], device=index.device) * values.shape[1]
    return index + start, log_mean_weight, ess


class SVDD(Sampler):
    """At every step draw M candidates from the pre-trained kernel and pick one by its soft value.

    For each chain and step: x^(1..M) ~ p(. | x), w_m = exp(v(x^(m)) / alpha), and the next state is
    x^(j) with j ~ Categorical(w). Clean candidates are weighted by the reward itself. With the
    exact soft value and M to infinity this samples p_pre(x) exp(r(x)/alpha); no gradient of r and
    no training is needed.

    Args:
        diffusion: what is sampled.
        reward: callable(samples [B, ...]) -> [B].
        value: estimate of the soft value; see `Sampler`.
        num_candidates: M; 1 is `Unguided`.
        alpha: temperature in reward units per nat; 0 takes the best candidate (first on ties),
            whose strength depends on M and num_steps.
        select_initial: also choose the initial state among M draws of the prior. A masked chain
            starts from one state, so there is nothing to choose.
        on_invalid: see `Sampler`.
    Raises:
        ArgumentError: alpha < 0 or num_candidates < 1.

    Source: Li et al. 2024 (arXiv 2408.08252), algorithm 1.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        value: Any = "posterior_mean",
        num_candidates: int = 10,
        alpha: float = 0.1,
        select_initial: bool = False,
        *,
        on_invalid: str = "raise",
    ) -> None:
        if not alpha >= 0:
            raise ArgumentError(
                f"alpha must not be negative (it is a temperature in reward units), got {alpha}; "
                "alpha=0 takes the best candidate"
            )
        super().__init__(
            diffusion, reward, value=value, num_candidates=num_candidates, on_invalid=on_invalid
        )
        self.alpha = float(alpha)
        self.select_initial = select_initial

    def scores(self, step: Step, num_candidates: int) -> bool:
        """Wherever there is more than one candidate."""
        return num_candidates > 1

    def select(self, selection: Selection) -> Choice:
        """One candidate per row by `ops.select`."""
        index, log_mean_weight, ess = choose_within(selection, self.alpha)
        return Choice(index, ess, valid=log_mean_weight > float("-inf"))

    def settings(self) -> dict[str, Any]:
        """The sampler's name and arguments."""
        return {**super().settings(), "alpha": self.alpha, "select_initial": self.select_initial}
