"""SUBS cross-entropy from hidden states and a linear head, a slice of the vocabulary at a time.

Forward goes over the slices once and keeps three numbers per masked site; backward makes the logits
of each slice again, turns them in place into their gradient, and multiplies that on. The products
are torch.mm, in the dtype of the head; the gradient in hidden states of 16 bits, a sum over the
slices, is float32 until it is complete. `sums` and `pull` are kernels of a backend:

    sums(logits [R, C], first, targets [R], top, total, chosen [R])
    pull(logits [R, C], first, targets [R], normalisers, scale [R])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

MOST_LOGITS = 2**22
"""Logits that exist at a time, unless there are more sites than MOST_LOGITS / FEWEST_TOKENS."""
FEWEST_TOKENS = 128

Sums = Callable[[torch.Tensor, int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
Pull = Callable[[torch.Tensor, int, torch.Tensor, torch.Tensor, torch.Tensor], None]


def _slices(num_sites: int, head: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(first token, its rows of the head, room for their logits) of every slice."""
    vocab_size = head.shape[0]
    tokens = min(vocab_size, max(MOST_LOGITS // max(num_sites, 1), FEWEST_TOKENS))
    room = head.new_empty(num_sites * tokens)
    for first in range(0, vocab_size, tokens):
        rows = head[first : first + tokens]
        yield first, rows, room[: num_sites * len(rows)].view(num_sites, len(rows))


def forward(
    sums: Sums,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    head: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden [R, H], targets [R], head [V, H] -> -log p(target) [R], log normalisers [R]."""
    num_sites = hidden.shape[0]
    top = torch.full((num_sites,), -torch.inf, dtype=torch.float64, device=hidden.device)
    total, chosen = torch.zeros(2, num_sites, dtype=torch.float64, device=hidden.device)
    for first, rows, logits in _slices(num_sites, head):
        torch.mm(hidden, rows.T, out=logits)
        sums(logits, first, targets, top, total, chosen)
    normalisers = top + total.log()
    return normalisers - chosen, normalisers


def backward(
    pull: Pull,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    head: torch.Tensor,
    normalisers: torch.Tensor,
    scale: torch.Tensor,
    d_head: torch.Tensor,
) -> torch.Tensor:
    """Gradients of sum(scale * loss): writes d_head [V, H], returns that in hidden [R, H]."""
    halves = hidden.dtype.itemsize == 2
    d_hidden = torch.zeros_like(hidden, dtype=torch.float32 if halves else None)
    for first, rows, logits in _slices(hidden.shape[0], head):
        torch.mm(hidden, rows.T, out=logits)
        pull(logits, first, targets, normalisers, scale)
        torch.mm(logits.T, hidden, out=d_head[first : first + len(rows)])
        if halves:
            d_hidden += torch.mm(logits, rows)
        else:
            d_hidden.addmm_(logits, rows)
    return d_hidden.to(hidden.dtype)


def first_bad_token(
    x: torch.Tensor, targets: torch.Tensor, vocab_size: int, mask_token: int
) -> tuple[int, int, int] | None:
    """(row, column, value) of the first entry, or target of a masked one, out of range, or None."""
    masked = x == mask_token
    looked_at = torch.where(masked, targets, x)
    bad = (looked_at < 0) | (looked_at >= vocab_size)
    if not bool(bad.any()):
        return None
    row, column = (int(i) for i in bad.nonzero()[0])
    return row, column, int(looked_at[row, column])


def masked_rows(
    hidden: torch.Tensor, x: torch.Tensor, targets: torch.Tensor, mask_token: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(indices [R] of the masked ones of all sites, their hidden states [R, H], targets [R])."""
    sites = (x.flatten() == mask_token).nonzero()[:, 0]
    rows = hidden.flatten(0, 1).index_select(0, sites)
    return sites, rows, targets.flatten().index_select(0, sites)


def scatter_loss(
    sites: torch.Tensor,
    site_loss: torch.Tensor,
    site_normalisers: torch.Tensor,
    loss: torch.Tensor,
    normalisers: torch.Tensor,
) -> None:
    """Writes loss [N] and normalisers [N, L], 0 at clean sites, from those of the masked sites."""
    each = torch.zeros_like(normalisers)
    each.view(-1).index_copy_(0, sites, site_loss)
    torch.sum(each, 1, out=loss)
    normalisers.zero_().view(-1).index_copy_(0, sites, site_normalisers)


def head_forward(
    sums: Sums,
    hidden: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    head: torch.Tensor,
    loss: torch.Tensor,
    normalisers: torch.Tensor,
) -> None:
    """hidden [N, L, H], x, targets [N, L], head [V, H] -> loss [N], normalisers [N, L]."""
    sites, rows, tokens = masked_rows(hidden, x, targets, mask_token)
    scatter_loss(sites, *forward(sums, rows, tokens, head), loss, normalisers)


def head_backward(
    pull: Pull,
    hidden: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    head: torch.Tensor,
    normalisers: torch.Tensor,
    d_loss: torch.Tensor,
    d_hidden: torch.Tensor,
    d_head: torch.Tensor,
) -> None:
    """Writes d_hidden [N, L, H], 0 at clean sites, and d_head [V, H]."""
    sites, rows, tokens = masked_rows(hidden, x, targets, mask_token)
    scale = d_loss.index_select(0, sites // x.shape[1])
    given = (head, normalisers.view(-1).index_select(0, sites), scale, d_head)
    d_rows = backward(pull, rows, tokens, *given)
    d_hidden.zero_().view(-1, d_hidden.shape[-1]).index_copy_(0, sites, d_rows)
