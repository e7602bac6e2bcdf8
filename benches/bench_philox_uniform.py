"""philox_uniform against torch.rand, which draws one sequential stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops, reference
from fastguide.rng import Purpose

N, K, E = 16, 8, 12_288


def bench_philox_uniform(compare: Callable[..., Any]) -> None:
    chains = torch.arange(N)
    out = torch.empty(N, K, E, dtype=torch.float64)

    def ours() -> torch.Tensor:
        return ops.philox_uniform(
            1, chains, 2, Purpose.NOISE, num_elements=E, num_candidates=K, out=out
        )

    due = reference.philox_uniform(1, chains[:1], 2, Purpose.NOISE, num_elements=E)
    assert torch.equal(ours()[:1, :1], due)
    other = torch.empty_like(out)
    compare(
        "philox_uniform",
        f"N={N} K={K} E={E}, float64",
        ours,
        {"torch.rand": lambda: torch.rand(N, K, E, dtype=torch.float64, out=other)},
    )
