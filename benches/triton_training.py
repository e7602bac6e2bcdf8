"""Launches of the training kernels for benches/triton_registers.py: sizes and branches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastguide.kernels import gaussian_ppo, gumbel_softmax_step, masked_ppo, subs_cross_entropy

Call = Callable[[], Any]
MASK = -1


def _terms(n: int) -> list[torch.Tensor]:
    double = [torch.zeros(n, dtype=torch.float64) for _ in range(4)]
    return [*double, torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.float64)]


def _gaussian(dtype: torch.dtype, ref: bool, x: torch.Tensor | None = None) -> Iterator[Call]:
    n, d = 16, 16_384
    output, given = torch.zeros(n, d, dtype=dtype), torch.zeros(n, d, dtype=dtype)
    x = given if x is None else x
    other, row = given if ref else None, torch.ones(n, dtype=torch.float64)
    states = (output, x, given)
    yield lambda: gaussian_ppo.launch_gaussian_ppo(
        *states, row, row, row, row, row, 0.8, 1.2, other, tuple(_terms(n))
    )
    yield lambda: gaussian_ppo.launch_gaussian_ppo_backward(
        *states, row, row, row, other, (row, row), torch.empty_like(output)
    )


def _masked(logits: torch.Tensor, ref: torch.Tensor | None) -> Iterator[Call]:
    n, length, _ = logits.shape
    x, row = torch.full((n, length), MASK), torch.ones(n, dtype=torch.float64)
    sites = torch.zeros(n, length, 3, dtype=torch.float64)
    out = torch.empty(1, 1, 1, dtype=logits.dtype).expand(logits.shape)
    yield lambda: masked_ppo.launch_masked_ppo(
        *(logits, x, x, row, row, MASK, row, 0.8, 1.2, ref, 1.0), *_terms(n), sites
    )
    yield lambda: masked_ppo.launch_masked_ppo_backward(
        logits, x, x, MASK, row, ref, 1.0, sites, row, row, out
    )


def _subs(logits: torch.Tensor) -> Iterator[Call]:
    n, length, _ = logits.shape
    x, row = torch.full((n, length), MASK), torch.ones(n, dtype=torch.float64)
    each = torch.zeros(n, length, dtype=torch.float64)
    out = torch.empty(1, 1, 1, dtype=logits.dtype).expand(logits.shape)
    yield lambda: subs_cross_entropy.launch_subs_cross_entropy(logits, x, x, MASK, row, each)
    yield lambda: subs_cross_entropy.launch_subs_cross_entropy_backward(
        logits, x, x, MASK, each, row, out
    )


def _slices(dtype: torch.dtype) -> Iterator[Call]:
    logits, row = torch.zeros(64, 2048, dtype=dtype), torch.zeros(64, dtype=torch.float64)
    targets = torch.zeros(64, dtype=torch.int64)
    yield lambda: subs_cross_entropy.slice_sums(logits, 0, targets, row, row, row)
    yield lambda: subs_cross_entropy.slice_pull(logits, 0, targets, row, row)


def _relaxed(logits: torch.Tensor, ref: torch.Tensor | None, hard: bool) -> Iterator[Call]:
    n, length, vocab = logits.shape
    x, row = torch.zeros(n, length, vocab + 1, dtype=logits.dtype), torch.ones(n).double()
    given = (logits, x, row, 1.0, 1, torch.arange(n), 7, ref, 1.0)
    d_ref = torch.empty(0, dtype=logits.dtype) if ref is None else torch.empty_like(ref)
    yield lambda: gumbel_softmax_step.launch_gumbel_softmax_step(
        *given, hard, torch.empty_like(x), torch.empty_like(row)
    )
    yield lambda: gumbel_softmax_step.launch_gumbel_softmax_step_backward(
        *given, x, row, torch.empty_like(logits), torch.empty_like(x), d_ref
    )


def _logits(n: int, length: int, vocab: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(1, 1, vocab, dtype=dtype).expand(n, length, vocab)


def default_calls() -> Iterator[Call]:
    """Calls as training makes them, at the sizes of a GPU."""
    yield from _gaussian(torch.float32, ref=True)
    for vocab in (4, 32, 32_000):
        logits = _logits(64, 200, vocab)
        yield from _masked(logits, logits)
        yield from _subs(logits)
    yield from _slices(torch.float32)
    # As models of language return them.
    halves = _logits(64, 200, 32_000, torch.bfloat16)
    yield from _masked(halves, halves)
    yield from _subs(halves)
    yield from _slices(torch.bfloat16)
    for vocab in (4, 20):
        logits = torch.zeros(64, 200, vocab)
        yield from _relaxed(logits, logits, hard=False)


def branch_calls() -> Iterator[Call]:
    """The other dtypes, no reference, straight-through, tokens that do not lie side by side."""
    yield from _gaussian(torch.float32, ref=False)
    yield from _gaussian(torch.float64, ref=True)
    yield from _slices(torch.float64)
    yield from _slices(torch.float16)
    for vocab in (4, 3000):
        double = _logits(64, 200, vocab, torch.float64)
        yield from _masked(double, double)
        yield from _masked(_logits(64, 200, vocab), None)
        yield from _subs(double)
        halves = _logits(64, 200, vocab, torch.float16)
        yield from _masked(halves, None)
        yield from _subs(halves)
        apart = torch.zeros(vocab, 200, 64).permute(2, 1, 0)
        yield from _subs(apart)
        yield from _masked(apart, apart)
    for vocab in (4, 300, 2000):
        wide = torch.zeros(2, 8, vocab, dtype=torch.float64)
        yield from _relaxed(wide, wide, hard=True)
        yield from _relaxed(wide.float(), None, hard=True)
