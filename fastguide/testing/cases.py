"""Sample inputs of every op: the awkward sizes, strides and contents, each with its oracle.

Inputs are slices of larger tensors by default, so that a kernel which ignores strides fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastguide import reference
from fastguide.rng import Purpose
from fastguide.testing.case import Case, Draw, Sample
from fastguide.testing.training_cases import TRAINING_OPS, training_cases


def cases(op: str) -> list[Case]:
    """Every sample call of `op`; the same tensors in every process."""
    if op in TRAINING_OPS:
        return training_cases(op)
    return [Case(op, name, args, kwargs) for name, args, kwargs in _BUILDERS[op]()]


def _stream() -> Iterator[Sample]:
    sizes = [(0, 1, 3), (1, 1, 1), (3, 2, 7), (2, 5, 64), (4, 1, 33), (2, 3, 0)]
    for i, (n, k, e) in enumerate(sizes):
        chains = torch.arange(2 * n)[::2]
        arguments = (2**64 - 1 - i, chains, 2**24 - 1 - i, Purpose.PRIOR)
        yield f"N{n}-K{k}-E{e}", arguments, dict(num_elements=e, num_candidates=k)
    last = torch.tensor([2**32 - 1])
    yield (
        "largest ids",
        (7, last, 5, Purpose.NOISE),
        dict(num_elements=9, num_candidates=3, first_candidate=last - 2),
    )


def _philox_normal() -> Iterator[Sample]:
    for name, args, kwargs in _stream():
        yield name, args, kwargs
        yield f"{name}-double", args, {**kwargs, "dtype": torch.float64}


def _masked_keys() -> Iterator[Sample]:
    draw = Draw(1)
    for n, length in [(0, 4), (1, 1), (5, 8), (3, 50), (2, 201), (2, 0)]:
        yield f"R{n}-L{length}", (draw.states(n, length, 5, 5, 0.5),), {}
    yield "wide tokens", (draw.integers(-(2**62), 2**62, 4, 19),), {}
    yield "transposed", (draw.integers(0, 9, 11, 6).T,), {}


# (name, N, L, V, K, rho, mask share, temperature)
_PROPOSE = [
    ("no rows", 0, 4, 3, 2, 0.5, 0.5, 1.0),
    ("no sites", 3, 0, 4, 2, 0.5, 0.5, 1.0),
    ("one of everything", 1, 1, 1, 1, 0.5, 1.0, 1.0),
    ("small", 5, 7, 4, 3, 0.3, 0.6, 1.0),
    ("usual", 16, 50, 4, 10, 1 / 64, 0.5, 1.0),
    ("hot", 9, 33, 5, 10, 0.1, 0.6, 2.5),
    ("cold", 9, 33, 5, 10, 0.1, 0.6, 0.05),
    ("nothing revealed", 3, 50, 4, 10, 0.0, 0.5, 1.0),
    ("everything revealed", 3, 200, 5, 10, 1.0, 1.0, 1.0),
    ("nothing masked", 3, 50, 4, 10, 0.9, 0.0, 1.0),
    ("many candidates", 2, 130, 20, 70, 0.9, 0.7, 1.0),
    ("large vocabulary", 3, 9, 3000, 7, 0.5, 0.8, 0.7),
]


def edge_logits(u: torch.Tensor, gap: torch.Tensor, vocab: int) -> torch.Tensor:
    """Logits of which a token ends close to the target of a draw, strided along tokens.

    Args:
        u: [...] float64, the uniforms of the draws.   gap: [...], how far the CDF goes past u.

    Returns:
        [..., vocab] float64. The first third of the tokens shares a probability of u + gap.
    """
    below = vocab // 3
    share = (u + gap).unsqueeze(-1)
    first, rest = (share / below).log(), ((1 - share) / (vocab - below)).log()
    logits = torch.cat([first.expand(*u.shape, below), rest.expand(*u.shape, vocab - below)], -1)
    return logits.repeat_interleave(2, -1)[..., ::2]


def _masked_propose() -> Iterator[Sample]:
    draw = Draw(2)
    for i, (name, n, length, vocab, k, rho, share, temperature) in enumerate(_PROPOSE):
        dtype = torch.float64 if i % 2 else torch.float32
        x = draw.states(n, length, vocab, vocab, share)
        yield (
            name,
            (draw.logits(n, length, vocab, dtype), x, reference.masked_keys(x)),
            dict(
                mask_token=vocab,
                rho=rho,
                seed=2**64 - 9 + i % 2,
                chains=torch.arange(n) + 2**32 - n,
                step=i,
                num_candidates=k,
                temperature=temperature,
            ),
        )
    x = draw.states(6, 10, 4, -7, 0.7)
    common: dict[str, Any] = dict(
        rho=0.4, seed=11, chains=torch.arange(6), step=3, num_candidates=5
    )
    keys = reference.masked_keys(x)
    yield (
        "shared logits, negative mask",
        (draw.logits(2, 10, 4, torch.float32), x, keys),
        dict(
            common, mask_token=-7, index=draw.integers(0, 2, 6), first_candidate=torch.arange(6) * 3
        ),
    )
    logits = draw.logits(6, 10, 4, torch.float32)
    logits[..., 1] = -torch.inf
    logits[2, :, 2:] = -torch.inf
    x = torch.where(x == 1, 0, torch.where(x == -7, 1, x))
    yield (
        "forbidden tokens, mask inside the vocabulary",
        (logits, x, reference.masked_keys(x)),
        dict(common, mask_token=1),
    )
    by_token = draw.normal(4, 6, 10).permute(1, 2, 0)
    x = draw.states(6, 10, 4, 4, 0.7)
    yield (
        "logits strided along tokens",
        (by_token, x, reference.masked_keys(x)),
        dict(common, mask_token=4),
    )
    for vocab in (4, 50):
        x = draw.states(6, 10, vocab, vocab, 0.7)
        # No row of their own for the sites that are clean, and none in order.
        index = torch.where(x == vocab, draw.integers(0, 9, 6, 10), -1)
        yield (
            f"a row of logits for each site, V{vocab}",
            (draw.logits(9, 1, vocab, torch.float32)[:, 0], x, reference.masked_keys(x)),
            dict(common, mask_token=vocab, index=index),
        )
    gap = torch.tensor([1e-11, -1e-11, 1e-10, -1e-10, 1e-9, -1e-9])
    draw_at: dict[str, Any] = dict(seed=11, chains=torch.arange(8), step=3)
    u = reference.philox_uniform(purpose=Purpose.TOKEN, num_elements=len(gap), **draw_at)[:, 0]
    x = torch.full(u.shape, 600)
    yield (
        "targets close to the end of a token",
        (edge_logits(u, gap.expand_as(u), 600), x, reference.masked_keys(x)),
        dict(draw_at, rho=1.0, num_candidates=1, mask_token=600),
    )


def _masked_posterior() -> Iterator[Sample]:
    draw = Draw(3)
    for i, (n, length, vocab, share) in enumerate(
        [
            (0, 4, 3, 0.5),
            (2, 0, 4, 0.5),
            (1, 1, 1, 1.0),
            (5, 50, 4, 0.5),
            (3, 33, 20, 1.0),
            (2, 40, 3000, 0.4),
        ]
    ):
        dtype = torch.float64 if i % 2 else torch.float32
        x = draw.states(n, length, vocab, vocab, share)
        logits = draw.logits(n, length, vocab, dtype)
        name = f"R{n}-L{length}-V{vocab}"
        yield f"mode-{name}", (logits, x), dict(mask_token=vocab)
        for samples in (1, 3):
            yield (
                f"S{samples}-{name}",
                (logits, x),
                dict(
                    mask_token=vocab,
                    num_samples=samples,
                    keys=reference.masked_keys(x),
                    seed=2**63 + i,
                    temperature=0.5 + i,
                    purpose=Purpose.LOOKAHEAD,
                ),
            )
    x = draw.states(4, 6, 3, 3, 0.8)
    ties = draw.integers(0, 2, 2, 6, 3).float()
    ties[0, 0] = torch.tensor([-torch.inf, 1.0, 1.0])
    yield "ties", (ties, x), dict(mask_token=3, index=torch.tensor([0, 1, 1, 0]))
    for vocab in (4, 50):
        x = draw.states(5, 7, vocab, vocab, 0.6)
        index = torch.where(x == vocab, draw.integers(0, 9, 5, 7), -1)
        logits = draw.logits(9, 1, vocab, torch.float64)[:, 0]
        shared = dict(mask_token=vocab, index=index)
        yield f"mode, a row of logits for each site, V{vocab}", (logits, x), shared
        keys = reference.masked_keys(x)
        yield (
            f"a row of logits for each site, V{vocab}",
            (logits, x),
            dict(shared, num_samples=2, keys=keys, seed=5),
        )


def _unique_rows() -> Iterator[Sample]:
    draw = Draw(4)
    for r, length, distinct in [(0, 4, 1), (1, 1, 1), (7, 3, 2), (300, 50, 90), (64, 5, 64)]:
        pool = draw.integers(0, 4, distinct, length)
        rows = pool[draw.integers(0, distinct, r)]
        name = f"R{r}-L{length}"
        yield name, (rows,), {}
        yield f"{name}-keys", (rows, reference.masked_keys(rows)), {}
    rows = draw.integers(0, 2, 40, 12)[:, ::2]
    yield "strided", (rows,), {}
    yield "rows of a wider tensor", (draw.integers(0, 2, 40, 9)[:, 2:5],), {}
    yield "adversarial: all keys equal", (rows, torch.zeros(40, 2, dtype=torch.int64)), {}
    yield "adversarial: two keys", (rows, rows.sum(1, keepdim=True).expand(-1, 2) % 2), {}
    yield "int8", (draw.integers(0, 2, 50, 5).to(torch.int8),), {}
    yield "bool", (draw.integers(0, 2, 50, 4).bool(),), {}
    yield "no columns", (torch.zeros(3, 0, dtype=torch.int64),), {}


def _select() -> Iterator[Sample]:
    draw = Draw(5)
    for i, (n, k) in enumerate([(0, 3), (1, 1), (5, 10), (63, 7), (4, 257)]):
        dtype = torch.float64 if i % 2 else torch.float32
        values = draw.normal(n, 2 * k, dtype=dtype)[:, ::2]
        common = dict(seed=5 + i, chains=torch.arange(n), step=i)
        for alpha in (0.0, 0.1, 3.0):
            yield f"N{n}-K{k}-alpha{alpha}", (values,), dict(common, alpha=alpha)
    values = draw.normal(6, 4)
    values[0] = -torch.inf
    values[1, 1:] = -torch.inf
    values[2, 3] = -torch.inf
    values[3] = 2.0
    values[4] = torch.tensor([1.0, 1e30, -1e30, 1e30])
    common = dict(seed=2**64 - 1, chains=torch.arange(6) + 2**32 - 6, step=2**24 - 1)
    gather = [
        draw.normal(6, 4),
        draw.integers(0, 9, 6, 4, 10)[..., ::2],
        draw.normal(6, 8, 3, dtype=torch.float64)[:, ::2],
        draw.integers(0, 2, 6, 4, 2).bool(),
        draw.normal(6, 4, 0),
        (draw.normal(9, 5, 2), draw.integers(0, 9, 6, 4)),
        (draw.integers(0, 9, 4), draw.integers(0, 4, 4, 6).T),
    ]
    for alpha in (0.0, 0.5):
        yield (
            f"rejected, ties, gather-alpha{alpha}",
            (values,),
            dict(common, alpha=alpha, gather=gather),
        )
    yield (
        "log ratio, particles",
        (values,),
        dict(
            common,
            alpha=1e-3,
            log_ratio=draw.normal(6, 4, dtype=torch.float64),
            particles=torch.arange(6),
            purpose=Purpose.FINAL,
        ),
    )


# (name, N, shape of a state, K, s)
_GAUSSIAN: list[tuple[str, int, tuple[int, ...], int, float]] = [
    ("no chains", 0, (5,), 2, 0.3),
    ("no elements", 2, (0,), 2, 0.3),
    ("one of everything", 1, (1,), 1, 0.3),
    ("odd", 3, (7,), 2, 0.5),
    ("image", 2, (3, 5, 5), 4, 0.7),
    ("no noise", 2, (40,), 3, 0.0),
    ("one register and a bit", 2, (65,), 1, 1.3),
    ("several tiles", 1, (9001,), 2, 0.2),
]


def _gaussian_propose() -> Iterator[Sample]:
    draw = Draw(7)
    for i, (name, n, shape, k, s) in enumerate(_GAUSSIAN):
        for dtype in (torch.float32, torch.float64):
            x = draw.normal(n, *shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]
            common: dict[str, Any] = dict(
                a=0.9 - 0.1 * i,
                b=-0.3,
                s=s,
                seed=2**64 - 1 - i,
                chains=torch.arange(n) + 2**32 - n,
                step=2**24 - 1 - i,
                num_candidates=k,
            )
            output = draw.normal(n, *shape, dtype=dtype)
            yield f"{name}-{dtype}", (x, output), common
            if s > 0:
                shift = 0.3 * draw.normal(n + 1, *shape, dtype=dtype)[1:]
                yield (
                    f"{name}-{dtype}-shift, shared outputs",
                    (x, draw.normal(3, *shape, dtype=dtype)),
                    dict(
                        common,
                        shift=shift,
                        index=draw.integers(0, 3, n),
                        first_candidate=torch.arange(n) * 3,
                    ),
                )


def _resample() -> Iterator[Sample]:
    draw = Draw(8)
    for i, (g, n) in enumerate([(0, 3), (1, 1), (5, 4), (3, 63), (2, 1500)]):
        dtype = torch.float64 if i % 2 else torch.float32
        log_w = 2 * draw.normal(g, 2 * n, dtype=dtype)[:, ::2]
        common: dict[str, Any] = dict(seed=2**64 - 3, step=i, chains=torch.arange(g) + 2**32 - g)
        for scheme in reference.SCHEMES:
            yield f"{scheme}-G{g}-N{n}", (log_w,), dict(common, scheme=scheme)
    log_w = draw.normal(6, 10)
    log_w[0] = 0.0
    log_w[1, 1:] = -torch.inf
    log_w[2, :-1] = -torch.inf
    log_w[3, ::2] = -torch.inf
    log_w[4] = torch.linspace(-1e6, 1e6, 10)
    gather = [
        log_w,
        draw.integers(0, 9, 6, 10, 10)[..., ::2],
        draw.normal(6, 20, 3, dtype=torch.float64)[:, ::2],
        draw.integers(0, 2, 6, 10, 2).bool(),
        draw.normal(6, 10, 0),
        (draw.normal(9, 5, 2), draw.integers(0, 9, 6, 10)),
        (draw.integers(0, 9, 4), draw.integers(0, 4, 10, 6).T),
    ]
    for scheme in reference.SCHEMES:
        for threshold in (None, 0.7):
            yield (
                f"{scheme}, zeros, gather, threshold {threshold}",
                (log_w,),
                dict(
                    seed=5,
                    step=1,
                    chains=torch.arange(6),
                    scheme=scheme,
                    ess_threshold=threshold,
                    gather=gather,
                ),
            )


def _soft_value() -> Iterator[Sample]:
    draw = Draw(6)
    for i, (r, s) in enumerate([(0, 3), (1, 1), (7, 4), (50, 16)]):
        dtype = torch.float64 if i % 2 else torch.float32
        values = 5 * draw.normal(r, 2 * s, dtype=dtype)[:, ::2]
        for alpha in (0.0, 1e-6, 0.1, 10.0):
            yield f"lme-R{r}-S{s}-alpha{alpha}", (values, alpha), {}
        yield f"mean-R{r}-S{s}", (values, 1.0), dict(kind="mean")
        for tau in (0.01, 0.3, 1.0):
            yield f"cvar-R{r}-S{s}-tau{tau}", (values, 1.0), dict(kind="cvar", tau=tau)
    values = draw.normal(4, 5)
    values[0] = -torch.inf
    values[1, 0] = -torch.inf
    values[2, 2] = torch.nan
    for kind, extra in (("lme", {}), ("cvar", {"tau": 0.5})):
        yield f"{kind} with -inf and NaN", (values, 0.3), dict(kind=kind, **extra)


_BUILDERS: dict[str, Callable[[], Iterator[Sample]]] = {
    "philox_uniform": _stream,
    "philox_normal": _philox_normal,
    "masked_keys": _masked_keys,
    "masked_propose": _masked_propose,
    "masked_posterior": _masked_posterior,
    "unique_rows": _unique_rows,
    "gaussian_propose": _gaussian_propose,
    "select": _select,
    "resample": _resample,
    "soft_value": _soft_value,
}
