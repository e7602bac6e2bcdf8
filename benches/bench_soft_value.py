"""soft_value against logsumexp."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops

R, S, ALPHA = 2560, 4, 0.1


def bench_soft_value(compare: Callable[..., Any]) -> None:
    values = torch.randn(R, S, generator=torch.Generator().manual_seed(0))
    out = torch.empty(R)

    def eager() -> torch.Tensor:
        v = values.double() / ALPHA
        return (ALPHA * (v.logsumexp(-1) - math.log(S))).float()

    def eager_float32() -> torch.Tensor:
        return ALPHA * ((values / ALPHA).logsumexp(-1) - math.log(S))

    torch.testing.assert_close(ops.soft_value(values, ALPHA), eager())
    compare(
        "soft_value",
        f"R={R} S={S}, log-mean-exp, float32",
        lambda: ops.soft_value(values, ALPHA, out=out),
        {"logsumexp in float64": eager, "logsumexp in float32": eager_float32},
        rounds=100,
    )
