"""soft_value against logsumexp."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from harness import num_bytes

from fastguide import ops

ALPHA = 0.1


@pytest.mark.parametrize(("r", "s"), [(2560, 4), (256, 64)])
def bench_soft_value(compare: Callable[..., None], r: int, s: int) -> None:
    values = torch.randn(r, s, generator=torch.Generator().manual_seed(0))
    out = torch.empty(r)

    def eager() -> torch.Tensor:
        v = values.double() / ALPHA
        return (ALPHA * (v.logsumexp(-1) - math.log(s))).float()

    def eager_float32() -> torch.Tensor:
        return ALPHA * ((values / ALPHA).logsumexp(-1) - math.log(s))

    compiled = torch.compile(eager, dynamic=False)
    for other in (eager, compiled):
        torch.testing.assert_close(ops.soft_value(values, ALPHA), other())
    compare(
        "soft_value",
        f"R={r} S={s}, log-mean-exp, float32",
        lambda: ops.soft_value(values, ALPHA, out=out),
        {
            "logsumexp in float64": eager,
            "logsumexp in float64, torch.compile": compiled,
            "logsumexp in float32": eager_float32,
        },
        bytes_moved=num_bytes(values, out),
        rounds=100,
    )
