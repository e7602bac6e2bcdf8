"""select, with its gather, against softmax, multinomial and indexing, and against a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import COPY, num_bytes

from fastguide import ops
from fastguide.testing import chi_square_p

N, K, L, V, ALPHA = 256, 10, 50, 4, 0.1


def bench_select(compare: Callable[..., None]) -> None:
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    values = torch.randn(N, K, generator=g)
    tokens = torch.randint(0, V, (N, K, L), generator=g)
    keys = ops.masked_keys(tokens.view(-1, L)).view(N, K, 2)
    logits = torch.randn(N * K // 2, L, V, generator=g)
    where = torch.randint(0, len(logits), (N, K), generator=g)
    chains, rows = torch.arange(N), torch.arange(N)
    gather = [tokens, keys, values, (logits, where)]

    def choose(out: ops.Selection | None, scores: torch.Tensor = values) -> ops.Selection:
        return ops.select(
            scores, alpha=ALPHA, seed=1, chains=chains, step=2, gather=gather, out=out
        )

    def eager(scores: torch.Tensor = values) -> tuple[torch.Tensor, ...]:
        log_w = scores / ALPHA
        w = torch.softmax(log_w, dim=-1)
        index = torch.multinomial(w, 1).squeeze(-1)
        lme = log_w.logsumexp(-1) - torch.tensor(K).log()
        ess = 1 / w.square().sum(-1)
        gathered = (tokens[rows, index], keys[rows, index], values[rows, index])
        return index, lme, ess, *gathered, logits.index_select(0, where[rows, index])

    out = choose(None)
    compiled = torch.compile(eager, dynamic=False)
    same = values[:1].expand(N, K) / 10
    for other in (eager, compiled):
        torch.testing.assert_close(out.lme.float(), other(values)[1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out.ess.float(), other(values)[2], rtol=1e-4, atol=1e-4)
    for index in (choose(None, same).index, eager(same)[0], compiled(same)[0]):
        law = torch.softmax(same[0] / ALPHA, dim=-1)
        assert chi_square_p(torch.bincount(index, minlength=K), law) > 1e-6
    compare(
        "select",
        f"N={N} K={K}, alpha={ALPHA}, gather of tokens [N, K, {L}], keys, values, logits",
        lambda: choose(out),
        {"softmax, multinomial, indexing": eager, "the same, torch.compile": compiled},
        # What is gathered is read and written.
        bytes_moved=num_bytes(values, out, out.gathered),
        rounds=100,
    )


def bench_select_large_rows(compare: Callable[..., None]) -> None:
    """Rows of an image each: the gather is all there is, so a copy of as many bytes bounds it."""
    n, k, d = 1_024, 16, 12_288
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    values = torch.randn(n, k, generator=g)
    states = torch.randn(n, k, d)
    flat, chains, rows = states.view(n * k, d), torch.arange(n), torch.arange(n) * k
    out = ops.select(values, alpha=ALPHA, seed=1, chains=chains, step=0, gather=[states])
    target = torch.empty(n, d)

    def choose() -> ops.Selection:
        return ops.select(
            values, alpha=ALPHA, seed=1, chains=chains, step=0, gather=[states], out=out
        )

    def eager() -> torch.Tensor:
        w = torch.softmax(values / ALPHA, dim=-1)
        index = torch.multinomial(w, 1).squeeze(-1)
        return torch.index_select(flat, 0, rows + index, out=target)

    assert torch.equal(choose().gathered[0], flat[rows + choose().index])
    assert bool((eager()[:, None] == states).all(-1).any(-1).all())
    compare(
        "select",
        f"N={n} K={k}, gather of float32 [N, K, {d}] into given outputs",
        choose,
        {"softmax, multinomial, index_select(out=)": eager},
        bytes_moved=num_bytes(values, out, out.gathered),
        due={"softmax, multinomial, index_select(out=)": 1, COPY: 0.85},
    )


def bench_select_small(compare: Callable[..., None]) -> None:
    """One step of a sampler: three tensors move along with 32 chains, in a loop that plans once."""
    n, k = 32, 10
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    values = torch.randn(n, k, generator=g)
    items = [
        torch.randint(0, V, (n, k, L), generator=g),
        torch.randint(0, 99, (n, k, 2), generator=g),
        torch.randn(n, k, L, V, generator=g),
    ]
    chains, rows = torch.arange(n), torch.arange(n) * k
    flat = [item.flatten(0, 1) for item in items]
    targets = [torch.empty_like(item[:, 0].contiguous()) for item in items]
    arguments: dict[str, Any] = dict(alpha=ALPHA, seed=1, chains=chains, gather=items)
    plan = ops.plan_select(values, **arguments)
    out = ops.select(values, **arguments, step=3)

    def checked() -> ops.Selection:
        return ops.select(values, **arguments, step=3, out=out)

    def eager() -> None:
        w = torch.softmax(values / ALPHA, dim=-1)
        index = rows + torch.multinomial(w, 1).squeeze(-1)
        for item, target in zip(flat, targets, strict=True):
            torch.index_select(item, 0, index, out=target)

    for one, other in zip(plan(3).gathered, out.gathered, strict=True):
        assert torch.equal(one, other)
    eager()
    compare(
        "select",
        f"N={n} K={k}, planned, gather of tokens, keys, logits into given outputs",
        lambda: plan(3),
        {
            "softmax, multinomial, index_select(out=) x3": eager,
            "ours, checked at every call": checked,
        },
        reference=checked,
        bytes_moved=num_bytes(values, out, out.gathered),
        due={"softmax, multinomial, index_select(out=) x3": 5},
        rounds=400,
    )
