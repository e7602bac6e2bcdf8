"""gumbel_softmax_step, forward and backward, against eager PyTorch as published code spells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import num_bytes
from training_steps import against_eager, both_ways, peak_bytes

from fastguide import ops

ALPHA, TAU, RHO = 0.1, 1.0, 1 / 64


class Setting:
    """N relaxed states of L sites on the way, with a loss that is linear in the next state."""

    def __init__(self, n: int, length: int, vocab: int) -> None:
        g = torch.Generator().manual_seed(0)
        self.logits, self.ref = torch.randn(2, n, length, vocab, generator=g)
        self.x = torch.randn(n, length, vocab + 1, generator=g).softmax(-1)
        self.pull = torch.randn(n, length, vocab + 1, generator=g)
        self.leaves = (self.logits.requires_grad_(), self.x.requires_grad_())
        self.chains = torch.arange(n)
        self.text = f"K3, forward and backward, N={n} L={length} V={vocab}, relaxed, float32"
        self.bytes_moved = 3 * num_bytes(self.logits, self.x) + num_bytes(self.ref, self.ref)

    def ours(self) -> torch.Tensor:
        stream: dict[str, Any] = dict(seed=0, chains=self.chains, step=3)
        step = ops.gumbel_softmax_step(
            self.logits, self.x, rho=RHO, tau=TAU, logits_ref=self.ref, **stream
        )
        return (step.x * self.pull).sum() + ALPHA * step.kl.sum()

    def eager(self) -> torch.Tensor:
        return eager_loss(self.logits, self.ref, self.x, self.pull)

    def compiled(self) -> Callable[[], torch.Tensor]:
        run = torch.compile(eager_loss, dynamic=False)
        return lambda: run(self.logits, self.ref, self.x, self.pull)


def eager_loss(
    logits: torch.Tensor, ref: torch.Tensor, x: torch.Tensor, pull: torch.Tensor
) -> torch.Tensor:
    log_p, log_q = logits.log_softmax(-1), ref.log_softmax(-1)
    p = log_p.exp()
    rates = torch.cat([RHO * p, torch.full_like(p[..., :1], 1 - RHO)], -1)
    noise = -torch.log(-torch.log(torch.rand_like(rates).clamp(1e-10, 1 - 1e-7)))
    y = ((torch.log(rates + 1e-10) + noise) / TAU).softmax(-1)
    share = x[..., -1:]
    moved = (1 - share) * x + share * y
    kl = RHO * (share[..., 0] * (p * (log_p - log_q)).sum(-1)).sum()
    return (moved * pull).sum() + ALPHA * kl


def call(name: str) -> Callable[[], Any]:
    """One way of the usual size, for a process of its own."""
    setting = Setting(32, 200, 4)
    loss = {"ours": setting.ours, "eager": setting.eager}.get(name) or setting.compiled()
    return both_ways(loss, *setting.leaves)


@pytest.mark.parametrize(("n", "length", "vocab"), [(32, 200, 4), (16, 100, 20)])
def bench_gumbel_softmax_step(
    compare: Callable[..., None], n: int, length: int, vocab: int
) -> None:
    """The rivals draw their noise from torch's own generator."""
    setting = Setting(n, length, vocab)
    ours = both_ways(setting.ours, *setting.leaves)
    rivals = {
        "eager": both_ways(setting.eager, *setting.leaves),
        "torch.compile": both_ways(setting.compiled(), *setting.leaves),
    }
    for each in (ours, *rivals.values()):
        assert all(bool(gradient.isfinite().all()) for gradient in each())
    due = {"eager": 3.0, "torch.compile": 1.0}
    details: dict[str, Any] = dict(bytes_moved=setting.bytes_moved, due=due)
    text = against_eager(setting.text, setting.bytes_moved, rivals["eager"])
    compare("gumbel_softmax_step", text, ours, rivals, **details)


def bench_gumbel_softmax_step_memory() -> None:
    """What forward and backward allocate at once, the gradients included."""
    ours, eager, compiled = (
        peak_bytes("bench_gumbel_softmax_step", name) for name in ("ours", "eager", "compiled")
    )
    assert ours <= min(eager, compiled), (ours, eager, compiled)
