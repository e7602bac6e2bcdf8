"""philox_normal against torch.randn, which draws one sequential stream in float32 arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from harness import num_bytes

from fastguide import ops, reference
from fastguide.rng import Purpose
from fastguide.testing import assert_matches


@pytest.mark.parametrize(("n", "k", "e"), [(16, 8, 12_288), (256, 1, 256)])
def bench_philox_normal(compare: Callable[..., None], n: int, k: int, e: int) -> None:
    chains = torch.arange(n)
    out, other = torch.empty(2, n, k, e)

    def ours() -> torch.Tensor:
        return ops.philox_normal(
            1, chains, 2, Purpose.NOISE, num_elements=e, num_candidates=k, out=out
        )

    due = reference.philox_normal(1, chains[:1], 2, Purpose.NOISE, num_elements=e)
    assert_matches("philox_normal", ours()[:1, :1], due)
    compare(
        "philox_normal",
        f"N={n} K={k} E={e}, float32",
        ours,
        {
            "torch.randn": lambda: torch.randn(n, k, e, out=other),
            "torch.compile": torch.compile(lambda: torch.randn(n, k, e), dynamic=False),
        },
        bytes_moved=num_bytes(out),
    )
