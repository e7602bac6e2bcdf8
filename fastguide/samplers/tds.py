"""TDS and DAS: particles whose proposals follow the gradient of their own weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion import Diffusion, Step
from fastguide.errors import ArgumentError
from fastguide.evaluation import Rows
from fastguide.evaluation.gradients import posterior_mean_value
from fastguide.policy import Choice, Selection
from fastguide.samplers.guidance import Differentiated, check_scale
from fastguide.samplers.particles import ParticleSampler

Tensor = torch.Tensor

HALVINGS = 40
"""Bisections of the adaptive temperature: 2**-40 of its range."""


class TDS(ParticleSampler):
    """SMC whose proposals are shifted as in `DPS`, and whose weights undo what the shift does.

    The twist is psi(x) = exp(r(x0_hat(x)) / alpha); a particle that moves from x to x' multiplies
    its weight by psi(x') / psi(x) times the plain kernel over the shifted one. The weighted
    particles target p_pre(x) exp(r(x)/alpha), and exp(log_z) is unbiased, whatever the shift.

    Args:
        diffusion: what is sampled.
        reward: differentiable, callable(x0 [B, ...]) -> [B]; masked: with `soft`, see `DPS`.
        num_particles: P.   alpha: temperature in reward units per nat, positive.
        guidance_scale: of the shift; 0 is `SMC`.   The others: see `SMC`.
    Raises:
        ArgumentError: alpha <= 0, num_particles < 1, or an unknown name.
        GradientError: no gradient can be taken.

    Each step runs one forward and one backward pass of a particle.
    Source: Wu et al. 2023 (arXiv 2306.17775), algorithm 1.
    """

    guides = True

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        num_particles: int = 16,
        alpha: float = 0.1,
        guidance_scale: float = 1.0,
        resampler: str = "systematic",
        ess_threshold: float = 0.5,
        *,
        output: str = "sample",
        on_invalid: str = "raise",
    ) -> None:
        check_scale(alpha, guidance_scale)
        value = Differentiated(posterior_mean_value, reward)
        value.build(diffusion, reward)
        super().__init__(
            diffusion, reward, value=value, num_particles=num_particles, on_invalid=on_invalid
        )
        self._start(alpha=alpha, resampler=resampler, ess_threshold=ess_threshold, output=output)
        self.guidance_scale = float(guidance_scale)

    def memory(self, num_chains: int) -> dict[str, Tensor]:
        """Weights, and log psi of each particle, [N, P]."""
        kept = super().memory(num_chains)
        return {**kept, "log_twist": torch.zeros_like(kept["log_weight"])}

    def shift(self, rows: Rows, step: Step, memory: dict[str, Tensor]) -> Tensor | None:
        """Along the gradient in the current state."""
        assert rows.gradient is not None
        scale = self.guidance_scale / self.alpha
        return self.diffusion.shift_along(rows.gradient, step, scale)

    def scores(self, step: Step, num_candidates: int) -> bool:
        """Always."""
        return True

    def select(self, selection: Selection) -> Choice:
        """Weigh the moved particles and resample."""
        old = selection.memory["log_twist"]
        twist = selection.values.view(old.shape) / self.alpha
        index = torch.arange(old.numel(), device=old.device)
        increment = twist - old + proposal_ratio(selection)
        return self.reweigh(selection, index, increment, {"log_twist": twist})

    def settings(self) -> dict[str, Any]:
        """The sampler's name and arguments."""
        return {**super().settings(), "guidance_scale": self.guidance_scale}


def proposal_ratio(selection: Selection) -> Tensor | float:
    """Log of the plain kernel over the one proposed from, [N, P], or 0 where they are the same."""
    if selection.log_ratio is None:
        return 0.0
    return selection.log_ratio.view(selection.memory["log_weight"].shape)


class DAS(TDS):
    """TDS with a tempered reward: psi = exp(lambda r(x0_hat) / alpha), lambda rising from 0 to 1.

    Early predictions are poor, so that following them in full wastes the particles; the last step
    uses the reward in full, so that the target is that of `TDS`.

    Args:
        tempering: how lambda rises: "linear" in the steps, a number gamma > 0 for
            min(1, (1 + gamma)^i - 1) at step i, or "adaptive": as far as keeps the effective number
            of particles of a group at ess_target * P, by bisection.
        num_steps: of the runs to come, over which "linear" is spread.
        ess_target: see "adaptive".   The others: see `TDS`.
    Raises:
        ArgumentError: a bad tempering or ess_target, and as `TDS`.

    Source: Kim, Kim, Park 2025 (arXiv 2501.05803).
    """

    num_steps: int

    def __init__(
        self,
        diffusion: Diffusion,
        reward: Callable[..., Any],
        num_particles: int = 16,
        alpha: float = 0.1,
        guidance_scale: float = 1.0,
        resampler: str = "ssp",
        ess_threshold: float = 0.5,
        *,
        num_steps: int,
        tempering: str | float = "linear",
        ess_target: float = 0.9,
        output: str = "sample",
        on_invalid: str = "raise",
    ) -> None:
        super().__init__(
            diffusion,
            reward,
            num_particles,
            alpha,
            guidance_scale,
            resampler,
            ess_threshold,
            output=output,
            on_invalid=on_invalid,
        )
        rate = 1.0 if tempering in ("linear", "adaptive") else tempering
        if isinstance(rate, str) or not rate > 0:
            raise ArgumentError(
                f"tempering must be 'linear', 'adaptive' or a positive number, got {tempering!r}"
            )
        if not 0 < ess_target < 1:
            raise ArgumentError(
                f"ess_target must be a share of the particles between 0 and 1, got {ess_target}"
            )
        if num_steps < 1:
            raise ArgumentError(f"num_steps must be at least 1, got {num_steps}")
        self.tempering = tempering
        self.num_steps = num_steps
        self.ess_target = float(ess_target)

    def memory(self, num_chains: int) -> dict[str, Tensor]:
        """Weights, log psi, and lambda of each particle's group, [N, P]."""
        kept = super().memory(num_chains)
        return {**kept, "tempering": torch.zeros_like(kept["log_weight"])}

    def shift(self, rows: Rows, step: Step, memory: dict[str, Tensor]) -> Tensor | None:
        """Along the gradient of the tempered reward in the current state."""
        assert rows.gradient is not None
        scale = memory["tempering"].flatten() * (self.guidance_scale / self.alpha)
        return self.diffusion.shift_along(rows.gradient, step, scale)

    def select(self, selection: Selection) -> Choice:
        """Temper, weigh, resample."""
        old = selection.memory["log_twist"]
        reward = selection.values.view(old.shape) / self.alpha
        fixed = proposal_ratio(selection) - old
        tempering = self._tempering(selection, reward, selection.memory["log_weight"] + fixed)
        # 0 * -inf: an invalid particle has no weight at any temperature
        twist = (tempering * reward).where(reward > float("-inf"), float("-inf"))
        index = torch.arange(old.numel(), device=old.device)
        kept = {"log_twist": twist, "tempering": tempering}
        return self.reweigh(selection, index, twist + fixed, kept)

    def _tempering(self, selection: Selection, reward: Tensor, log_weight: Tensor) -> Tensor:
        """lambda [N, P] after this step."""
        if selection.step.clean:
            return torch.ones_like(reward)
        done = selection.step.index + 1
        if self.tempering == "linear":
            return torch.full_like(reward, min(1.0, done / self.num_steps))
        if not isinstance(self.tempering, str):
            return torch.full_like(reward, min(1.0, (1 + self.tempering) ** done - 1))
        low, high = selection.memory["tempering"][:, :1], torch.ones_like(reward[:, :1])
        due = self.ess_target * reward.shape[1]
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            weight = log_weight + (middle * reward).nan_to_num(neginf=float("-inf"))
            ess = (2 * weight.logsumexp(1) - (2 * weight).logsumexp(1)).exp()
            enough = (ess >= due)[:, None]
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        return low.expand_as(reward).contiguous()

    def settings(self) -> dict[str, Any]:
        """The sampler's name and arguments."""
        return {
            **super().settings(),
            "tempering": self.tempering,
            "num_steps": self.num_steps,
            "ess_target": self.ess_target,
        }
