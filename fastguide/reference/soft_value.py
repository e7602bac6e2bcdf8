"""Soft values from inner samples: log-mean-exp, mean, or conditional value at risk."""

from __future__ import annotations

import math

import torch


def soft_value(
    values: torch.Tensor, alpha: float, *, kind: str = "lme", tau: float | None = None
) -> torch.Tensor:
    """Reduce [R, S] values of inner samples to [R], in float64, returned in the dtype of `values`.

    kind:
        "lme": alpha * log mean exp(values / alpha); alpha = 0: the maximum.
        "mean": the mean (alpha unused).
        "cvar": mean of the worst tau share, tau in (0, 1]; a fractional last sample counts in part.
    """
    v = values.double()
    if kind == "mean":
        out = v.mean(-1)
    elif kind == "lme" and alpha == 0:
        out = v.amax(-1)
    elif kind == "lme":
        out = alpha * (torch.logsumexp(v / alpha, -1) - math.log(v.shape[-1]))
    else:
        assert tau is not None
        weights = cvar_weights(v.shape[-1], tau, v.device)
        # The where keeps 0 * inf out of the sum.
        out = torch.where(weights > 0, v.sort(-1).values * weights, 0.0).sum(-1)
        out = torch.where(v.isnan().any(-1), torch.nan, out)
    return out.to(values.dtype)


def cvar_weights(num_samples: int, tau: float, device: torch.device) -> torch.Tensor:
    """Weight of each of the S ascending samples in the mean of the worst tau share: [S] float64."""
    share = tau * num_samples
    ranks = torch.arange(num_samples, dtype=torch.float64, device=device)
    return (share - ranks).clamp(0.0, 1.0) / share
