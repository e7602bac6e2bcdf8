"""gaussian_ppo, forward and backward, against eager PyTorch as published code spells it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import num_bytes
from training_steps import against_eager, assert_same_gradients, both_ways, peak_bytes

from fastguide import ops

ALPHA, CLIP = 0.1, (0.8, 1.2)


class Setting:
    """A minibatch of N transitions of D elements that stand at different steps."""

    def __init__(self, n: int, d: int) -> None:
        g = torch.Generator().manual_seed(0)
        self.output, self.ref, self.x, noise = torch.randn(4, n, d, generator=g)
        self.output.requires_grad_()
        self.a, self.s = torch.linspace(0.9, 1.0, n), torch.linspace(0.1, 0.3, n)
        self.b = torch.full((n,), -0.1)
        self.advantage = torch.randn(n, generator=g)
        mean = self.a[:, None] * self.x + self.b[:, None] * self.output.detach()
        self.x_next = mean + self.s[:, None] * noise
        self.old = self.terms(torch.zeros(n)).log_prob.detach().float() + 0.1
        self.text = f"K1, forward and backward, N={n} D={d}, float32"
        self.bytes_moved = 9 * num_bytes(self.x)

    def terms(self, old: torch.Tensor) -> ops.PPOTerms:
        numbers: dict[str, Any] = dict(a=self.a, b=self.b, s=self.s, clip=CLIP)
        states = (self.output, self.x, self.x_next, old, self.advantage)
        return ops.gaussian_ppo(*states, output_ref=self.ref, **numbers)

    def ours(self) -> torch.Tensor:
        terms = self.terms(self.old)
        return (terms.surrogate + ALPHA * terms.kl).mean()

    def eager(self) -> torch.Tensor:
        return eager_loss(
            *(self.output, self.ref, self.x, self.x_next, self.old, self.advantage),
            *(self.a[:, None], self.b[:, None], self.s[:, None]),
        )

    def compiled(self) -> Callable[[], torch.Tensor]:
        run = torch.compile(eager_loss, dynamic=False)
        return lambda: run(
            *(self.output, self.ref, self.x, self.x_next, self.old, self.advantage),
            *(self.a[:, None], self.b[:, None], self.s[:, None]),
        )


def eager_loss(
    output: torch.Tensor,
    ref: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    old: torch.Tensor,
    advantage: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    s: torch.Tensor,
) -> torch.Tensor:
    mean, mean_ref = a * x + b * output, a * x + b * ref
    each = -((x_next - mean) ** 2) / (2 * s**2) - torch.log(s) - 0.5 * math.log(2 * math.pi)
    ratio = torch.exp(each.sum(1) - old)
    kl = ((mean - mean_ref) ** 2 / (2 * s**2)).sum(1)
    plain, held = -advantage * ratio, -advantage * ratio.clamp(*CLIP)
    return (torch.maximum(plain, held) + ALPHA * kl).mean()


def call(name: str) -> Callable[[], Any]:
    """One way of the usual size, for a process of its own."""
    setting = Setting(4, 16_384)
    loss = {"ours": setting.ours, "eager": setting.eager}.get(name) or setting.compiled()
    return both_ways(loss, setting.output)


@pytest.mark.parametrize(("n", "d"), [(4, 16_384), (64, 16_384), (256, 64)])
def bench_gaussian_ppo(compare: Callable[..., None], n: int, d: int) -> None:
    setting = Setting(n, d)
    ours = both_ways(setting.ours, setting.output)
    rivals = {
        "eager": both_ways(setting.eager, setting.output),
        "torch.compile": both_ways(setting.compiled(), setting.output),
    }
    assert_same_gradients(ours, *rivals.values())
    due = {"eager": 3.0, "torch.compile": 1.0} if (n, d) == (4, 16_384) else None
    text = against_eager(setting.text, setting.bytes_moved, rivals["eager"])
    compare("gaussian_ppo", text, ours, rivals, bytes_moved=setting.bytes_moved, due=due)


def bench_gaussian_ppo_memory() -> None:
    """What forward and backward allocate at once, the gradient included."""
    ours, eager, compiled = (
        peak_bytes("bench_gaussian_ppo", name) for name in ("ours", "eager", "compiled")
    )
    assert ours <= min(eager, compiled), (ours, eager, compiled)
