"""masked_ppo, forward and backward, against eager PyTorch as published code spells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import num_bytes
from training_steps import against_eager, assert_same_gradients, both_ways, peak_bytes

from fastguide import ops

ALPHA, CLIP = 0.1, (0.8, 1.2)


class Setting:
    """N transitions of L sites, half of them masked before and a quarter after."""

    def __init__(self, n: int, length: int, vocab: int) -> None:
        g = torch.Generator().manual_seed(0)
        self.vocab = vocab
        self.logits, self.ref = torch.randn(2, n, length, vocab, generator=g)
        self.logits.requires_grad_()
        clean, level = torch.randint(0, vocab, (n, length), generator=g), torch.rand(n, length)
        self.x, self.x_next = clean.masked_fill(level < 0.5, vocab), clean
        self.x_next = clean.masked_fill(level < 0.25, vocab)
        self.rho, self.advantage = torch.full((n,), 0.5), torch.randn(n, generator=g)
        self.old = self.terms(torch.zeros(n)).log_prob.detach().float() + 0.1
        self.given = (self.logits, self.ref, self.x, self.x_next, self.old, self.advantage)
        self.text = f"K2, forward and backward, N={n} L={length} V={vocab}, half masked, float32"
        # Masked rows of both logits, twice, and the gradient.
        self.bytes_moved = 3 * num_bytes(self.logits)

    def terms(self, old: torch.Tensor) -> ops.PPOTerms:
        step: dict[str, Any] = dict(mask_token=self.vocab, rho=self.rho, clip=CLIP)
        states = (self.logits, self.x, self.x_next, old, self.advantage)
        return ops.masked_ppo(*states, logits_ref=self.ref, **step)

    def ours(self) -> torch.Tensor:
        terms = self.terms(self.old)
        return (terms.surrogate + ALPHA * terms.kl).mean()

    def eager(self) -> torch.Tensor:
        return eager_loss(*self.given, self.rho, self.vocab)

    def compiled(self) -> Callable[[], torch.Tensor]:
        run = torch.compile(eager_loss, dynamic=False)
        return lambda: run(*self.given, self.rho, self.vocab)


def eager_loss(
    logits: torch.Tensor,
    ref: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    old: torch.Tensor,
    advantage: torch.Tensor,
    rho: torch.Tensor,
    vocab: int,
) -> torch.Tensor:
    masked = x == vocab
    revealed = masked & (x_next != vocab)
    log_p, log_q = logits.log_softmax(-1), ref.log_softmax(-1)
    taken = log_p.gather(-1, x_next.clamp_max(vocab - 1)[..., None])[..., 0]
    ratio = torch.exp((taken * revealed).sum(1) - old)
    kl = rho * ((log_p.exp() * (log_p - log_q)).sum(-1) * masked).sum(1)
    plain, held = -advantage * ratio, -advantage * ratio.clamp(*CLIP)
    return (torch.maximum(plain, held) + ALPHA * kl).mean()


def call(name: str) -> Callable[[], Any]:
    """One way at the large vocabulary, for a process of its own."""
    setting = Setting(4, 32, 32_000)
    loss = {"ours": setting.ours, "eager": setting.eager}.get(name) or setting.compiled()
    return both_ways(loss, setting.logits)


@pytest.mark.parametrize(("n", "length", "vocab"), [(4, 32, 32_000), (256, 200, 5)])
def bench_masked_ppo(compare: Callable[..., None], n: int, length: int, vocab: int) -> None:
    setting = Setting(n, length, vocab)
    ours = both_ways(setting.ours, setting.logits)
    rivals = {
        "eager": both_ways(setting.eager, setting.logits),
        "torch.compile": both_ways(setting.compiled(), setting.logits),
    }
    assert_same_gradients(ours, *rivals.values())
    due = {"eager": 3.0, "torch.compile": 1.0}
    details: dict[str, Any] = dict(bytes_moved=setting.bytes_moved, due=due, rounds=30)
    text = against_eager(setting.text, setting.bytes_moved, rivals["eager"])
    compare("masked_ppo", text, ours, rivals, **details)


def bench_masked_ppo_memory() -> None:
    """What forward and backward allocate at once, the gradient included."""
    ours, eager, compiled = (
        peak_bytes("bench_masked_ppo", name) for name in ("ours", "eager", "compiled")
    )
    assert ours <= min(eager, compiled), (ours, eager, compiled)
