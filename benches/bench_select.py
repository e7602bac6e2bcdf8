"""select, with its gather, against softmax, multinomial and indexing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastguide import ops
from fastguide.testing import chi_square_p

N, K, L, V, ALPHA = 256, 10, 50, 4, 0.1


def bench_select(compare: Callable[..., Any]) -> None:
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
    torch.testing.assert_close(out.lme.float(), eager()[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.ess.float(), eager()[2], rtol=1e-4, atol=1e-4)
    same = values[:1].expand(N, K) / 10
    for index in (choose(None, same).index, eager(same)[0]):
        law = torch.softmax(same[0] / ALPHA, dim=-1)
        assert chi_square_p(torch.bincount(index, minlength=K), law) > 1e-6
    compare(
        "select",
        f"N={N} K={K}, alpha={ALPHA}, gather of tokens [N, K, {L}], keys, values, logits",
        lambda: choose(out),
        {"softmax, multinomial, indexing": eager},
        rounds=100,
    )
