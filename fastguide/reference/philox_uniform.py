"""Uniforms of the stream, one per (chain, candidate, element)."""

from __future__ import annotations

import torch

from fastguide.reference.philox import (
    candidate_ids,
    check_chains,
    counter_word3,
    philox,
    seed_key,
    uniform53,
)


def philox_uniform(
    seed: int,
    chains: torch.Tensor,
    step: int,
    purpose: int,
    *,
    num_elements: int,
    num_candidates: int = 1,
    first_candidate: torch.Tensor | None = None,
) -> torch.Tensor:
    """53-bit uniforms in [0, 1) at counter (element, first_candidate[n] + k, chains[n], c3).

    Args:
        seed: in [0, 2**64).   chains: [N] int64 global ids.   step, purpose: counter word c3.
        first_candidate: [N] int64, zeros if None.

    Returns:
        [N, num_candidates, num_elements] float64.

    Raises:
        Fault: CHAIN or CANDIDATE, an id outside [0, 2**32).
    """
    check_chains(chains)
    device = chains.device
    ids = candidate_ids(len(chains), num_candidates, first_candidate, device)
    w0, w1, _, _ = philox(
        torch.arange(num_elements, device=device)[None, None, :],
        ids[:, :, None],
        chains[:, None, None],
        counter_word3(step, purpose, device),
        seed_key(seed),
    )
    return uniform53(w0, w1)
