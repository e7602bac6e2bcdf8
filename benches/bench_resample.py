"""resample against particles, blackjax, and a cumulative sum with a search."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import num_bytes

from fastguide import ops
from fastguide.reference import SCHEMES

N = 1_000_000
BLACKJAX_SCHEMES = ("systematic", "stratified", "multinomial", "residual")


def log_weights(groups: int, n: int) -> torch.Tensor:
    return torch.randn(groups, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ours(log_w: torch.Tensor, scheme: str, **changes: Any) -> Callable[[], torch.Tensor]:
    chains = torch.arange(len(log_w))
    arguments = dict(seed=1, step=2, chains=chains, scheme=scheme, **changes)
    out = ops.resample(log_w, **arguments)
    return lambda: ops.resample(log_w, **arguments, out=out).ancestors


def peers(log_w: torch.Tensor, scheme: str) -> dict[str, Callable[[], torch.Tensor]]:
    """The same scheme of the packages that are installed, from the same log-weights [1, N]."""
    found = {}
    if importlib.util.find_spec("particles"):
        found["particles"] = of_particles(log_w, scheme)
    if importlib.util.find_spec("blackjax") and scheme in BLACKJAX_SCHEMES:
        found["blackjax"] = of_blackjax(log_w, scheme)
    return found


def of_particles(log_w: torch.Tensor, scheme: str) -> Callable[[], torch.Tensor]:
    from particles import resampling

    run, array = getattr(resampling, scheme), log_w[0].numpy()
    return lambda: torch.from_numpy(run(resampling.exp_and_normalise(array), len(array)))


def of_blackjax(log_w: torch.Tensor, scheme: str) -> Callable[[], torch.Tensor]:
    """Compiled as a whole. XLA reads its number of threads when jax first runs."""
    os.environ |= {"NPROC": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    import jax

    jax.config.update("jax_enable_x64", True)
    from blackjax.smc import resampling

    @jax.jit
    def run(key: jax.Array, array: jax.Array) -> jax.Array:
        return getattr(resampling, scheme)(key, jax.nn.softmax(array), len(array))

    key, array = jax.random.PRNGKey(0), jax.numpy.asarray(log_w[0].numpy())
    return lambda: torch.from_dlpack(run(key, array).block_until_ready())


def cumsum_searchsorted(log_w: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The fewest lines of plain PyTorch that do the same, into preallocated memory."""
    n = log_w.shape[1]
    grid = torch.arange(n, dtype=torch.float64)
    w, cdf, points = torch.empty(3, n, dtype=torch.float64)
    ancestors = torch.empty(n, dtype=torch.int64)

    def run() -> torch.Tensor:
        torch.softmax(log_w[0], 0, out=w)
        torch.cumsum(w, 0, out=cdf)
        torch.add(grid, torch.rand((), dtype=torch.float64), out=points).div_(n)
        torch.searchsorted(cdf, points, out=ancestors)
        return ancestors.clamp_(max=n - 1)

    return run


def assert_unbiased(log_w: torch.Tensor, ancestors: torch.Tensor, bound: float) -> None:
    """No count is `bound` or more away from N w, and the counts of the heavier half add up."""
    n = log_w.shape[1]
    due = n * log_w[0].softmax(-1)
    counts = torch.bincount(ancestors.view(-1)[:n], minlength=n)
    assert float((counts - due).abs().max()) < bound
    heavy = due > due.median()
    share = float(due[heavy].sum()) / n
    assert abs(float(counts[heavy].sum()) / n - share) < 6 * math.sqrt(share * (1 - share) / n)


def bench_resample(compare: Callable[..., None]) -> None:
    log_w = log_weights(1, N)
    lines = cumsum_searchsorted(log_w)
    rivals = {
        "softmax, cumsum, searchsorted": lines,
        "the same, torch.compile": torch.compile(lines, dynamic=False),
        **peers(log_w, "systematic"),
    }
    run = ours(log_w, "systematic")
    for draw in (run, *rivals.values()):
        assert_unbiased(log_w, draw(), 1 + 1e-6)
    compare(
        "resample",
        f"systematic, G=1 N={N}, from float64 log-weights",
        run,
        rivals,
        bytes_moved=num_bytes(log_w, run()),
        due={"softmax, cumsum, searchsorted": 4, "particles": 2},
    )


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "systematic"])
def bench_resample_schemes(compare: Callable[..., None], scheme: str) -> None:
    log_w = log_weights(1, N)
    run, rivals = ours(log_w, scheme), peers(log_w, scheme)
    for draw in (run, *rivals.values()):
        assert_unbiased(log_w, draw(), math.inf)
    compare(
        "resample",
        f"{scheme}, G=1 N={N}",
        run,
        rivals,
        bytes_moved=num_bytes(log_w, run()),
        rounds=15,
    )


def bench_resample_groups(compare: Callable[..., None]) -> None:
    """Many small groups with a test of the effective sample size, and what moves along."""
    groups, n, length = 256, 64, 50
    log_w = log_weights(groups, n)
    states = torch.randint(0, 4, (groups, n, length), generator=torch.Generator().manual_seed(1))
    run = ours(log_w, "systematic", ess_threshold=0.9, gather=[states])
    target = torch.empty_like(states)
    offsets = torch.arange(groups)[:, None] * n
    grid = torch.arange(n, dtype=torch.float64)
    places = torch.arange(n).expand(groups, n)

    def eager() -> torch.Tensor:
        w = torch.softmax(log_w, -1)
        ess = 1 / w.square().sum(-1)
        points = (grid + torch.rand(groups, 1, dtype=torch.float64)) / n
        drawn = torch.searchsorted(w.cumsum(-1), points).clamp_(max=n - 1)
        ancestors = torch.where((ess < 0.9 * n)[:, None], drawn, places)
        rows = (offsets + ancestors).view(-1)
        torch.index_select(states.view(-1, length), 0, rows, out=target.view(-1, length))
        return ancestors

    compiled = torch.compile(eager, dynamic=False)
    for draw in (run, eager, compiled):
        assert_unbiased(log_w[:1], draw()[:1], 1 + 1e-9)
    compare(
        "resample",
        f"systematic, G={groups} N={n}, ess threshold, gather of int64 [G, N, {length}]",
        run,
        {"eager lines": eager, "the same, torch.compile": compiled},
        # What is gathered is read and written.
        bytes_moved=num_bytes(log_w, run(), states, states),
    )
