"""What the rows that were chosen take along."""

from __future__ import annotations

import torch

from fastguide.reference.faults import FaultCode, require

GatherItem = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def gather_rows(item: GatherItem, index: torch.Tensor) -> torch.Tensor:
    """Entry index[n, ...] of row n of a gather item.

    Args:
        item: tensor [N, K, ...], or a pair (tensor [U, ...], idx [N, K] int64) that stands for
            tensor[idx].   index: [N] or [N, M] int64 in [0, K).

    Returns:
        [N, ...] or [N, M, ...].

    Raises:
        Fault: GATHER, a chosen idx is no row of its tensor.
    """
    rows = torch.arange(len(index), device=index.device).view(-1, *[1] * (index.dim() - 1))
    if isinstance(item, torch.Tensor):
        return item[rows, index]
    source, where = item
    chosen = where[rows, index]
    require((chosen >= 0) & (chosen < source.shape[0]), FaultCode.GATHER, chosen)
    return source[chosen]
