"""ForwardProcess: policy improvement by signed denoising of the policy's own samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.errors import ArgumentError
from fastguide.finetune import parallel
from fastguide.finetune.laws import MaskedLaw
from fastguide.finetune.method import Method
from fastguide.finetune.noising import noised
from fastguide.finetune.parts import Part
from fastguide.finetune.rollout import Buffer, roll
from fastguide.finetune.rounds import Rounds
from fastguide.finetune.sharing import Recalling, outputs

Tensor = torch.Tensor


class ForwardProcess(Method):
    """Denoise good samples towards, and bad ones away from, what they are; no path is needed.

    With o the round's frozen prediction of x0, p the trained one and w = (1 + A) / 2,

        w ||beta p + (1 - beta) o - x0||^2 + (1 - w) ||(1 + beta) o - beta p - x0||^2

    is least at p = o + E[A (x0 - o) | x_t] / beta. With A = beta (r - mean r) / (alpha rounds) that
    is o + Cov(r, x0 | x_t) / (alpha rounds): the tilt by one round's share of 1 / alpha, to first
    order. So the target is reached as rounds grow, up to what clipping A to [-1, 1] takes away.

    Args:
        rounds: how often the sampler is frozen anew; the first one is the reference.
        beta: small values clip less and have noisier gradients.
        options: see `Method`. The history's "clipped" is the share of clipped advantages.

    Source: the two branches are those of DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117), whose
    advantages are divided by their deviation and so have no alpha.
    """

    all_steps = True
    knows_kl = False
    fits_steps = False

    def __init__(
        self,
        diffusion: Any,
        reward: Callable[..., Any],
        *,
        alpha: float,
        rounds: int = 10,
        beta: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(diffusion, reward, alpha=alpha, **options)
        if not beta > 0:
            raise ArgumentError(f"beta must be positive, got {beta}")
        self.beta = beta
        self.rounds = Rounds(self, rounds)

    def settings(self) -> dict[str, Any]:
        """The method's name and arguments."""
        return {**super().settings(), "rounds": self.rounds.count, "beta": self.beta}

    def scheduled(self) -> bool:
        """Rounds are parts of the whole."""
        return super().scheduled() or self.rounds.count > 1

    def collect(self, key: int, chains: Tensor, share: float, start: dict[str, Any]) -> Buffer:
        """Samples of the round's sampler, noised anew, with their advantages."""
        self._frozen = self.rounds.sampler(share)
        sampler: Any = Recalling(self._frozen)
        buffer = roll(None, sampler, key, chains, **start, max_rows=self.max_rows)
        buffer.reward = self.rewards(buffer)
        buffer.states = noised(self.policy, buffer)
        centred = buffer.reward - parallel.gathered(buffer.reward).mean()
        buffer.extra["advantage"] = self.beta * centred / (self.alpha * self.rounds.count)
        return buffer

    def loss(self, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """The two branches, summed over the rows."""
        advantage = part.buffer.extra["advantage"][part.paths]
        new, clean = self._predicted(part, trained=True)
        with torch.no_grad():
            old, _ = self._predicted(part, trained=False)
        step = self.beta * (new - old)
        towards = (old + step - clean).square().flatten(1).sum(dim=1)
        away = (old - step - clean).square().flatten(1).sum(dim=1)
        weight = (1 + advantage.clamp(-1, 1)) / 2
        loss = (weight * towards + (1 - weight) * away) / self.beta**2
        return loss.sum(), {"clipped": (advantage.abs() > 1).double()}

    def _predicted(self, part: Part, *, trained: bool) -> tuple[Tensor, Tensor]:
        """The prediction of x0 [R, ...] and x0 itself; of tokens, probabilities and one-hot rows.

        Known sites, which every policy predicts as they are, are left out as zeros.
        """
        laws = self.policy if trained else self._frozen
        output = outputs(laws, part)
        law = laws.law(part.x, output, part.steps)
        if not isinstance(law, MaskedLaw):
            return output, part.clean
        probs = law.log_probs.exp() * law.masked[..., None]
        clean = torch.nn.functional.one_hot(part.clean, probs.shape[-1]) * law.masked[..., None]
        return probs, clean

    def begin(self) -> None:
        """Back to the first round, whose sampler is the reference."""
        self.rounds.begin()

    def memory(self) -> dict[str, Any]:
        """The round and its sampler."""
        return self.rounds.memory()

    def recall(self, memory: dict[str, Any]) -> None:
        """Take up the round."""
        self.rounds.recall(memory)
