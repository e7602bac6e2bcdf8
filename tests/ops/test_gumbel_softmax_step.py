"""gumbel_softmax_step: the law of its draws, the blend, the stream, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastguide import ops
from fastguide.errors import ArgumentError, ShapeError
from fastguide.testing import chi_square_p

BACKENDS = pytest.mark.parametrize("backend", ["cpp", "reference"])
V = 3


def relaxed(n: int = 2, length: int = 5, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, length, V, generator=generator, dtype=torch.float64)
    x = torch.randn(n, length, V + 1, generator=generator, dtype=torch.float64).softmax(-1)
    return logits, x


def move(logits: torch.Tensor, x: torch.Tensor, **changes: Any) -> ops.RelaxedStep:
    stream = dict(seed=7, chains=torch.arange(len(x)), step=3)
    return ops.gumbel_softmax_step(logits, x, **{"rho": 0.4, "tau": 0.7, **stream, **changes})


@BACKENDS
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_a_hard_step_has_the_law_of_the_masked_step(backend: str, tau: float) -> None:
    n = 20_000
    logits = torch.tensor([0.3, -1.0, 1.2]).expand(n, 1, V)
    x = torch.nn.functional.one_hot(torch.full((n, 1), V)).float()
    with ops.use_backend(backend):
        drawn = move(logits, x, tau=tau, straight_through=True).x
    assert torch.equal(drawn.sort(-1).values[..., -1], torch.ones(n, 1))
    law = torch.cat([0.4 * logits[0, 0].softmax(-1), torch.tensor([0.6])])
    counts = drawn[:, 0].sum(0)
    assert chi_square_p(counts, law) > 1e-4


@BACKENDS
def test_rows_stay_on_the_simplex_and_clean_ones_where_they_are(backend: str) -> None:
    logits, x = relaxed()
    x[0, :2] = torch.eye(V + 1, dtype=torch.float64)[1]
    with ops.use_backend(backend):
        got = move(logits, x)
    torch.testing.assert_close(got.x.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    assert torch.equal(got.x[0, :2], x[0, :2])
    assert torch.equal(got.kl, torch.zeros(2, dtype=torch.float64))


@BACKENDS
def test_it_ends_between_a_draw_and_the_probabilities(backend: str) -> None:
    """Small tau: a hard draw of the same noise; large tau: nothing but the uniform blend."""
    logits, x = relaxed()
    with ops.use_backend(backend):
        hard = move(logits, x, tau=1e-3).x
        flat = move(logits, x, tau=1e6).x
    share = x[..., -1:]
    drawn = (hard - (1 - share) * x) / share
    torch.testing.assert_close(drawn.amax(-1), torch.ones(2, 5, dtype=torch.float64))
    torch.testing.assert_close(flat, (1 - share) * x + share / (V + 1), rtol=1e-4, atol=1e-4)


@BACKENDS
def test_kl_on_hard_states_is_that_of_the_masked_step(backend: str) -> None:
    logits, _ = relaxed()
    ref, _ = relaxed(seed=6)
    tokens = torch.tensor([[0, V, 1, V, 2], [V, V, V, V, V]])
    hard = torch.nn.functional.one_hot(tokens).double()
    rho = torch.tensor([0.2, 0.9])
    with ops.use_backend(backend):
        got = move(logits, hard, rho=rho, logits_ref=ref, temperature=0.8).kl
    zeros = torch.zeros(2)
    step = dict(mask_token=V, rho=rho, clip=(0.8, 1.2), logits_ref=ref, temperature=0.8)
    due = ops.masked_ppo(logits, tokens, tokens, zeros, zeros, **step).kl
    torch.testing.assert_close(got, due)


def test_a_draw_depends_on_its_chain_alone() -> None:
    logits, x = relaxed(4)
    whole = move(logits, x, chains=torch.tensor([9, 2, 2**32 - 1, 5])).x
    part = move(logits[2:3], x[2:3], chains=torch.tensor([2**32 - 1])).x
    assert torch.equal(whole[2:3], part)
    for change in (dict(seed=8), dict(step=4), dict(chains=torch.arange(4) + 1)):
        assert not torch.equal(move(logits, x).x, move(logits, x, **change).x)


@BACKENDS
def test_gradcheck(backend: str) -> None:
    logits, x = relaxed()
    ref, _ = relaxed(seed=6)
    rho = torch.tensor([0.3, 1.0])
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda z, y, q: tuple(move(z, y, rho=rho, logits_ref=q, temperature=0.8)),
            (logits.requires_grad_(), x.requires_grad_(), ref.requires_grad_()),
        )


@BACKENDS
def test_straight_through_has_the_gradient_of_the_relaxed_state(backend: str) -> None:
    logits, x = relaxed()
    logits.requires_grad_()
    pull = torch.randn(2, 5, V + 1, dtype=torch.float64)
    with ops.use_backend(backend):
        soft, hard = move(logits, x).x, move(logits, x, straight_through=True).x
        (one,) = torch.autograd.grad(soft, logits, pull)
        (other,) = torch.autograd.grad(hard, logits, pull)
    assert torch.equal(hard.argmax(-1), soft.argmax(-1))
    assert torch.equal(one, other)
    assert bool((one != 0).all())


@BACKENDS
def test_bad_arguments(backend: str) -> None:
    logits, x = relaxed()
    with ops.use_backend(backend):
        with pytest.raises(ShapeError, match=r"x must have shape \[N, L, V \+ 1\] = \[2, 5, 4\]"):
            move(logits, x[..., :V])
        with pytest.raises(ArgumentError, match="tau must be positive and finite, got 0"):
            move(logits, x, tau=0.0)
        with pytest.raises(ArgumentError, match=r"chains\[1\] = 4294967296 must lie in"):
            move(logits, x, chains=torch.tensor([0, 2**32]))
        with pytest.raises(ArgumentError, match="rho must be finite, got nan"):
            move(logits, x, rho=float("nan"))
