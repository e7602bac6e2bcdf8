"""K successors of each masked state: reveal first, then draw a token only where revealed."""

from __future__ import annotations

import math

import torch

from fastguide.reference.categorical import chain_rows, pick, site_logits, token_weights
from fastguide.reference.faults import FaultCode, require
from fastguide.reference.masked_keys import site_words
from fastguide.reference.philox import (
    candidate_ids,
    check_chains,
    counter_word3,
    philox,
    seed_key,
    uniform53,
)

REVEAL = 3
TOKEN = 4


def masked_propose(
    logits: torch.Tensor,
    x: torch.Tensor,
    keys: torch.Tensor,
    *,
    mask_token: int,
    rho: float,
    seed: int,
    chains: torch.Tensor,
    step: int,
    num_candidates: int,
    index: torch.Tensor | None = None,
    temperature: float = 1.0,
    first_candidate: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reveal each masked site with probability rho; draw tokens from softmax(logits / temperature).

    Args:
        logits: [U, L, V] float32|float64.   x: [N, L] int64.   keys: [N, 2] int64, keys of x.
        index: [N] int64, row of logits of each chain; None: row n; with logits [S, V]: [N, L].
        chains: [N] int64.
        first_candidate: [N] int64; candidate id = first_candidate[n] + k; None: zeros.

    Returns:
        tokens [N, K, L] int64, keys [N, K, 2] int64, changed [N, K] int32 (sites revealed).

    Raises:
        Fault: INDEX, TOKEN (neither mask nor in [0, V)), CHAIN, CANDIDATE, LOGIT, NO_TOKEN.

    Noise: REVEAL word id % 4 of block (site, id // 4); TOKEN 53 bits of block (site, id).
    """
    num_rows, length = x.shape
    vocab_size = logits.shape[-1]
    device = x.device
    check_chains(chains)
    ids = candidate_ids(num_rows, num_candidates, first_candidate, device)
    index = chain_rows(logits, index, num_rows, device)
    masked = x == mask_token
    require(masked | ((x >= 0) & (x < vocab_size)), FaultCode.TOKEN, x)

    key = seed_key(seed)
    sites = torch.arange(length, device=device)
    words = philox(
        sites[None, None, :],
        ids[:, :, None] // 4,
        chains[:, None, None],
        counter_word3(step, REVEAL, device),
        key,
    )
    lane = (ids % 4)[:, :, None]
    word = torch.where(
        lane < 2,
        torch.where(lane == 0, words[0], words[1]),
        torch.where(lane == 2, words[2], words[3]),
    )
    reveal = masked[:, None, :] & (word < math.floor(rho * 2**32))

    tokens = x[:, None, :].repeat(1, num_candidates, 1)
    out_keys = keys[:, None, :].repeat(1, num_candidates, 1)
    # Sites outermost, so that the first fault found is the first in (chain, site) order.
    n, site, k = reveal.transpose(1, 2).nonzero(as_tuple=True)
    if len(n):
        weights = token_weights(site_logits(logits, index, n, site), temperature, n, site)
        c3 = counter_word3(step, TOKEN, device)
        w0, w1, _, _ = philox(site, ids[n, k], chains[n], c3, key)
        drawn = pick(weights, uniform53(w0, w1))
        tokens[n, k, site] = drawn
        change = site_words(site, drawn) ^ site_words(site, torch.full_like(site, mask_token))
        for each in site.unique():
            at = site == each
            out_keys[n[at], k[at]] ^= change[at]
    return tokens, out_keys, reveal.sum(-1, dtype=torch.int32)
