"""Candidates of one Gaussian reverse step, with the log-ratio of a shifted proposal."""

from __future__ import annotations

import torch

from fastguide.reference.faults import FaultCode, require
from fastguide.reference.philox_normal import philox_normal


def gaussian_propose(
    x: torch.Tensor,
    output: torch.Tensor,
    *,
    a: float,
    b: float,
    s: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    num_candidates: int,
    index: torch.Tensor | None = None,
    first_candidate: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x' = a x + b output + shift + s z for K candidates per chain, computed in float64.

    Args:
        x: [N, ...] floating point.   output: [U, ...] of the same trailing shape; chain n uses row
            index[n] (None: row n, U = N).   a, b, s: the step's coefficients, s >= 0.
        chains: [N] int64.   first_candidate: [N] int64, zeros if None.
        shift: [N, ...] added to the mean of the proposal, or None; needs s > 0.

    Returns:
        candidates [N, K, ...] of the dtype of x; log_ratio [N, K] float64, log p - log q =
        sum(-shift z / s - shift^2 / (2 s^2)) over the elements, or [N, 0] without a shift.
        Element e of candidate k takes normal e of the noise stream (purpose NOISE).

    Raises:
        Fault: INDEX, CHAIN or CANDIDATE.
    """
    num_chains = len(x)
    shape = x.shape[1:]
    if index is None:
        index = torch.arange(num_chains, device=x.device)
    require((index >= 0) & (index < len(output)), FaultCode.INDEX, index)
    z = philox_normal(
        seed,
        chains,
        step,
        2,
        num_elements=shape.numel(),
        num_candidates=num_candidates,
        first_candidate=first_candidate,
        dtype=torch.float64,
    ).view(num_chains, num_candidates, *shape)
    mean = a * x.double() + b * output[index].double()
    if shift is None:
        log_ratio = torch.empty(num_chains, 0, dtype=torch.float64, device=x.device)
    else:
        mean = mean + shift.double()
        scaled = shift.double()[:, None] / s
        log_ratio = (-scaled * (z + 0.5 * scaled)).flatten(2).sum(-1)
    return (mean[:, None] + s * z).to(x.dtype), log_ratio
