"""subs_cross_entropy, forward and backward: logits of a large vocabulary, and the chunked head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from harness import num_bytes
from training_steps import against_eager, assert_same_gradients, both_ways, peak_bytes

from fastguide import ops


class Setting:
    """N rows of L sites, a share of them masked, with a time weight per row."""

    def __init__(
        self,
        n: int,
        length: int,
        vocab: int,
        share: float,
        hidden: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        g = torch.Generator().manual_seed(0)
        self.vocab = vocab
        self.targets = torch.randint(0, vocab, (n, length), generator=g)
        masked = torch.rand(n, length, generator=g) < share
        self.x = self.targets.masked_fill(masked, vocab)
        self.weight = torch.rand(n, generator=g) + 0.5
        self.head = None
        if hidden:
            self.logits = torch.randn(n, length, hidden, generator=g, requires_grad=True)
            head = torch.randn(vocab, hidden, generator=g) / hidden**0.5
            self.head = head.requires_grad_()
            self.leaves = (self.logits, self.head)
        else:
            logits = torch.randn(n, length, vocab, generator=g).to(dtype)
            self.logits = logits.requires_grad_()
            self.leaves = (self.logits,)
        self.text = (
            f"K4, forward and backward, N={n} L={length} V={vocab}, {share:.0%} masked, "
            + str(dtype)[6:]
            + (f", head of H={hidden}" if hidden else "")
        )
        # The masked rows are read twice and written once, the others are zeroed.
        rows = float(masked.double().mean())
        self.bytes_moved = int((2 * rows + 1) * num_bytes(self.logits))

    def ours(self) -> torch.Tensor:
        step = dict(mask_token=self.vocab, weight=self.weight, head=self.head)
        return ops.subs_cross_entropy(self.logits, self.x, self.targets, **step).mean()

    def every_site(self) -> torch.Tensor:
        return every_site(self.logits, self.x, self.targets, self.weight, self.vocab, self.head)

    def masked_sites(self) -> torch.Tensor:
        return masked_sites(self.logits, self.x, self.targets, self.weight, self.vocab, self.head)

    def compiled(self, function: Callable[..., torch.Tensor]) -> Callable[[], torch.Tensor]:
        run = torch.compile(function, dynamic=False)
        given = (self.logits, self.x, self.targets, self.weight, self.vocab, self.head)
        return lambda: run(*given)


def every_site(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    vocab: int,
    head: torch.Tensor | None,
) -> torch.Tensor:
    """As published: the softmax of every site in float32, and a mask on what comes out."""
    if head is not None:
        logits = logits @ head.T
    log_p = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return -(weight * (log_p * (x == vocab)).sum(1)).mean()


def masked_sites(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    vocab: int,
    head: torch.Tensor | None,
) -> torch.Tensor:
    """The best plain spelling: only the masked sites, which are gathered first."""
    masked = x == vocab
    rows = logits[masked]
    if head is not None:
        rows = rows @ head.T
    each = F.cross_entropy(rows, targets[masked], reduction="none")
    return (each * weight[masked.nonzero()[:, 0]]).sum() / len(x)


def rivals(setting: Setting) -> dict[str, Callable[[], Any]]:
    return {
        "eager, every site": both_ways(setting.every_site, *setting.leaves),
        "eager, masked sites": both_ways(setting.masked_sites, *setting.leaves),
        "torch.compile, every site": both_ways(setting.compiled(every_site), *setting.leaves),
        "torch.compile, masked sites": both_ways(setting.compiled(masked_sites), *setting.leaves),
    }


@pytest.mark.parametrize("share", [0.5, 1.0])
def bench_subs_cross_entropy(compare: Callable[..., None], share: float) -> None:
    setting = Setting(4, 32, 32_000, share)
    ours, others = both_ways(setting.ours, *setting.leaves), rivals(setting)
    assert_same_gradients(ours, *others.values())
    due = {"eager, every site": 3.0, "torch.compile, every site": 1.0}
    details: dict[str, Any] = dict(bytes_moved=setting.bytes_moved, rounds=30)
    due = due if share == 0.5 else {}
    text = against_eager(setting.text, setting.bytes_moved, others["eager, every site"])
    compare("subs_cross_entropy", text, ours, others, due=due, **details)


def bench_subs_cross_entropy_of_16_bits(compare: Callable[..., None]) -> None:
    """Logits as models of language return them; autocast takes their softmax in float32."""
    setting = Setting(4, 32, 32_000, 0.5, dtype=torch.bfloat16)
    ours, others = both_ways(setting.ours, *setting.leaves), rivals(setting)
    assert_same_gradients(ours, *others.values())
    due = {"eager, every site": 3.0, "torch.compile, every site": 1.0}
    details: dict[str, Any] = dict(bytes_moved=setting.bytes_moved, rounds=30)
    text = against_eager(setting.text, setting.bytes_moved, others["eager, every site"])
    compare("subs_cross_entropy", text, ours, others, due=due, **details)


def call(name: str) -> Callable[[], Any]:
    """One way, for a process of its own; "head ..." at a vocabulary of 128k; "bfloat16 ..."."""
    head, halves = name.startswith("head "), name.startswith("bfloat16 ")
    name = name.removeprefix("bfloat16 ")
    dtype = torch.bfloat16 if halves else torch.float32
    setting = (
        Setting(6, 256, 131_072, 0.5, hidden=128)
        if head
        else Setting(4, 32, 32_000, 0.5, dtype=dtype)
    )
    ways = {"ours": setting.ours, "every": setting.every_site, "masked": setting.masked_sites}
    compiled = {"compiled every": every_site, "compiled masked": masked_sites}
    name = name.removeprefix("head ")
    return both_ways(ways.get(name) or setting.compiled(compiled[name]), *setting.leaves)


def bench_subs_cross_entropy_memory() -> None:
    """What forward and backward allocate at once, the gradient included."""
    names = ("ours", "every", "masked", "compiled every", "compiled masked")
    ours, *others = (peak_bytes("bench_subs_cross_entropy", name) for name in names)
    assert ours <= min(others), (ours, others)
    halves = peak_bytes("bench_subs_cross_entropy", "bfloat16 ours")
    assert halves <= 0.51 * ours, (halves, ours)


def bench_subs_cross_entropy_head_memory() -> None:
    """The chunked head allocates less than an eighth of what whole logits take.

    The gradient of the head, which every way has to return, is counted for both.
    """
    ways = ("head ours", "head masked")
    ours, masked = (peak_bytes("bench_subs_cross_entropy", way) for way in ways)
    assert ours <= masked / 8, (ours, masked)
