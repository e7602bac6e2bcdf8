"""Proposals of a masked chain whose reveals are tilted, with their log-ratio.

At a masked site the plain kernel keeps the mask with probability 1 - rho and reveals token k with
rho p(k). The tilted one multiplies the reveals by h(k) and divides all by H = (1 - rho) + rho sum_k
p(k) h(k), so it also reveals sooner where that pays. It is one draw over V + 1 outcomes, the mask
among them, which is what a proposal with rho = 1 over one more column does.
"""

from __future__ import annotations

import math

import torch

from fastguide import ops

Tensor = torch.Tensor


def propose_tilted(
    logits: Tensor,
    x: Tensor,
    keys: Tensor,
    tilt: Tensor,
    *,
    mask_token: int,
    rho: float,
    temperature: float,
    seed: int,
    chains: Tensor,
    step: int,
    num_candidates: int,
    first_candidate: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K successors of each row under the tilted kernel.

    Args:
        logits: [R, L, V], one row for each state, -inf at the mask token if it is below V.
        x: [R, L] int64.   tilt: [R, L, V], log h of each reveal, finite.
        The others: as `ops.masked_propose`.

    Returns:
        tokens [R, K, L], keys [R, K, 2], changed [R, K] int32, log p - log q [R, K] float64.
    """
    vocab_size = logits.shape[-1]
    # the column of the mask: its own if it lies inside the vocabulary, else one more
    column = mask_token if mask_token < vocab_size else vocab_size
    masked = x == mask_token
    log_p = (logits.double() / temperature).log_softmax(dim=-1)
    log_q = log_p + tilt.double() + (math.log(rho) if rho > 0 else -math.inf)
    stay = math.log1p(-rho) if rho < 1 else -math.inf
    if column == vocab_size:
        log_q = torch.cat([log_q, torch.full_like(log_q[..., :1], stay)], dim=-1)
    else:
        log_q[..., column] = stay
    log_total = log_q.logsumexp(dim=-1)  # log H of each site
    tokens, new_keys, _ = ops.masked_propose(
        log_q,
        torch.where(masked, column, x),
        keys,
        mask_token=column,
        rho=1.0,
        seed=seed,
        chains=chains,
        step=step,
        num_candidates=num_candidates,
        first_candidate=first_candidate,
    )
    stayed = tokens == column
    revealed = masked[:, None] & ~stayed
    known = tokens.clamp_max(vocab_size - 1)
    gained = tilt.double().gather(2, known.transpose(1, 2)).transpose(1, 2)
    site = torch.where(masked[:, None], log_total[:, None] - gained.where(revealed, 0.0), 0.0)
    if column != mask_token:
        tokens = tokens.where(~(stayed & masked[:, None]), mask_token)
        new_keys = ops.masked_keys(tokens.flatten(0, 1)).view_as(new_keys)
    return tokens, new_keys, revealed.sum(-1, dtype=torch.int32), site.sum(-1)
