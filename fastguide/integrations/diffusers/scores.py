"""Values of a pipeline's candidates, their rewards, and gradients of either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fastguide.errors import ArgumentError, GradientError
from fastguide.evaluation import Cost, Limits, Rows
from fastguide.evaluation.calls import call_in_chunks
from fastguide.evaluation.gradients import ALTERNATIVE, posterior_mean_value
from fastguide.evaluation.models import GRADIENT, output_fault, score_fault
from fastguide.evaluation.scorer import Scorer
from fastguide.samplers.base import Sampler
from fastguide.samplers.guidance import Differentiated
from fastguide.values import PosteriorMean

Tensor = torch.Tensor


@dataclass
class PipelineCost(Cost):
    """Rows and seconds of the calls of a guided pipeline.

    Attributes:
        decoder_rows: latents that the autoencoder decoded, for rewards and for the output.
        seconds: as in `Cost`, and under "decoder".
    """

    decoder_rows: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("denoiser", "decoder", "reward", "kernels", "other", "total"), 0.0
        )
    )

    def finish(self, total: float) -> None:
        """Set "total" and give "other" what no bucket claimed."""
        named = ("denoiser", "decoder", "reward", "kernels")
        self.seconds["total"] = total
        self.seconds["other"] = max(total - sum(self.seconds[name] for name in named), 0.0)


class Scores:
    """How candidates are valued by one policy.

    Args:
        policy: its value is the posterior mean, a callable (latents, t), or one with a gradient.
        max_rows: most rows decoded or scored at once.
        on_invalid: see `fastguide.samplers.base.Sampler`.
    """

    def __init__(self, policy: Sampler, max_rows: int | None, cost: PipelineCost) -> None:
        value = policy.value
        self.differentiates = isinstance(value, Differentiated)
        reads = isinstance(value, PosteriorMean)
        if isinstance(value, Differentiated):
            reads = value.build is posterior_mean_value
        elif value is not None and not reads and not callable(value):
            raise ArgumentError(
                f"value: {type(value).__name__} needs the denoiser at other times than the "
                "pipeline runs it; use 'posterior_mean' or a callable(latents, t)"
            )
        self.reads_prediction = reads
        self._policy = policy
        self._cost = cost
        self._limits = Limits(max_rows)
        self._scorers: dict[str, Scorer] = {}
        function = value.function if isinstance(value, Differentiated) else value
        self._function = policy.reward if reads else function
        for label, each in (("reward", policy.reward), ("value", self._function)):
            if each is not None:
                self._scorers[label] = Scorer(
                    each,
                    label,
                    merge=False,
                    remember=False,
                    reject=policy.on_invalid == "reject",
                    limits=self._limits,
                    cost=cost,
                    cond={},
                    cache_bytes=0,
                )

    def rewards(
        self, decode: Callable[[Tensor], Tensor], latents: Tensor, rows: Rows, step: int
    ) -> Tensor:
        """Rewards [R] float64 of clean latents [R, ...]."""
        images = self._decode(decode, latents)
        return self._scorers["reward"].score(images, rows, step)

    def values(
        self,
        decode: Callable[[Tensor], Tensor],
        x: Tensor,
        x0: Tensor | None,
        rows: Rows,
        step: int,
        time: float,
    ) -> Tensor:
        """Values [R] float64 of states x, whose predicted clean latents are x0."""
        if not self.reads_prediction:
            return self._scorers["value"].score(x, rows, step, time=time)
        assert x0 is not None
        wrong = self._wrong_predictions(x0, rows, step)
        images = self._decode(decode, x0.nan_to_num(0.0, 0.0, 0.0) if wrong.any() else x0)
        return self._scorers["reward"].score(images, rows, step).masked_fill(wrong, -torch.inf)

    def with_gradient(
        self,
        decode: Callable[[Tensor], Tensor],
        sample: Tensor,
        x: Tensor,
        x0: Tensor | None,
        rows: Rows,
        step: int,
        time: float,
    ) -> tuple[Tensor, Tensor]:
        """Values [R] float64 and their gradients [R, ...] in the pipeline's `sample`.

        x and x0 hang on `sample` in the graph of the denoiser's call.
        """
        policy, cost = self._policy, self._cost
        cost.reward_rows += len(x)
        cost.reward_rows_requested += len(x)
        with torch.enable_grad(), cost.timed("reward"):
            if self.reads_prediction:
                assert x0 is not None
                images = decode(x0)
                scores = policy.diffusion.relaxed_reward(self._function)(images)
            else:
                t = torch.full((len(x),), time, device=x.device)
                scores = policy.diffusion.relaxed_value(self._function)(x, t)
            if not scores.requires_grad:
                raise GradientError(
                    "the value has no gradient in the latents: decode and reward must be "
                    f"differentiable torch operations throughout; {ALTERNATIVE}"
                )
            # rows are independent, so the gradient of the sum holds each row's own
            (gradient,) = torch.autograd.grad(scores.sum(), sample)
        values = scores.detach().double()
        # of states that came twice, the two halves are one state
        gradient = gradient.float().unflatten(0, (-1, len(x))).sum(dim=0)
        wrong = ~(values.isfinite() & gradient.flatten(1).isfinite().all(dim=1))
        if bool(wrong.any()):
            if policy.on_invalid == "raise":
                row = int(wrong.nonzero()[0, 0])
                raise score_fault(GRADIENT, float(values[row]), step, rows.name(row))
            values = values.masked_fill(wrong, -torch.inf)
            gradient[wrong] = 0.0
        return values, gradient

    def _wrong_predictions(self, x0: Tensor, rows: Rows, step: int) -> Tensor:
        wrong = ~x0.flatten(1).isfinite().all(dim=1)
        if self._policy.on_invalid == "raise" and bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise output_fault(step, rows.name(row), int(wrong.sum()), len(wrong))
        return wrong

    def _decode(self, decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
        return call_in_chunks(
            lambda index: decode(latents[index]),
            len(latents),
            self._limits,
            self._cost,
            name="decoder",
            device=latents.device,
        )
