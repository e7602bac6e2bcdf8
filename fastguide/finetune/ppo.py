"""PPO on the steps of a diffusion, with the KL to the reference in the return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops
from fastguide.errors import ArgumentError
from fastguide.finetune import parallel
from fastguide.finetune.laws import GaussianLaws, MaskedLaws
from fastguide.finetune.method import Method
from fastguide.finetune.parts import Part
from fastguide.finetune.rollout import Buffer

Tensor = torch.Tensor

DRIFT = 0.1
"""Most that a ratio may differ from 1 before the first update; rounding comes to less."""


class PPO(Method):
    """Clipped policy gradients on every step; the reward need not be differentiable.

    The action of a step answers for the reward and for the KL of the steps after it, and the KL of
    the step itself is differentiated exactly; so the optimum is the one of the whole-path KL.

    Args:
        clip: ratios beyond 1 +- clip get no gradient.
        baseline: what is subtracted from the returns: "group", their mean over the batch or over
            each `group_size` consecutive paths; "running", a mean with decay 0.9 over iterations.
        group_size: paths that share their conditioning; divides batch_size. None: all do.
        local_kl: leave the KL of later steps out of the return, as Flow-GRPO and DPOK do. It has
            another optimum, with less reward, than alpha says; for comparison with them.
        normalize: divide advantages by the standard deviation of the rewards, as GRPO does. It
            multiplies alpha by it, which the history reports as "effective_alpha".
        options: see `Method`. The history has "clip_fraction" and "ratio_drift", the mean of
            |ratio - 1|.

    Sources: Black et al. 2023 (DDPO, arXiv 2305.13301); Fan et al. 2023 (DPOK, arXiv 2305.16381).
    """

    all_steps = True

    def __init__(
        self,
        diffusion: Any,
        reward: Callable[..., Any],
        *,
        alpha: float,
        clip: float = 0.2,
        baseline: str = "group",
        group_size: int | None = None,
        local_kl: bool = False,
        normalize: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(diffusion, reward, alpha=alpha, **options)
        if not clip > 0:
            raise ArgumentError(f"clip must be positive, got {clip}")
        if baseline not in ("group", "running"):
            raise ArgumentError(f"baseline must be 'group' or 'running', got {baseline!r}")
        self.clip = clip
        self.baseline = baseline
        self.group_size = group_size
        self.local_kl = local_kl
        self.normalize = normalize
        self._running: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """The method's name and arguments."""
        own = ("clip", "baseline", "group_size", "local_kl", "normalize")
        return {**super().settings(), **{name: getattr(self, name) for name in own}}

    def collect(self, key: int, chains: Tensor, share: float, start: dict[str, Any]) -> Buffer:
        """Paths of the policy, with the advantage of each step."""
        buffer = super().collect(key, chains, share, start)
        returns = returns_to_go(buffer, 0.0 if self.local_kl else self.alpha)
        # a step that draws nothing answers for its own KL alone
        buffer.extra["advantage"] = self._centred(returns) * self.policy.random
        self._first = True
        return buffer

    def prepare(self, buffer: Buffer) -> dict[str, float]:
        """Nothing, unless advantages are normalised: then the alpha that this amounts to."""
        if not self.normalize or not self._first:
            return {}
        deviation = parallel.gathered(buffer.reward).std(correction=0).clamp_min(1e-8)
        buffer.extra["advantage"] = buffer.extra["advantage"] / deviation
        return {"effective_alpha": self.alpha * float(deviation)}

    def loss(self, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """-min(ratio A, clipped ratio A) + alpha KL, summed over the rows."""
        with torch.no_grad():
            natural = self.reference.output(part.x, part.steps, part.cond)
        output = self.policy.output(part.x, part.steps, part.cond)
        terms = self._terms(part, output, natural)
        drift = (terms.ratio.detach() - 1).abs()
        if self._first and self.autocast is None:
            self._check(float(drift.max()))
        self._first = False
        numbers = {"clip_fraction": terms.clipped, "ratio_drift": drift}
        return (terms.surrogate + self.alpha * terms.kl).sum(), numbers

    def _terms(self, part: Part, output: Tensor, natural: Tensor) -> ops.PPOTerms:
        """-min(ratio A, clipped ratio A) and KL of the rows, by the fused ops."""
        assert part.buffer.log_prob is not None
        old, advantage = part.buffer.log_prob[part.paths, part.steps], part.extra("advantage")
        clip = max(0.0, 1 - self.clip), 1 + self.clip
        policy, index = self.policy, part.steps
        if isinstance(policy, GaussianLaws) and policy.log_scale is not None:
            law = policy.law(part.x, output, index)
            log_prob = law.log_prob(part.following)
            ratio = (log_prob - old).exp()
            bounded = ratio.clamp(*clip)
            surrogate = -torch.minimum(ratio * advantage, bounded * advantage)
            kl = law.kl(self.reference.law(part.x, natural, index))
            return ops.PPOTerms(surrogate, kl, log_prob, ratio, ratio != bounded)
        rows = output, part.x, part.following, old, advantage
        if isinstance(policy, GaussianLaws):
            a, b, s = policy.a[index], policy.b[index], policy.s[index]
            return ops.gaussian_ppo(*rows, a=a, b=b, s=s, clip=clip, output_ref=natural)
        assert isinstance(policy, MaskedLaws)
        return ops.masked_ppo(
            *rows,
            mask_token=policy.diffusion.mask_token,
            rho=policy.rho[index],
            clip=clip,
            logits_ref=natural,
            temperature=policy.diffusion.temperature,
        )

    def begin(self) -> None:
        """Forget the running baseline."""
        self._running = None

    def memory(self) -> dict[str, Any]:
        """The running baseline."""
        return {"running": self._running}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take up the running baseline."""
        self._running = memory["running"]

    def _centred(self, returns: Tensor) -> Tensor:
        """Returns [N, T] less their baseline."""
        if self.group_size is not None:
            if len(returns) % self.group_size:
                raise ArgumentError(
                    f"group_size must divide batch_size, got {self.group_size} of {len(returns)}"
                )
            groups = returns.unflatten(0, (-1, self.group_size))
            return (groups - groups.mean(dim=1, keepdim=True)).flatten(0, 1)
        mean = parallel.gathered(returns).mean(dim=0)
        if self.baseline == "group":
            return returns - mean
        before = mean if self._running is None else self._running.to(mean.device)
        self._running = 0.9 * before + 0.1 * mean
        return returns - before

    def _check(self, drift: float) -> None:
        if drift > DRIFT:
            raise ArgumentError(
                "the denoiser gave other outputs for the states of the rollout than in it: ratios "
                f"differ from 1 by up to {drift:.3g} before the first update. It must be a "
                "function of its inputs, row by row: no noise of its own, no batch statistics"
            )


def returns_to_go(buffer: Buffer, alpha: float) -> Tensor:
    """[N, T] float64: the reward, less alpha times the KL of the steps after each step."""
    assert buffer.kl is not None
    later = buffer.kl.flip(1).cumsum(1).flip(1) - buffer.kl
    return buffer.reward[:, None] - alpha * later
