"""What PPO makes of the log-probability of a transition, row by row."""

from __future__ import annotations

import torch

Terms = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def ppo_terms(
    log_prob: torch.Tensor,
    kl: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    clip: tuple[float, float],
) -> Terms:
    """(surrogate, kl, log_prob, ratio, clipped), each [N]; clipped is bool.

    ratio = exp(log_prob - old_log_prob); surrogate = -min(ratio A, clamp(ratio, low, high) A).
    clipped: the clamp holds, so that the surrogate has no gradient there.
    Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7.
    """
    low, high = clip
    ratio = torch.exp(log_prob - old_log_prob)
    surrogate = -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    clipped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
    return surrogate, kl, log_prob, ratio, clipped


def per_row(value: float | torch.Tensor, like: torch.Tensor, dims: int) -> torch.Tensor:
    """A number, or one per row [N], as float64 that broadcasts against `like` with `dims` dims."""
    rows = torch.as_tensor(value, dtype=torch.float64, device=like.device)
    return rows.view(-1, *[1] * (dims - 1))
