"""Values from the denoiser's own prediction of the clean sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide.diffusion import Step
from fastguide.errors import ArgumentError, DtypeError
from fastguide.evaluation import Evaluator, Rows
from fastguide.values.samples import Average

Tensor = torch.Tensor


class PosteriorMean:
    """The reward of the predicted clean sample, r(x0_hat(x_t)).

    Args:
        reward: callable(samples [B, ...]) -> [B].
        x0: "mode" fills masks with the most likely token per site; "soft" passes the token
            probabilities [B, L, V] to `reward.soft`.

    Exact up to a constant in t if the reward is linear and the kernel mean is the posterior mean;
    in general biased. Source: Li et al. 2024 (SVDD, arXiv 2408.08252), SVDD-PM.
    """

    needs_denoiser = True
    time_conditioned = False

    def __init__(self, reward: Callable[..., Any], x0: str = "mode") -> None:
        if x0 not in ("mode", "soft"):
            raise ArgumentError(f"x0 must be 'mode' or 'soft', got {x0!r}")
        if x0 == "soft" and not callable(getattr(reward, "soft", None)):
            raise DtypeError(
                "x0='soft' needs a reward with a method soft(probs [B, L, V]) -> [B]; "
                f"{type(reward).__name__} has none, so use x0='mode' or PosteriorSamples"
            )
        self.reward = reward
        self.x0 = x0
        self.deterministic = bool(getattr(reward, "deterministic", True))

    def _soft(self, probs: Tensor) -> Any:
        return self.reward.soft(probs)  # type: ignore[attr-defined]

    def evaluate(self, evaluator: Evaluator, rows: Rows, step: Step) -> Tensor:
        """See `fastguide.evaluation.Value`."""

        def reward_of(unknown: Rows) -> Tensor:
            diffusion = evaluator.diffusion
            predict = diffusion.predict_mode if self.x0 == "mode" else diffusion.predict_soft
            with evaluator.cost.timed("kernels"):
                x0 = predict(unknown.batch, evaluator.outputs_of(unknown, step.index))
            if self.x0 == "mode":
                return evaluator.reward(self.reward, x0, unknown, step.index)
            # equal states have equal probabilities, so the states stand for them
            return evaluator.reward(self._soft, x0, unknown, step.index, identity=unknown.batch.x)

        return evaluator.fill_values(rows, reward_of)


class PosteriorSamples:
    """The rewards of clean samples drawn from the prediction, averaged.

    Args:
        reward: callable(samples [B, ...]) -> [B].
        num_samples: S draws per state, from the factorised prediction.
        alpha: alpha log-mean-exp(r / alpha), the soft value; in reward units per nat.
        tau: the mean of the worst tau share of the draws (CVaR), for what must not go wrong; 1 is
            the mean. Give one of the two if S > 1.

    The draws are keyed by the state, so equal states have equal values. Bias: the product form of
    the prediction, and O(1/S) from the logarithm or the quantile. Sources: Singhal et al. 2025 (FK
    steering, arXiv 2501.06848), section 4; soft value of Li et al. 2024 (arXiv 2408.08252),
    equation 3; CVaR of Rockafellar and Uryasev 2000.

    Raises:
        ArgumentError: a number out of range, by name.
    """

    needs_denoiser = True
    time_conditioned = False

    def __init__(
        self,
        reward: Callable[..., Any],
        num_samples: int = 4,
        *,
        alpha: float | None = None,
        tau: float | None = None,
    ) -> None:
        self.average = Average(num_samples, alpha, tau)
        self.reward = reward
        self.num_samples = num_samples
        self.deterministic = bool(getattr(reward, "deterministic", True))
        self.__name__ = f"PosteriorSamples({self.average})"

    def evaluate(self, evaluator: Evaluator, rows: Rows, step: Step) -> Tensor:
        """See `fastguide.evaluation.Value`."""
        copies = self.num_samples

        def soft_value_of(unknown: Rows) -> Tensor:
            with evaluator.cost.timed("kernels"):
                x0 = evaluator.diffusion.predict_samples(
                    unknown.batch,
                    evaluator.outputs_of(unknown, step.index),
                    copies,
                    evaluator.seed,
                )
            rewards = evaluator.reward(
                self.reward, x0.flatten(0, 1), unknown, step.index, copies=copies
            )
            return self.average(rewards)

        return evaluator.fill_values(rows, soft_value_of, copies)
