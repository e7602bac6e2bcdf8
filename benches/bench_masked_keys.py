"""masked_keys against a table lookup and against a 64-bit multiply-add hash.

The engine makes whole keys once per run; `masked_propose` then updates them. A table needs L V
entries and the hash is half as wide and easily attacked, so neither computes the same thing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from harness import num_bytes

from fastguide import ops
from fastguide.reference.masked_keys import site_words

V = 5


@pytest.mark.parametrize(("r", "length"), [(2560, 50), (32, 1024)])
def bench_masked_keys(compare: Callable[..., None], r: int, length: int) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, V, (r, length), generator=g)
    factors = torch.randint(-(2**62), 2**62, (length,), generator=g)
    sites = torch.arange(length)
    words = site_words(sites[:, None], torch.arange(V)[None, :])

    def by_table() -> torch.Tensor:
        picked = words[sites, x]
        key = picked[:, 0].clone()
        for site in range(1, length):
            key ^= picked[:, site]
        return key

    def by_hash() -> torch.Tensor:
        return (x * factors).sum(1)

    out = ops.masked_keys(x)
    compiled = torch.compile(by_hash, dynamic=False)
    assert torch.equal(by_table(), out)
    assert torch.equal(compiled(), by_hash())
    compare(
        "masked_keys",
        f"R={r} L={length}, int64",
        lambda: ops.masked_keys(x, out=out),
        {
            "table lookup, XOR of sites": by_table,
            "64-bit multiply-add hash": by_hash,
            "the hash, torch.compile": compiled,
        },
        bytes_moved=num_bytes(x, out),
    )
