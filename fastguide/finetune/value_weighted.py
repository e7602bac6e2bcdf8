"""Distil the soft-optimal kernel, which guided sampling draws from, into the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion import Batch, Outputs
from fastguide.errors import ArgumentError, DtypeError
from fastguide.finetune.method import Method
from fastguide.finetune.parts import Part
from fastguide.finetune.rollout import Buffer, scores
from fastguide.finetune.sharing import outputs

Tensor = torch.Tensor


class ValueWeighted(Method):
    """Fit every step to successors of the reference with weights exp(value / alpha).

    At states of the policy's paths, num_candidates successors are drawn from the reference and
    weighted as SVDD weighs them; the policy's kernel is fitted to the weighted successors. With the
    exact soft value and many candidates its optimum is the target.

    Args:
        value: "posterior_mean", the reward of the x0 that the reference predicts, or a callable
            (x [B, ...], t [B]) -> [B] in reward units. Clean samples get the reward itself.
        num_candidates: M successors of each state; weights of few are biased by O(1 / M).
        reference_share: of the paths, drawn from the reference instead.
        options: see `Method`. The history's "ess" is of the M weights.

    Source: distillation of SVDD (Li et al. 2024, arXiv 2408.08252), Uehara et al. 2025 (arXiv
    2501.09685), section 8.
    """

    fits_steps = False

    def __init__(
        self,
        diffusion: Any,
        reward: Callable[..., Any],
        *,
        alpha: float,
        value: str | Callable[..., Any] = "posterior_mean",
        num_candidates: int = 10,
        reference_share: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(diffusion, reward, alpha=alpha, **options)
        if value != "posterior_mean" and not callable(value):
            raise DtypeError(f"value must be 'posterior_mean' or a callable (x, t), got {value!r}")
        if num_candidates < 2:
            raise ArgumentError(f"num_candidates must be at least 2, got {num_candidates}")
        if not 0 <= reference_share <= 1:
            raise ArgumentError(f"reference_share must lie in [0, 1], got {reference_share}")
        self.value = value
        self.num_candidates = num_candidates
        self.reference_share = reference_share

    def settings(self) -> dict[str, Any]:
        """The method's name and arguments."""
        value = self.value if isinstance(self.value, str) else type(self.value).__name__
        own = {"num_candidates": self.num_candidates, "reference_share": self.reference_share}
        return {**super().settings(), **own, "value": value}

    @torch.no_grad()
    def collect(self, key: int, chains: Tensor, share: float, start: dict[str, Any]) -> Buffer:
        """Paths, with weighted successors of every state."""
        buffer = super().collect(key, chains, share, start)
        paths = torch.arange(len(buffer), device=chains.device)
        count = max(1, (self.max_rows or len(buffer) * self.num_candidates) // self.num_candidates)
        made = [self._successors(buffer.take(part)) for part in paths.split(count)]
        buffer.extra["children"] = torch.cat([children for children, _ in made])
        buffer.extra["weights"] = torch.cat([weights for _, weights in made])
        return buffer

    def _successors(self, buffer: Buffer) -> tuple[Tensor, Tensor]:
        """Of every state, [N, T, M, ...], and their weights [N, T, M] float64."""
        laws, children, weights = self.reference, [], []
        for number, step in enumerate(laws.steps):
            x = buffer.states[:, number]
            index = torch.full_like(buffer.chains, number)
            output = laws.output(x, index, buffer.cond)
            # the path itself has candidate 0
            drawn = laws.propose(
                laws.diffusion.batch(x),
                output,
                number,
                buffer.key,
                buffer.chains,
                self.num_candidates,
                first=1,
            )
            if not step.varies:
                repeated = torch.arange(len(x), device=x.device)
                drawn = drawn.take(repeated.repeat_interleave(self.num_candidates))
            value = self._values(drawn, number, buffer.cond).view(len(x), -1)
            children.append(drawn.x.unflatten(0, (len(x), -1)))
            weights.append((value / self.alpha).softmax(dim=1))
        return torch.stack(children, dim=1), torch.stack(weights, dim=1)

    def _values(self, drawn: Batch, number: int, cond: dict[str, Tensor]) -> Tensor:
        """Values [R] float64 of successors of step `number`."""
        laws, step = self.reference, self.reference.steps[number]
        cond = {name: rows.repeat_interleave(self.num_candidates, 0) for name, rows in cond.items()}
        if not step.clean and not isinstance(self.value, str):
            t = torch.full((len(drawn),), step.next_time, device=drawn.x.device)
            return scores(self.value, "value", (drawn.x, t), cond, self.on_invalid)
        x0 = drawn.x
        if not step.clean:
            rows = torch.arange(len(drawn), device=drawn.x.device)
            output = laws.output(drawn.x, torch.full_like(rows, number + 1), cond)
            x0 = laws.diffusion.predict_mode(drawn, Outputs(output, rows))
        return scores(self.reward, "reward", (x0,), cond, self.on_invalid)

    def loss(self, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """-sum of weight times log-probability over the successors of each row."""
        law = self.policy.law(part.x, outputs(self.policy, part), part.steps)
        children, weights = part.extra("children"), part.extra("weights")
        likelihood = torch.stack(
            [law.log_prob(children[:, m]) for m in range(self.num_candidates)], dim=1
        )
        return -(weights * likelihood).sum(), {"ess": 1 / weights.square().sum(dim=1)}
