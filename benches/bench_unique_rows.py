"""unique_rows against torch.unique over rows and over a multiply-add hash.

How many rows are distinct is known only afterwards: torch.compile leaves such calls as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from harness import num_bytes

from fastguide import ops

ROWS, DISTINCT = 2560, 768


@pytest.mark.parametrize("length", [50, 200])
def bench_unique_rows(compare: Callable[..., None], length: int) -> None:
    """Random rows, which favours the rivals: those of a sampler share long prefixes. Keys are
    given, as masked_propose makes them; the hash of the rival is part of its time."""
    g = torch.Generator().manual_seed(length)
    pool = torch.randint(0, 4, (DISTINCT, length), generator=g)
    again = torch.randint(0, DISTINCT, (ROWS - DISTINCT,), generator=g)
    order = torch.randperm(ROWS, generator=g)
    rows = pool[torch.cat([torch.arange(DISTINCT), again])[order]]
    keys = ops.masked_keys(rows)
    out = ops.unique_rows(rows, keys)
    factors = torch.randint(-(2**62), 2**62, (length,), generator=g)
    products, hashes = torch.empty_like(rows), torch.empty(ROWS, dtype=torch.int64)

    def by_rows() -> torch.Tensor:
        return torch.unique(rows, dim=0, return_inverse=True)[1]

    def by_hash() -> torch.Tensor:
        torch.mul(rows, factors, out=products)
        torch.sum(products, dim=1, out=hashes)
        return torch.unique(hashes, return_inverse=True)[1]

    assert int(out.count) == DISTINCT
    assert torch.equal(rows[out.first[out.inverse]], rows)
    for rival in (by_rows, by_hash):
        # The same partition: each of our groups is one of theirs.
        inverse = rival()
        assert int(inverse.max()) == DISTINCT - 1
        assert torch.equal(inverse[out.first][out.inverse], inverse)
    compare(
        "unique_rows",
        f"R={ROWS} L={length}, {DISTINCT} distinct, int64, keys given",
        lambda: ops.unique_rows(rows, keys, out=out),
        {
            "torch.unique(dim=0)": by_rows,
            "multiply-add hash, torch.unique": by_hash,
            "masked_keys, then unique_rows": lambda: ops.unique_rows(rows, out=out),
        },
        due={"torch.unique(dim=0)": 20, "multiply-add hash, torch.unique": 3},
        bytes_moved=num_bytes(rows, keys, out),
        rounds=100,
    )
