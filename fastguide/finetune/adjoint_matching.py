"""Adjoint matching: regress the control on the reward's gradient carried back by the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion.gaussian_chain import GaussianChain
from fastguide.errors import ArgumentError, DtypeError
from fastguide.finetune.laws import GaussianLaw
from fastguide.finetune.method import Method
from fastguide.finetune.parts import Part
from fastguide.finetune.rollout import Buffer

Tensor = torch.Tensor


class AdjointMatching(Method):
    """Least squares of the mean shift on the lean adjoint; Gaussian chains only.

    The adjoint starts as -grad r(x0) / alpha and goes back through the reference's means alone, so
    no gradient runs through the trained network but that of the regression.

    Args:
        reward: differentiable.
        pre_step: regress on the adjoint before the step instead of the one after it, as the code
            published with the paper does. Its optimum is off by O(1 / T); for comparison.
        options: see `Method`, without learn_scale.

    Raises:
        DtypeError: the diffusion is not a Gaussian chain: tokens have no adjoint.
        GradientError: while training, a reward that torch cannot differentiate.

    Source: Domingo-Enrich et al. 2024 (arXiv 2409.08861), with the adjoint of discrete time.
    """

    all_steps = True

    def __init__(
        self,
        diffusion: Any,
        reward: Callable[..., Any],
        *,
        alpha: float,
        pre_step: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(diffusion, GaussianChain):
            raise DtypeError(
                "adjoint matching needs a Gaussian chain, got "
                f"{type(diffusion).__name__}; use PathConsistency or PPO"
            )
        if options.get("learn_scale"):
            raise ArgumentError("learn_scale cannot be True: adjoint matching fits means only")
        super().__init__(diffusion, reward, alpha=alpha, **options)
        if getattr(reward, "needs_cond", False):
            raise ArgumentError(
                "reward must not need conditioning where its gradient is taken; "
                "PPO, PathConsistency and RewardWeightedMLE do"
            )
        self.pre_step = pre_step

    def settings(self) -> dict[str, Any]:
        """The method's name and arguments."""
        return {**super().settings(), "pre_step": self.pre_step}

    def collect(self, key: int, chains: Tensor, share: float, start: dict[str, Any]) -> Buffer:
        """Paths of the policy, with the adjoint of every step."""
        buffer = super().collect(key, chains, share, start)
        rows = self.max_rows or len(buffer)
        swept = [self._adjoints(buffer.take(part)) for part in _ranges(len(buffer), rows, chains)]
        buffer.extra["adjoint"] = torch.cat(swept)
        return buffer

    def _adjoints(self, buffer: Buffer) -> Tensor:
        """[N, T, ...]: of each step, at the state after it (or before it, with pre_step)."""
        reward = self._pretrained.relaxed_reward(self.reward)
        x = buffer.samples.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(reward(x).sum(), x)
        adjoint = -slope / self.alpha
        swept: list[Tensor] = []
        for number in reversed(range(len(self.reference))):
            index = torch.full_like(buffer.chains, number)
            x = buffer.states[:, number].detach().requires_grad_(True)
            mean = self.reference.at(x, index, buffer.cond).mean
            (before,) = torch.autograd.grad(mean, x, adjoint)
            swept.append(before if self.pre_step else adjoint)
            adjoint = before
        return torch.stack(swept[::-1], dim=1)

    def loss(self, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """Half of ||u + s adjoint||^2, with u the shift of the mean in units of s."""
        law: GaussianLaw = self.policy.at(part.x, part.steps, part.cond)
        with torch.no_grad():
            natural: GaussianLaw = self.reference.at(part.x, part.steps, part.cond)
        column = (-1, *[1] * (part.x.dim() - 1))
        s = natural.deviation.view(column)
        residual = (law.mean - natural.mean) / s + s * part.extra("adjoint")
        return 0.5 * residual.square().sum(dtype=torch.float64), {}


def _ranges(size: int, rows: int, like: Tensor) -> tuple[Tensor, ...]:
    return torch.arange(size, device=like.device).split(rows)
