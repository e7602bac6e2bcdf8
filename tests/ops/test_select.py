"""Selection: law, edges of the CDF, rejected candidates, gather, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastguide import ops
from fastguide.errors import ArgumentError, NonFiniteError, ShapeError
from fastguide.testing import chi_square_p

INF = torch.inf


def select(values: torch.Tensor, **changes: Any) -> ops.Selection:
    arguments: dict[str, Any] = dict(alpha=1.0, seed=1, chains=torch.arange(len(values)), step=0)
    return ops.select(values, **{**arguments, **changes})


@pytest.mark.parametrize("alpha", [0.1, 1.0, 50.0])
def test_law(alpha: float) -> None:
    n = 40_000
    row = torch.tensor([0.1, -0.2, 0.3, -INF, 0.05])
    ratio = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    law = torch.softmax(row.double() / alpha + ratio, -1)
    got = select(row.expand(n, 5), alpha=alpha, log_ratio=ratio.expand(n, 5))
    assert chi_square_p(torch.bincount(got.index, minlength=5), law) > 1e-6
    log_w = row.double() / alpha + ratio
    assert float(got.lme[0]) == pytest.approx(float(log_w.logsumexp(-1)) - math.log(5), abs=1e-12)
    assert float(got.ess[0]) == pytest.approx(float(1 / law.square().sum()), rel=1e-12)


def test_draws_of_particles_steps_and_purposes_are_independent() -> None:
    n = 20_000
    values = torch.zeros(n, 3)
    draws = [
        select(values).index,
        select(values, particles=torch.ones(n).long()).index,
        select(values, step=1).index,
        select(values, purpose=8).index,
        select(values, seed=2).index,
    ]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert chi_square_p(torch.bincount(a * 3 + b, minlength=9), [1] * 9) > 1e-6


def test_alpha_zero_takes_the_first_maximum() -> None:
    values = torch.tensor([[1.0, 3.0, 3.0], [-INF, -2.0, -5.0], [0.0, 0.0, 0.0]])
    got = select(values, alpha=0.0)
    assert got.index.tolist() == [1, 1, 0]
    assert got.lme.tolist() == [3.0, -2.0, 0.0]
    assert got.ess.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_all_rejected_falls_back_to_the_unguided_draw(alpha: float, backend: str) -> None:
    n, k = 5000, 4
    with ops.use_backend(backend):
        got = select(torch.full((n, k), -INF), alpha=alpha)
    u = ops.philox_uniform(1, torch.arange(n), 0, 7, num_elements=1).flatten()
    assert torch.equal(got.index, (u * k).long())
    assert bool((got.lme == -INF).all())
    assert bool((got.ess == 0).all())


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_zero_weight_is_never_picked(backend: str) -> None:
    """Leading, inner and trailing zeros, and weights that underflow, at many draws."""
    n = 20_000
    rows = [
        [-INF, 0.0, -INF, -INF],
        [0.0, -INF, 0.0, -INF],
        [-INF, -INF, -INF, 0.0],
        [-1e9, 0.0, -1e9, -1e9],
    ]
    with ops.use_backend(backend):
        for row in rows:
            values = torch.tensor(row)
            index = select(values.expand(n, 4)).index
            assert bool((values[index] == 0).all())


def test_extreme_values() -> None:
    values = torch.tensor([[1e30, 0.0], [-1e30, -1e30], [700.0, 701.0], [1e-30, 0.0]])
    got = select(values, alpha=1e-6)
    assert got.index[0] == 0
    assert bool(torch.isfinite(got.lme).all())
    assert float(got.ess[1]) == 2.0
    one = select(torch.tensor([[3.5]]), alpha=0.5)
    assert (int(one.index), float(one.lme), float(one.ess)) == (0, 7.0, 1.0)


def test_a_constant_does_not_move_the_choice() -> None:
    values = torch.randn(500, 7, dtype=torch.float64)
    base = select(values)
    moved = select(values + 1024.0)
    assert torch.equal(base.index, moved.index)
    torch.testing.assert_close(moved.lme, base.lme + 1024.0)


def test_gather_takes_the_chosen_rows() -> None:
    n, k = 6, 4
    values = torch.randn(n, k)
    dense = torch.randn(n, k, 3, 2)
    source, where = torch.randn(9, 5), torch.randint(0, 9, (n, k))
    got = select(values, gather=[dense, (source, where), values])
    rows = torch.arange(n)
    assert torch.equal(got.gathered[0], dense[rows, got.index])
    assert torch.equal(got.gathered[1], source[where[rows, got.index]])
    assert torch.equal(got.gathered[2], values[rows, got.index])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_bad_contents(backend: str) -> None:
    with ops.use_backend(backend):
        for bad in (torch.nan, INF):
            values = torch.zeros(3, 4)
            values[2, 1] = bad
            for alpha in (0.0, 1.0):
                with pytest.raises(NonFiniteError, match=r"row 2, candidate 1: .* NaN or \+inf"):
                    select(values, alpha=alpha)
        values = torch.zeros(3, 4)
        ratio = torch.zeros(3, 4)
        ratio[0, 3] = torch.nan
        with pytest.raises(NonFiniteError, match="row 0, candidate 3"):
            select(values, log_ratio=ratio)
        with pytest.raises(ArgumentError, match=r"chains\[1\] = -1 must lie"):
            select(values, chains=torch.tensor([0, -1, 0]))
        with pytest.raises(ArgumentError, match="row 2 has candidate or particle id 4294967296"):
            select(values, particles=torch.tensor([0, 0, 2**32]))
        where = torch.full((3, 4), 5)
        with pytest.raises(ArgumentError, match="row 0: a gather index of 5 is no row"):
            select(values, gather=[(torch.zeros(5, 2), where)])


def test_bad_arguments() -> None:
    values = torch.zeros(3, 4)
    with pytest.raises(ArgumentError, match=r"alpha must be finite and >= 0 .*, got -1.0"):
        select(values, alpha=-1)
    with pytest.raises(ArgumentError, match="alpha must be finite"):
        select(values, alpha=math.inf)
    with pytest.raises(ArgumentError, match="log_ratio must be None when alpha = 0"):
        select(values, alpha=0, log_ratio=values)
    with pytest.raises(ArgumentError, match=r"values.shape\[1\] must be at least 1, got 0"):
        select(values[:, :0])
    with pytest.raises(ShapeError, match=r"gather\[0\] must have shape \[N, K, ...\]"):
        select(values, gather=[torch.zeros(3, 5)])
    with pytest.raises(ShapeError, match=r"gather\[0\]\[1\] must have shape \[N, K\] = \[3, 4\]"):
        select(values, gather=[(torch.zeros(9, 5), torch.zeros(3, 3).long())])
    out = select(values)
    with pytest.raises(ArgumentError, match="gathered must hold one tensor per gather item"):
        select(values, gather=[values], out=(out.index, out.lme, out.ess, ()))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_plan_is_select_with_the_checks_done_before(backend: str) -> None:
    n, k = 6, 4
    values, item = torch.randn(n, k), torch.randn(n, k, 3)
    where = torch.randint(0, 9, (n, k))
    arguments: dict[str, Any] = dict(
        alpha=0.5, seed=3, chains=torch.arange(n), gather=[item, (torch.randn(9, 2), where)]
    )
    with ops.use_backend(backend):
        plan = ops.plan_select(values, **arguments)
        for step in (0, 1, 2**24 - 1):
            # A plan reads what its inputs hold at the call.
            values.copy_(torch.randn(n, k))
            item.add_(1.0)
            due = ops.select(values, **arguments, step=step)
            got = plan(step)
            for a, b in zip((*got[:3], *got.gathered), (*due[:3], *due.gathered), strict=True):
                assert torch.equal(a, b)
        assert plan(1).index is plan(2).index
        values[4, 1] = torch.nan
        with pytest.raises(NonFiniteError, match="row 4, candidate 1"):
            plan(0)
        with pytest.raises(ArgumentError, match=r"step must lie in \[0, 2\*\*24\)"):
            plan(2**24)


def test_a_plan_checks_its_arguments() -> None:
    values, chains = torch.zeros(3, 4), torch.arange(3)
    with pytest.raises(ArgumentError, match="alpha must be finite"):
        ops.plan_select(values, alpha=-1, seed=0, chains=chains)
    with pytest.raises(ShapeError, match=r"chains must have shape \[N\]"):
        ops.plan_select(values, alpha=1, seed=0, chains=torch.arange(4))
    with pytest.raises(ArgumentError, match=r"plan_select: gather\[0\] must be contiguous"):
        ops.plan_select(values, alpha=1, seed=0, chains=chains, gather=[torch.zeros(4, 3).T])
