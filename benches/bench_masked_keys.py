"""masked_keys against a table lookup and against a 64-bit multiply-add hash.

The engine makes whole keys once per run; `masked_propose` then updates them. A table needs L V
entries and the hash is half as wide and easily attacked, so neither computes the same thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops
from fastguide.reference.masked_keys import site_words

R, L, V = 2560, 50, 5


def bench_masked_keys(compare: Callable[..., Any]) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, V, (R, L), generator=g)
    factors = torch.randint(-(2**62), 2**62, (L,), generator=g)
    words = site_words(torch.arange(L)[:, None], torch.arange(V)[None, :])
    sites = torch.arange(L)

    def by_table() -> torch.Tensor:
        picked = words[sites, x]
        key = picked[:, 0].clone()
        for site in range(1, L):
            key ^= picked[:, site]
        return key

    out = ops.masked_keys(x)
    assert torch.equal(by_table(), out)
    compare(
        "masked_keys",
        f"R={R} L={L}, int64",
        lambda: ops.masked_keys(x, out=out),
        {
            "table lookup, XOR of sites": by_table,
            "64-bit multiply-add hash": lambda: (x * factors).sum(1),
        },
    )
