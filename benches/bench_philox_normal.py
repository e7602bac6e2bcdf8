"""philox_normal against torch.randn, which draws one sequential stream in float32 arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops, reference
from fastguide.rng import Purpose
from fastguide.testing import assert_matches

N, K, E = 16, 8, 12_288


def bench_philox_normal(compare: Callable[..., Any]) -> None:
    chains = torch.arange(N)
    out = torch.empty(N, K, E)

    def ours() -> torch.Tensor:
        return ops.philox_normal(
            1, chains, 2, Purpose.NOISE, num_elements=E, num_candidates=K, out=out
        )

    due = reference.philox_normal(1, chains[:1], 2, Purpose.NOISE, num_elements=E)
    assert_matches("philox_normal", ours()[:1, :1], due)
    other = torch.empty_like(out)
    compare(
        "philox_normal",
        f"N={N} K={K} E={E}, float32",
        ours,
        {"torch.randn": lambda: torch.randn(N, K, E, out=other)},
    )
