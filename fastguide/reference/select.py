"""One index per group from values / alpha, with log-mean-exp and effective sample size."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastguide.reference.categorical import pick
from fastguide.reference.faults import FaultCode, require
from fastguide.reference.gather import GatherItem, gather_rows
from fastguide.reference.philox import check_chains, counter_word3, philox, seed_key, uniform53


def select(
    values: torch.Tensor,
    *,
    alpha: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    log_ratio: torch.Tensor | None = None,
    particles: torch.Tensor | None = None,
    purpose: int = 7,
    gather: Sequence[GatherItem] = (),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Draw one candidate per row from softmax(values / alpha + log_ratio); alpha = 0: argmax.

    Args:
        values: [N, K] float32|float64; -inf never picked.   log_ratio: [N, K] or None.
        chains: [N] int64.   particles: [N] int64, counter word c1 of the draw; None: zeros.
        gather: tensors [N, K, ...], or pairs (tensor [U, ...], idx [N, K] int64).

    Returns:
        index [N] int64, lme [N] float64 (nats; alpha = 0: the maximum value), ess [N] float64
        (alpha = 0: 1), gathered: one tensor [N, ...] per gather item. A row with every weight -inf
        picks floor(u * K) and reports lme = -inf, ess = 0.

    Raises:
        Fault: VALUE (NaN or +inf), CHAIN, CANDIDATE (a particle id), GATHER.
    """
    num_candidates = values.shape[1]
    device = values.device
    check_chains(chains)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    if particles is not None:
        require((particles >= 0) & (particles < 2**32), FaultCode.CANDIDATE, particles)
    log_w = values.double()
    if alpha > 0:
        log_w = log_w / alpha
        if log_ratio is not None:
            log_w = log_w + log_ratio.double()
    require(~(log_w.isnan() | (log_w == torch.inf)), FaultCode.VALUE)

    w0, w1, _, _ = philox(
        zero,
        zero if particles is None else particles,
        chains,
        counter_word3(step, purpose, device),
        seed_key(seed),
    )
    u = uniform53(w0, w1)
    top = log_w.amax(-1)
    dead = top == -torch.inf
    if alpha == 0:
        index = (log_w == top[:, None]).to(torch.uint8).argmax(-1)
        lme, ess = top, torch.ones_like(top)
    else:
        weights = torch.exp(log_w - torch.where(dead, 0.0, top)[:, None])
        total = weights.sum(-1)
        index = pick(weights, u)
        lme = top + torch.log(total / num_candidates)
        ess = total.square() / weights.square().sum(-1)
    index = torch.where(dead, (u * num_candidates).long().clamp(max=num_candidates - 1), index)
    lme = torch.where(dead, -torch.inf, lme)
    ess = torch.where(dead, 0.0, ess)

    return index, lme, ess, tuple(gather_rows(item, index) for item in gather)
