"""masked_posterior against argmax and multinomial over every site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops
from fastguide.testing import chi_square_p

R, L, V, S = 2560, 50, 4, 4


def bench_masked_posterior(compare: Callable[..., Any]) -> None:
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x = torch.randint(0, V, (R, L), generator=g)
    x[torch.rand(R, L, generator=g) < 0.5] = V
    logits = torch.randn(R, L, V, generator=g)
    keys = ops.masked_keys(x)
    mode = torch.empty(R, L, dtype=torch.int64)
    samples = torch.empty(R, S, L, dtype=torch.int64)

    def eager_mode() -> torch.Tensor:
        return torch.where(x == V, logits.argmax(-1), x)

    def eager_samples() -> torch.Tensor:
        drawn = torch.multinomial(torch.softmax(logits, -1).view(-1, V), S, replacement=True)
        return torch.where((x == V)[:, None], drawn.view(R, L, S).transpose(1, 2), x[:, None])

    def our_mode() -> torch.Tensor:
        return ops.masked_posterior(logits, x, mask_token=V, out=mode)

    def our_samples() -> torch.Tensor:
        return ops.masked_posterior(logits, x, mask_token=V, num_samples=S, keys=keys, out=samples)

    assert torch.equal(our_mode(), eager_mode())
    law = torch.softmax(logits, -1)[x == V].mean(0)
    for draw in (our_samples, eager_samples):
        drawn = draw().transpose(1, 2)[x == V]
        assert chi_square_p(torch.bincount(drawn.flatten(), minlength=V), law) > 1e-6
    setting = f"R={R} L={L} V={V}, half masked, float32"
    compare("masked_posterior", f"mode, {setting}", our_mode, {"argmax, where": eager_mode})


def bench_masked_posterior_samples(compare: Callable[..., Any]) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.full((R, L), V)
    x[torch.rand(R, L, generator=g) < 0.5] = 0
    logits = torch.randn(R, L, V, generator=g)
    keys = ops.masked_keys(x)
    samples = torch.empty(R, S, L, dtype=torch.int64)
    compare(
        "masked_posterior",
        f"S={S} samples, R={R} L={L} V={V}, half masked, float32",
        lambda: ops.masked_posterior(
            logits, x, mask_token=V, num_samples=S, keys=keys, out=samples
        ),
        {
            "multinomial, where": lambda: torch.where(
                (x == V)[:, None],
                torch.multinomial(torch.softmax(logits, -1).view(-1, V), S, replacement=True)
                .view(R, L, S)
                .transpose(1, 2),
                x[:, None],
            )
        },
        rounds=30,
    )
