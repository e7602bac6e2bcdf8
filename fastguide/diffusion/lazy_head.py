"""Logits of single sites from hidden states: a large vocabulary's head runs only where it is read.

Which sites reveal is a function of the random stream alone, so it is known before any logits are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastguide import ops
from fastguide.diffusion.base import Outputs
from fastguide.errors import DtypeError, ShapeError

Tensor = torch.Tensor

LOGIT_BYTES = 256 * 2**20
"""Most memory of the logits that exist at a time."""

UNKNOWN_WIDTH = 1024
"""Assumed width of hidden states, for planning memory, where the head does not tell."""


def hidden_width(head: Any) -> int:
    """Numbers per site that a head reads, as far as one can know before the first call."""
    return int(getattr(head, "in_features", UNKNOWN_WIDTH))


def revealing_sites(
    x: Tensor,
    keys: Tensor,
    *,
    mask_token: int,
    rho: float,
    seed: int,
    chains: Tensor,
    step: int,
    num_candidates: int,
    first_candidate: Tensor,
) -> Tensor:
    """[N, L] bool: masked sites of x [N, L] that at least one of the candidates will reveal.

    A proposal over a vocabulary of one token reveals the same sites and needs no logits.
    """
    masked = x == mask_token
    stand_in = 0 if mask_token != 0 else 1
    logits = torch.zeros((1, x.shape[1], stand_in + 1), device=x.device)
    logits[..., :stand_in] = float("-inf")
    tokens, _, _ = ops.masked_propose(
        logits,
        torch.where(masked, mask_token, stand_in),
        keys,
        mask_token=mask_token,
        rho=rho,
        seed=seed,
        chains=chains,
        step=step,
        num_candidates=num_candidates,
        index=torch.zeros_like(chains),
        first_candidate=first_candidate,
    )
    return (tokens != mask_token).any(dim=1) & masked


def site_logits(
    head: Callable[[Tensor], Tensor], outputs: Outputs, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits of the wanted sites, each distinct one once.

    Args:
        head: hidden states [S, ...] -> logits [S, V].   outputs: hidden states [slots, L, ...].
        wanted: [R, L] bool, sites of the rows.

    Returns:
        logits [S, V]; index [R, L] int64, the row of each wanted site, -1 elsewhere.
    """
    rows, sites = wanted.nonzero(as_tuple=True)
    length = wanted.shape[1]
    # Rows of one slot are equal states: a site of theirs is looked at once.
    places = outputs.slots[rows] * length + sites
    distinct, inverse = places.unique(return_inverse=True)
    owner = torch.full_like(distinct, len(wanted)).scatter_reduce_(0, inverse, rows, "amin")
    logits = outputs.call_head(head, outputs.buffer.flatten(0, 1)[distinct], owner)
    index = torch.full(wanted.shape, -1, dtype=torch.int64, device=wanted.device)
    index[rows, sites] = inverse
    return logits, index


def row_groups(wanted: Tensor, vocab_size: int) -> Iterator[slice]:
    """Runs of rows whose wanted sites [R, L] have logits of at most LOGIT_BYTES, or single rows."""
    most = LOGIT_BYTES // (4 * vocab_size)
    begin, total = 0, 0
    counts = wanted.sum(dim=1).tolist()
    for row, count in enumerate(counts):
        if row > begin and total + count > most:
            yield slice(begin, row)
            begin, total = row, 0
        total += count
    yield slice(begin, len(counts))


def check_hidden(hidden: Any, rows: int, length: int) -> Tensor:
    """Hidden states [B, L, ...] as the denoiser returned them, or an error with what was due."""
    due = f"[{rows}, {length}, ...], which head turns into logits"
    if not isinstance(hidden, torch.Tensor):
        raise DtypeError(
            f"denoiser must return a tensor of hidden states {due}, got {type(hidden).__name__}"
        )
    if hidden.dim() < 3 or hidden.shape[:2] != (rows, length):
        raise ShapeError(f"denoiser must return hidden states {due}, got {list(hidden.shape)}")
    if not hidden.is_floating_point():
        raise DtypeError(f"denoiser must return floating-point hidden states, got {hidden.dtype}")
    return hidden


def check_head_logits(logits: Any, rows: int, vocab_size: int) -> Tensor:
    """Logits [S, V] or [S, V + 1] as the head returned them, or an error with what was due."""
    due = f"[{rows}, {vocab_size}] (or {vocab_size + 1} columns)"
    if not isinstance(logits, torch.Tensor):
        raise DtypeError(f"head must return a tensor of logits {due}, got {type(logits).__name__}")
    if logits.shape not in ((rows, vocab_size), (rows, vocab_size + 1)):
        raise ShapeError(f"head must return logits {due}, got {list(logits.shape)}")
    if not logits.is_floating_point():
        raise DtypeError(f"head must return floating-point logits, got {logits.dtype}")
    return logits
