"""From the rewards of several samples of a state to its value."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastguide import ops
from fastguide.errors import ArgumentError

Tensor = torch.Tensor


@dataclass(frozen=True)
class Average:
    """How the rewards of S samples become one value: a soft maximum or a risk-averse mean.

    Attributes:
        num_samples: S.
        alpha: alpha * log-mean-exp(r / alpha), in reward units per nat; positive.
        tau: the mean of the worst tau share (CVaR), in (0, 1]; 1 is the mean.

    Raises:
        ArgumentError: a number out of range; both alpha and tau, or neither for S > 1.
    """

    num_samples: int
    alpha: float | None = None
    tau: float | None = None

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ArgumentError(f"num_samples must be at least 1, got {self.num_samples}")
        if self.alpha is not None and self.tau is not None:
            raise ArgumentError(
                f"alpha={self.alpha} and tau={self.tau} are two ways to average samples: alpha "
                "seeks the best of them, tau guards against the worst; give one"
            )
        if self.alpha is None and self.tau is None and self.num_samples > 1:
            raise ArgumentError(
                f"num_samples={self.num_samples} must be averaged: give alpha=, the temperature of "
                "a log-mean-exp, or tau=, the share of the worst samples (tau=1: the mean)"
            )
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ArgumentError(f"alpha must be positive for a log-mean-exp, got {self.alpha}")
        if self.tau is not None and not 0 < self.tau <= 1:
            raise ArgumentError(
                f"tau must be a share in (0, 1] (the worst samples to average), got {self.tau}"
            )

    def __call__(self, rewards: Tensor) -> Tensor:
        """Values [R] of rewards [R * S], S of each state after another."""
        if self.num_samples == 1:
            return rewards
        rewards = rewards.view(-1, self.num_samples)
        if self.tau is not None:
            return ops.soft_value(rewards, 0.0, kind="cvar", tau=self.tau)
        assert self.alpha is not None
        return ops.soft_value(rewards, self.alpha)

    def __str__(self) -> str:
        how = f", alpha={self.alpha:g}" if self.alpha is not None else ""
        how = f", tau={self.tau:g}" if self.tau is not None else how
        return f"num_samples={self.num_samples}{how}"
