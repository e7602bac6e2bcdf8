"""Inverse-CDF draws from unnormalised weights, safe at both ends of the CDF."""

from __future__ import annotations

import torch

from fastguide.reference.faults import Fault, FaultCode, require


def pick(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """First v with cumsum_v > u * total, clamped to the last positive weight.

    Args:
        weights: [..., V] float64, >= 0, with a positive total.   u: [...] float64 in [0, 1).

    Returns:
        [...] int64, never the index of a zero weight.
    """
    cdf = weights.cumsum(-1)
    index = (cdf <= (u * cdf[..., -1]).unsqueeze(-1)).sum(-1)
    places = torch.arange(weights.shape[-1], device=weights.device)
    last = torch.where(weights > 0, places, 0).amax(-1)
    return torch.minimum(index, last)


def token_weights(
    logits: torch.Tensor, temperature: float, rows: torch.Tensor, sites: torch.Tensor
) -> torch.Tensor:
    """exp((logit - max) / temperature) in float64.

    Args:
        logits: [J, V] gathered logits.   rows, sites: [J] where each came from, for the error.

    Raises:
        Fault: LOGIT for NaN or +inf, NO_TOKEN where every logit is -inf.
    """
    logits = logits.double()
    for bad, code in (
        ((logits.isnan() | (logits == torch.inf)).any(-1), FaultCode.LOGIT),
        ((logits == -torch.inf).all(-1), FaultCode.NO_TOKEN),
    ):
        if bool(bad.any()):
            j = int(bad.nonzero()[0])
            raise Fault(code, int(rows[j]), int(sites[j]), 0)
    return torch.exp((logits - logits.amax(-1, keepdim=True)) / temperature)


def chain_rows(
    logits: torch.Tensor, index: torch.Tensor | None, num_rows: int, device: torch.device
) -> torch.Tensor:
    """`index` after its check; None stands for row n of logits [U, L, V].

    Raises:
        Fault: INDEX, unless the index is per site: those are checked where they are read.
    """
    if index is None:
        index = torch.arange(num_rows, device=device)
    if index.dim() == 1:
        require((index >= 0) & (index < logits.shape[0]), FaultCode.INDEX, index)
    return index


def site_logits(
    logits: torch.Tensor, index: torch.Tensor, rows: torch.Tensor, sites: torch.Tensor
) -> torch.Tensor:
    """Logits [J, V] of `sites` [J] of states `rows` [J].

    Args:
        logits: [U, L, V] with index [N], or [S, V] with index [N, L].

    Raises:
        Fault: INDEX, a row out of range for one of these sites.
    """
    if index.dim() == 1:
        return logits[index[rows], sites]
    row = index[rows, sites]
    bad = (row < 0) | (row >= logits.shape[0])
    if bool(bad.any()):
        j = int(bad.nonzero()[0])
        raise Fault(FaultCode.INDEX, int(rows[j]), int(sites[j]), int(row[j]))
    return logits[row]
