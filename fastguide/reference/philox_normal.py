"""Standard normals of the stream, one per (chain, candidate, element)."""

from __future__ import annotations

import torch

from fastguide.reference.philox import (
    box_muller,
    candidate_ids,
    check_chains,
    counter_word3,
    philox,
    seed_key,
)


def philox_normal(
    seed: int,
    chains: torch.Tensor,
    step: int,
    purpose: int,
    *,
    num_elements: int,
    num_candidates: int = 1,
    first_candidate: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Box-Muller normals: block c0 = element // 4, whose word pairs give elements 4b..4b+3.

    Args:
        seed: in [0, 2**64).   chains: [N] int64 global ids.   step, purpose: counter word c3.
        first_candidate: [N] int64, zeros if None.   dtype: float32 or float64, of the result only.

    Returns:
        [N, num_candidates, num_elements] of `dtype`.

    Raises:
        Fault: CHAIN or CANDIDATE, an id outside [0, 2**32).
    """
    check_chains(chains)
    device = chains.device
    ids = candidate_ids(len(chains), num_candidates, first_candidate, device)
    num_blocks = (num_elements + 3) // 4
    w0, w1, w2, w3 = philox(
        torch.arange(num_blocks, device=device)[None, None, :],
        ids[:, :, None],
        chains[:, None, None],
        counter_word3(step, purpose, device),
        seed_key(seed),
    )
    normals = torch.stack([*box_muller(w0, w1), *box_muller(w2, w3)], dim=-1)
    return normals.flatten(-2)[..., :num_elements].to(dtype)
