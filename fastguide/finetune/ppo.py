"""PPO on the steps of a diffusion, with the KL to the reference in the return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion import MaskedDiffusion
from fastguide.errors import ArgumentError
from fastguide.finetune import parallel
from fastguide.finetune.baseline import RunningMeans
from fastguide.finetune.laws import GaussianLaws, MaskedLaws
from fastguide.finetune.method import Method
from fastguide.finetune.one_step import token_log_probs, token_terms
from fastguide.finetune.parts import Part
from fastguide.finetune.rollout import Buffer, roll
from fastguide.finetune.sharing import Recalling, may_keep, outputs

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
            each `group_size` consecutive paths; "running", a mean with decay 0.9 over iterations,
            of its own for each distinct prompt and conditioning.
        group_size: paths that share their conditioning; divides batch_size. None: all do.
        local_kl: leave the KL of later steps out of the return, as Flow-GRPO and DPOK do. It has
            another optimum, with less reward, than alpha says; for comparison with them.
        normalize: divide advantages by the standard deviation of the rewards, as GRPO does. It
            multiplies alpha by it, which the history reports as "effective_alpha".
        likelihood: "steps", that of every step taken; "one_step", that of the final tokens under
            one call of the network on the initial state, token by token, with the k3 estimate of
            the KL, as diffu-GRPO (d1) does. It costs one row a path and is blind to how tokens go
            together: only what the network says of the initial state is learned, and its optimum is
            not the one of alpha. Masked chains only; "kl" in the history is that of the whole path.
        options: see `Method`. The history has "clip_fraction" and "ratio_drift", the mean of
            |ratio - 1|.

    Sources: Black et al. 2023 (DDPO, arXiv 2305.13301); Fan et al. 2023 (DPOK, arXiv 2305.16381);
    Zhao et al. 2025 (d1, arXiv 2504.12216).
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
        likelihood: str = "steps",
        **options: Any,
    ) -> None:
        super().__init__(diffusion, reward, alpha=alpha, **options)
        if not clip > 0:
            raise ArgumentError(f"clip must be positive, got {clip}")
        if baseline not in ("group", "running"):
            raise ArgumentError(f"baseline must be 'group' or 'running', got {baseline!r}")
        if likelihood not in ("steps", "one_step"):
            raise ArgumentError(f"likelihood must be 'steps' or 'one_step', got {likelihood!r}")
        one_step = likelihood == "one_step"
        if one_step and not isinstance(diffusion, MaskedDiffusion):
            raise ArgumentError(
                "likelihood='one_step' is that of tokens, for masked chains; leave it away for "
                f"{type(diffusion).__name__}, whose steps have a density"
            )
        if one_step and local_kl:
            raise ArgumentError(
                "local_kl has no meaning with likelihood='one_step', whose return has no KL at all"
            )
        self.clip = clip
        self.baseline = baseline
        self.group_size = group_size
        self.local_kl = local_kl
        self.normalize = normalize
        self.likelihood = likelihood
        self.whole_paths = one_step
        self._running = RunningMeans()

    def settings(self) -> dict[str, Any]:
        """The method's name and arguments."""
        own = ("clip", "baseline", "group_size", "local_kl", "normalize", "likelihood")
        return {**super().settings(), **{name: getattr(self, name) for name in own}}

    def collect(self, key: int, chains: Tensor, share: float, start: dict[str, Any]) -> Buffer:
        """Paths of the policy, with the advantage of each step."""
        keep = not self.whole_paths and may_keep(self.reference, len(chains))
        natural: Any = Recalling(self.reference, keep)
        policy: Any = Recalling(self.policy)
        buffer = roll(policy, natural, key, chains, max_rows=self.max_rows, **start)
        if keep:
            buffer.extra["natural"] = natural.kept()
        buffer.reward = self.rewards(buffer)
        self._first = True
        if self.whole_paths:
            self._score_tokens(buffer)
            buffer.extra["advantage"] = self._centred(buffer.reward[:, None], buffer)
            return buffer
        returns = returns_to_go(buffer, 0.0 if self.local_kl else self.alpha)
        # a step that draws nothing answers for its own KL alone
        buffer.extra["advantage"] = self._centred(returns, buffer) * self.policy.random
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
        if self.whole_paths:
            return self._loss_of_tokens(part)
        if "natural" in part.buffer.extra:
            natural = part.extra("natural")
        else:
            with torch.no_grad():
                natural = outputs(self.reference, part)
        output = outputs(self.policy, part)
        terms = self._terms(part, output, natural)
        drift = self._drift(terms.ratio)
        numbers = {"clip_fraction": terms.clipped, "ratio_drift": drift}
        return (terms.surrogate + self.alpha * terms.kl).sum(), numbers

    def _terms(self, part: Part, output: Tensor, natural: Tensor) -> ops.PPOTerms:
        """-min(ratio A, clipped ratio A) and KL of the rows, by the fused ops."""
        assert part.buffer.log_prob is not None
        old, advantage = part.buffer.log_prob[part.paths, part.steps], part.extra("advantage")
        clip = self._bounds
        policy, index = self.policy, part.steps
        if isinstance(policy, GaussianLaws) and policy.scale is not None:
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

    def _score_tokens(self, buffer: Buffer) -> None:
        """Log-probabilities [N, L] of the final tokens under one call of policy and reference."""
        at = torch.arange(len(buffer), device=buffer.chains.device)
        for name, laws in (("drawn_by", self.policy), ("natural", self.reference)):
            with torch.no_grad():
                rows = [self._of_tokens(laws, buffer, some) for some in at.split(self._rows(at))]
            buffer.extra[name] = torch.cat(rows)

    def _rows(self, paths: Tensor) -> int:
        return len(paths) if self.max_rows is None else self.max_rows

    @staticmethod
    def _of_tokens(laws: Any, buffer: Buffer, paths: Tensor) -> Tensor:
        cond = {name: rows[paths] for name, rows in buffer.cond.items()}
        return token_log_probs(laws, buffer.states[paths, 0], buffer.samples[paths], cond)

    def _loss_of_tokens(self, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of likelihood="one_step", summed over the tokens that were drawn."""
        buffer, length = part.buffer, len(self.policy)
        paths = part.paths[::length]
        log_prob = self._of_tokens(self.policy, buffer, paths)
        drawn_by, natural, advantage = (
            buffer.extra[name][paths] for name in ("drawn_by", "natural", "advantage")
        )
        terms = token_terms(log_prob, drawn_by, natural, advantage, self._bounds)
        assert isinstance(self.policy, MaskedLaws)
        drawn = buffer.states[paths, 0] == self.policy.diffusion.mask_token
        loss = (terms.surrogate + self.alpha * terms.kl).masked_fill(~drawn, 0).sum()
        share = drawn / drawn.sum(dim=1, keepdim=True).clamp_min(1)
        each = {"clip_fraction": terms.clipped, "ratio_drift": self._drift(terms.ratio)}
        numbers = {name: (value * share).sum(dim=1) for name, value in each.items()}
        # one number for each of the rows that stand for a path
        return loss, {name: value.repeat_interleave(length) for name, value in numbers.items()}

    @property
    def _bounds(self) -> tuple[float, float]:
        return max(0.0, 1 - self.clip), 1 + self.clip

    def _drift(self, ratio: Tensor) -> Tensor:
        """|ratio - 1|, which nothing but rounding makes more than 0 before the first update."""
        drift = (ratio.detach() - 1).abs()
        if self._first and self.autocast is None:
            self._check(float(drift.max()))
        self._first = False
        return drift

    def begin(self) -> None:
        """Forget the running baseline."""
        self._running = RunningMeans()

    def memory(self) -> dict[str, Any]:
        """The running baseline."""
        return {"running": self._running.means}

    def recall(self, memory: dict[str, Any]) -> None:
        """Take up the running baseline."""
        self._running = RunningMeans(memory["running"])

    def _centred(self, returns: Tensor, buffer: Buffer) -> Tensor:
        """Returns [N, T] less their baseline."""
        if self.group_size is not None:
            if len(returns) % self.group_size:
                raise ArgumentError(
                    f"group_size must divide batch_size, got {self.group_size} of {len(returns)}"
                )
            groups = returns.unflatten(0, (-1, self.group_size))
            return (groups - groups.mean(dim=1, keepdim=True)).flatten(0, 1)
        if self.baseline == "group":
            return returns - parallel.gathered(returns).mean(dim=0)
        given = dict(buffer.cond)
        if isinstance(self._pretrained, MaskedDiffusion):
            given["prompt"] = buffer.states[:, 0]
        return returns - self._running.before(returns, given)

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
