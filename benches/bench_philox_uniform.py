"""philox_uniform against torch.rand, which draws one sequential stream."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from harness import num_bytes

from fastguide import ops, reference
from fastguide.rng import Purpose


@pytest.mark.parametrize(("n", "k", "e"), [(16, 8, 12_288), (256, 1, 256)])
def bench_philox_uniform(compare: Callable[..., None], n: int, k: int, e: int) -> None:
    chains = torch.arange(n)
    out, other = torch.empty(2, n, k, e, dtype=torch.float64)

    def ours() -> torch.Tensor:
        return ops.philox_uniform(
            1, chains, 2, Purpose.NOISE, num_elements=e, num_candidates=k, out=out
        )

    def rand() -> torch.Tensor:
        return torch.rand(n, k, e, dtype=torch.float64)

    due = reference.philox_uniform(1, chains[:1], 2, Purpose.NOISE, num_elements=e)
    assert torch.equal(ours()[:1, :1], due)
    compare(
        "philox_uniform",
        f"N={n} K={k} E={e}, float64",
        ours,
        {
            "torch.rand": lambda: torch.rand(n, k, e, dtype=torch.float64, out=other),
            "torch.compile": torch.compile(rand, dynamic=False),
        },
        bytes_moved=num_bytes(out),
    )
