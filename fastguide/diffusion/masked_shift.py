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


def empty_proposal(
    x: Tensor, keys: Tensor, num_candidates: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """`out` of `ops.masked_propose`: given, it spares the dispatcher, as costly as few rows are.

    None for traced tensors, which only the dispatcher knows how to handle.
    """
    if type(x) is not Tensor:
        return None
    due = (len(x), num_candidates)
    changed = x.new_empty(due, dtype=torch.int32)
    return x.new_empty((*due, x.shape[1])), keys.new_empty((*due, 2)), changed


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
    weigh: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """K successors of each row under the tilted kernel.

    Args:
        logits: [R, L, V], one row for each state, -inf at the mask token if it is below V.
        x: [R, L] int64.   tilt: [R, L, V], log h of each reveal, finite.
        weigh: False leaves log p - log q away.   The others: as `ops.masked_propose`.

    Returns:
        tokens [R, K, L], keys [R, K, 2], changed [R, K] int32, log p - log q [R, K] float64.
    """
    vocab_size = logits.shape[-1]
    # the column of the mask: its own if it lies inside the vocabulary, else one more
    column = mask_token if mask_token < vocab_size else vocab_size
    masked = x == mask_token
    x = x if column == mask_token else torch.where(masked, column, x)
    sites = masked.flatten().nonzero()[:, 0]
    logits = logits.flatten(0, 1).index_select(0, sites)
    logits = logits if temperature == 1.0 else logits.double() / temperature
    tilt = tilt.flatten(0, 1).index_select(0, sites)
    log_p = logits.log_softmax(dim=-1, dtype=torch.float64)
    stay = math.log1p(-rho) if rho < 1 else -math.inf
    log_q = log_p.new_full((len(sites), max(vocab_size, column + 1)), stay)
    log_q[:, :vocab_size] = log_p.add_(tilt).add_(math.log(rho) if rho > 0 else -math.inf)
    if column < vocab_size:
        log_q[:, column] = stay
    tokens, new_keys, _ = ops.masked_propose(
        log_q,
        x,
        keys,
        mask_token=column,
        rho=1.0,
        seed=seed,
        chains=chains,
        step=step,
        num_candidates=num_candidates,
        index=(masked.flatten().cumsum(0) - 1).view_as(x),
        first_candidate=first_candidate,
        out=empty_proposal(x, keys, num_candidates),
    )
    changed = (tokens != x[:, None]).sum(-1, dtype=torch.int32)
    ratio = None
    if weigh:  # at each masked site log H, less what the token it took was favoured by
        drawn = tokens.transpose(1, 2).reshape(-1, num_candidates).index_select(0, sites)
        gained = tilt.gather(1, drawn.clamp_max(vocab_size - 1)).where(drawn != column, 0.0)
        ratio = log_q.new_zeros((x.numel(), num_candidates))
        ratio[sites] = log_q.logsumexp(dim=-1, keepdim=True) - gained
        ratio = ratio.view(*x.shape, num_candidates).transpose(1, 2).contiguous().sum(-1)
    if column != mask_token:
        tokens = tokens.where(~(masked[:, None] & (tokens == column)), mask_token)
        new_keys = ops.masked_keys(tokens.flatten(0, 1)).view_as(new_keys)
    return tokens, new_keys, changed, ratio
