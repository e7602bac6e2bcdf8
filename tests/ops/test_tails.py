"""Rare tokens: a float32 cumulative sum, or a draw of 24 bits, would never reach most of them."""

from __future__ import annotations

import math

import pytest
import torch

from fastguide import ops
from fastguide.testing import chi_square_p, z_score

V, NUM_RARE, P_RARE, CHAINS = 50_000, 1_000, 1e-7, 2


@pytest.mark.parametrize(
    ("length", "candidates", "steps"),
    [
        # Few draws a site: by sums of blocks.
        pytest.param(10_000, 100, 1, id="2e6"),
        # Many draws a site: by sums in order.
        pytest.param(20, 50_000, 50, id="1e8", marks=pytest.mark.slow),
    ],
)
def test_a_thousand_tokens_of_probability_1e_minus_7(
    length: int, candidates: int, steps: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    rare = torch.randperm(V, generator=generator)[:NUM_RARE]
    p = torch.full((V,), (1 - NUM_RARE * P_RARE) / (V - NUM_RARE), dtype=torch.float64)
    p[rare] = P_RARE
    logits = p.log().float()
    law = logits.double().softmax(-1)
    x = torch.full((CHAINS, length), V)
    keys = ops.masked_keys(x)
    counts = torch.zeros(V, dtype=torch.int64)
    proposal = None
    for step in range(steps):
        proposal = ops.masked_propose(
            logits.expand(CHAINS, length, V),
            x,
            keys,
            mask_token=V,
            rho=1.0,
            seed=1,
            chains=torch.arange(CHAINS),
            step=step,
            num_candidates=candidates,
            out=proposal,
        )
        counts += torch.bincount(proposal.tokens.flatten(), minlength=V)
    draws = CHAINS * length * candidates * steps
    assert int(counts.sum()) == draws
    assert chi_square_p(counts, law) > 1e-6
    # Rare tokens together, and one by one: a Poisson law to 1e-7.
    seen, due = counts[rare], draws * P_RARE
    assert abs(z_score(int(seen.sum()), draws, float(law[rare].sum()))) < 5
    poisson = [math.exp(-due) * due**k / math.factorial(k) for k in range(30)]
    poisson.append(max(0.0, 1 - math.fsum(poisson)))
    assert chi_square_p(torch.bincount(seen.clamp(max=30), minlength=31), poisson) > 1e-6
