"""128-bit Zobrist keys of token rows."""

from __future__ import annotations

import torch

from fastguide.reference.philox import LOW, philox

KEY = (0x66617374, 0x67756964)
COUNTER_WORD3 = 0x5A4F4252


def site_words(sites: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Key word pair of (site, token): [..., 2] int64 bit patterns. `sites`, `tokens` broadcast."""
    c3 = torch.tensor(COUNTER_WORD3, dtype=torch.int64, device=tokens.device)
    w0, w1, w2, w3 = philox(sites, tokens & LOW, (tokens >> 32) & LOW, c3, KEY)
    return torch.stack([w0 | (w1 << 32), w2 | (w3 << 32)], dim=-1)


def masked_keys(x: torch.Tensor) -> torch.Tensor:
    """XOR over the sites of a row of word(site, token).

    Args:
        x: [R, L] int64.

    Returns:
        [R, 2] int64 bit patterns. Rows that differ in one site differ in exactly that site's words,
        so a successor's key follows from its parent's in O(changes).

    Source: Zobrist, "A new hashing method with application for game playing", 1970.
    """
    keys = torch.zeros(x.shape[0], 2, dtype=torch.int64, device=x.device)
    for site in range(x.shape[1]):
        keys ^= site_words(torch.tensor(site, device=x.device), x[:, site])
    return keys
