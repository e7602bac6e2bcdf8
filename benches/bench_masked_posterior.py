"""masked_posterior against argmax and multinomial over every site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import num_bytes

from fastguide import ops
from fastguide.testing import chi_square_p

S = 4
SHAPES = pytest.mark.parametrize(("r", "length", "vocab"), [(2560, 50, 4), (2, 64, 50_258)])


class Setting:
    """Inputs of one comparison; half of the sites are masked."""

    def __init__(self, r: int, length: int, vocab: int) -> None:
        g = torch.Generator().manual_seed(0)
        self.vocab = vocab
        self.x = torch.randint(0, vocab, (r, length), generator=g)
        self.masked = torch.rand(r, length, generator=g) < 0.5
        self.x[self.masked] = vocab
        self.logits = torch.randn(r, length, vocab, generator=g)
        self.name = f"R={r} L={length} V={vocab}, half masked, float32"

    def predict(self, **arguments: Any) -> torch.Tensor:
        return ops.masked_posterior(self.logits, self.x, mask_token=self.vocab, **arguments)

    def bytes_moved(self, *others: torch.Tensor) -> int:
        """Logits count where a site is masked."""
        return num_bytes(self.x, *others) + 4 * self.vocab * int(self.masked.sum())

    def assert_law(self, samples: torch.Tensor) -> None:
        """Of samples [R, S, L]: kept sites are copied; likely and unlikely tokens come as due."""
        drawn = samples.transpose(1, 2)
        assert torch.equal(drawn[~self.masked], self.x[~self.masked][:, None].expand(-1, S))
        logits = self.logits[self.masked]
        cells = torch.bucketize(logits, torch.tensor([-1.0, 0.0, 1.0, 2.0]))
        law = torch.bincount(cells.flatten(), torch.softmax(logits.double(), -1).flatten(), 5)
        counts = torch.bincount(cells.gather(1, drawn[self.masked]).flatten(), minlength=5)
        assert chi_square_p(counts, law) > 1e-6


@SHAPES
def bench_masked_posterior(compare: Callable[..., None], r: int, length: int, vocab: int) -> None:
    setting = Setting(r, length, vocab)
    logits, x = setting.logits, setting.x
    out = setting.predict()

    def eager() -> torch.Tensor:
        return torch.where(x == vocab, logits.argmax(-1), x)

    compiled = torch.compile(eager, dynamic=False)
    for other in (eager, compiled):
        assert torch.equal(out, other())
    compare(
        "masked_posterior",
        f"mode, {setting.name}",
        lambda: setting.predict(out=out),
        {"argmax, where": eager, "argmax, where, torch.compile": compiled},
        bytes_moved=setting.bytes_moved(out),
    )


@SHAPES
def bench_masked_posterior_samples(
    compare: Callable[..., None], r: int, length: int, vocab: int
) -> None:
    torch.manual_seed(0)
    setting = Setting(r, length, vocab)
    logits, x = setting.logits, setting.x
    keys = ops.masked_keys(x)
    out = setting.predict(num_samples=S, keys=keys)

    def ours() -> torch.Tensor:
        return setting.predict(num_samples=S, keys=keys, out=out)

    def eager() -> torch.Tensor:
        drawn = torch.multinomial(torch.softmax(logits, -1).view(-1, vocab), S, replacement=True)
        drawn = drawn.view(r, length, S).transpose(1, 2)
        return torch.where((x == vocab)[:, None], drawn, x[:, None])

    compiled = torch.compile(eager, dynamic=False)
    for draw in (ours, eager, compiled):
        setting.assert_law(draw())
    compare(
        "masked_posterior",
        f"S={S} samples, {setting.name}",
        ours,
        {"multinomial, where": eager, "multinomial, where, torch.compile": compiled},
        bytes_moved=setting.bytes_moved(keys, out),
        rounds=20,
    )
