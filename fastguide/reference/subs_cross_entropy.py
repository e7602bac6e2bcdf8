"""Cross-entropy of the masked sites, from logits or from hidden states and a linear head."""

from __future__ import annotations

import torch

from fastguide.reference.faults import FaultCode, require


def subs_cross_entropy(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    *,
    mask_token: int,
    weight: torch.Tensor | None = None,
    head: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted sum over the masked sites of x of -log softmax(logits)[target], per row.

    Args:
        logits: [N, L, V] floating point; with a head: hidden states [N, L, H].
        x: [N, L] int64, the noised state.   targets: [N, L] int64, the clean one.
        weight: [N], or None: 1.   head: [V, H], logits = hidden @ head.T; or None.

    Returns:
        [N] float64, nats.

    Raises:
        Fault: TOKEN, an entry of x or a target at a masked site that is out of range.
    """
    n, log_p, token = masked_log_probs(logits, x, targets, mask_token, head)
    zeros = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    loss = zeros.index_add(0, n, -log_p.gather(1, token[:, None])[:, 0])
    return loss if weight is None else loss * weight.double()


def masked_log_probs(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    head: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(row [R], log p [R, V], target [R]) of every masked site.

    Raises:
        Fault: TOKEN.
    """
    vocab_size = logits.shape[-1] if head is None else head.shape[0]
    masked = x == mask_token
    require(masked | ((x >= 0) & (x < vocab_size)), FaultCode.TOKEN, x)
    require(~masked | ((targets >= 0) & (targets < vocab_size)), FaultCode.TOKEN, targets)
    rows = logits[masked].double()
    if head is not None:
        rows = rows @ head.double().T
    return masked.nonzero()[:, 0], rows.log_softmax(-1), targets[masked]


def site_normalisers(
    logits: torch.Tensor, x: torch.Tensor, mask_token: int, head: torch.Tensor | None
) -> torch.Tensor:
    """[N, L] float64: log of the sum of exp(logit) at the masked sites; 0 elsewhere."""
    masked = x == mask_token
    rows = logits[masked].double()
    found = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    found[masked] = (rows if head is None else rows @ head.double().T).logsumexp(-1)
    return found


def subs_cross_entropy_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    head: torch.Tensor | None,
    d_loss: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients in logits (or hidden states) and head from those in the unweighted loss [N]."""
    n, log_p, token = masked_log_probs(logits, x, targets, mask_token, head)
    scale = d_loss[n][:, None]
    gradient = (scale * log_p.exp()).scatter_add(1, token[:, None], -scale)
    d_head = None
    masked = x == mask_token
    if head is not None:
        d_head = (gradient.T @ logits[masked].double()).to(head.dtype)
        gradient = gradient @ head.double()
    result = torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device)
    result[masked] = gradient.to(logits.dtype)
    return result, d_head
