"""Maximum likelihood on samples weighted by exp(reward / alpha)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops
from fastguide.errors import ArgumentError
from fastguide.finetune import parallel
from fastguide.finetune.laws import GaussianLaws, MaskedLaws
from fastguide.finetune.method import Method
from fastguide.finetune.noising import noised
from fastguide.finetune.parts import Part
from fastguide.finetune.rollout import Buffer, roll
from fastguide.finetune.rounds import Rounds
from fastguide.finetune.sharing import Recalling, outputs

Tensor = torch.Tensor


class RewardWeightedMLE(Method):
    """Fit the paths, or the denoising, of samples with weights exp(r / alpha).

    Args:
        form: "path" fits the steps that led to the samples; "denoise" noises the samples anew and
            fits their reconstruction, as in pre-training, so that only they matter.
        rounds: 1 draws from the reference throughout; K freezes the policy K - 1 times, draws from
            it and weighs by exp(r / (K alpha)), which compounds to the same target with more even
            weights.
        min_ess: least share of the batch that the weights may effectively rest on.
        options: see `Method`. The history has "ess", paths, and "weighted_reward", the estimate of
            the round's target; "reward" is that of the paths drawn.

    Raises:
        ArgumentError: while training, weights that rest on fewer paths than min_ess.

    Weights of paths tilt their initial states too, which no denoiser can follow: from a Gaussian
    prior that is not nearly independent of the sample the tuned model keeps a bias.
    Source: Peters and Schaal 2007 (reward-weighted regression); Uehara et al. 2024 (arXiv
    2407.13734), section 5.
    """

    knows_kl = False

    def __init__(
        self,
        diffusion: Any,
        reward: Callable[..., Any],
        *,
        alpha: float,
        form: str = "path",
        rounds: int = 1,
        min_ess: float = 0.02,
        **options: Any,
    ) -> None:
        self.fits_steps = form == "path"
        super().__init__(diffusion, reward, alpha=alpha, **options)
        if form not in ("path", "denoise"):
            raise ArgumentError(f"form must be 'path' or 'denoise', got {form!r}")
        if not 0 <= min_ess < 1:
            raise ArgumentError(f"min_ess must be a share in [0, 1), got {min_ess}")
        self.form = form
        self.all_steps = form == "denoise"
        self.min_ess = min_ess
        self.rounds = Rounds(self, rounds)

    def settings(self) -> dict[str, Any]:
        """The method's name and arguments."""
        own = {"form": self.form, "rounds": self.rounds.count, "min_ess": self.min_ess}
        return {**super().settings(), **own}

    def scheduled(self) -> bool:
        """Rounds are parts of the whole."""
        return super().scheduled() or self.rounds.count > 1

    def collect(self, key: int, chains: Tensor, share: float, start: dict[str, Any]) -> Buffer:
        """Paths of the round's sampler, with a weight each; their mean over the batch is 1."""
        sampler: Any = Recalling(self.rounds.sampler(share))
        buffer = roll(None, sampler, key, chains, **start, max_rows=self.max_rows)
        buffer.reward = self.rewards(buffer)
        reward = parallel.gathered(buffer.reward)
        scaled = reward / (self.alpha * self.rounds.count)
        weight = (
            len(reward)
            * (buffer.reward / (self.alpha * self.rounds.count)).sub(scaled.logsumexp(dim=0)).exp()
        )
        buffer.extra["weight"] = weight
        if self.form == "denoise":
            buffer.states = noised(self.policy, buffer)
        return buffer

    def prepare(self, buffer: Buffer) -> dict[str, float]:
        """Effective number of paths, and the weighted mean of the reward."""
        weight = parallel.gathered(buffer.extra["weight"])
        ess = float(weight.sum() ** 2 / weight.square().sum())
        if ess < self.min_ess * len(weight):
            raise ArgumentError(
                f"alpha={self.alpha:g} makes the weights rest on {ess:.1f} of {len(weight)} "
                f"paths, fewer than min_ess={self.min_ess:g} of them; raise alpha, rounds or "
                "batch_size"
            )
        reward = parallel.gathered(buffer.reward)
        return {"ess": ess, "weighted_reward": float((weight * reward).mean())}

    def loss(self, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """-weight times the log-likelihood of the steps, or of the reconstruction."""
        x, steps, policy = part.x, part.steps, self.policy
        weight = part.buffer.extra["weight"][part.paths]
        output = outputs(policy, part)
        if self.form == "denoise" and isinstance(policy, MaskedLaws):
            diffusion = policy.diffusion
            loss = ops.subs_cross_entropy(
                output if diffusion.temperature == 1 else output / diffusion.temperature,
                x,
                part.clean,
                mask_token=diffusion.mask_token,
                weight=weight * policy.rho[steps],
            )
            return loss.sum(), {}
        law = policy.law(x, output, steps)
        if self.form == "path":
            likelihood = law.log_prob(part.following)
        else:
            assert isinstance(policy, GaussianLaws)
            likelihood = policy.reconstruction(law, x, part.clean, steps)
        return -(weight * likelihood).sum(), {}

    def begin(self) -> None:
        """Back to the first round, whose sampler is the reference."""
        self.rounds.begin()

    def memory(self) -> dict[str, Any]:
        """The round and its sampler."""
        return self.rounds.memory()

    def recall(self, memory: dict[str, Any]) -> None:
        """Take up the round."""
        self.rounds.recall(memory)
