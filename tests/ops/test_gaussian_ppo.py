"""gaussian_ppo: closed forms, the clip, exactness at equal weights, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastguide import ops
from fastguide.errors import ArgumentError, DtypeError, GradientError, ShapeError

N, D = 4, 6
STEP: dict[str, Any] = dict(a=0.9, b=-0.4, s=0.3, clip=(0.8, 1.2))


def states(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(4, N, D, generator=generator, dtype=dtype))


def terms(output: torch.Tensor, old: torch.Tensor | None = None, **changes: Any) -> ops.PPOTerms:
    _, x, x_next, _ = states(output.dtype)
    old = torch.zeros(N) if old is None else old
    return ops.gaussian_ppo(output, x, x_next, old, torch.ones(N), **{**STEP, **changes})


def test_density_and_kl_are_those_of_torch_distributions() -> None:
    output, x, x_next, ref = states()
    s = torch.linspace(0.2, 0.9, N, dtype=torch.float64)
    got = terms(output, s=s, output_ref=ref)
    law = torch.distributions.Normal(0.9 * x - 0.4 * output, s[:, None])
    other = torch.distributions.Normal(0.9 * x - 0.4 * ref, s[:, None])
    torch.testing.assert_close(got.log_prob, law.log_prob(x_next).sum(1))
    torch.testing.assert_close(got.kl, torch.distributions.kl_divergence(law, other).sum(1))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_ratio_is_one_at_the_old_weights_whatever_the_batch(backend: str) -> None:
    output, x, x_next, _ = states(torch.float32)
    with ops.use_backend(backend):
        old = terms(output).log_prob
        assert torch.equal(terms(output, old).ratio, torch.ones(N, dtype=torch.float64))
    if backend == "cpp":
        for n in range(N):
            row = [tensor[n : n + 1] for tensor in (output, x, x_next, old, old)]
            assert torch.equal(ops.gaussian_ppo(*row, **STEP).log_prob, old[n : n + 1])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(
    ("log_ratio", "advantage", "surrogate", "clipped"),
    [
        (0.1, 2.0, -2.0 * math.exp(0.1), False),
        (0.5, 2.0, -2.4, True),
        (0.5, -2.0, 2.0 * math.exp(0.5), False),
        (-0.5, 2.0, -2.0 * math.exp(-0.5), False),
        (-0.5, -2.0, 1.6, True),
        (0.5, 0.0, 0.0, False),
    ],
)
def test_clip(
    backend: str, log_ratio: float, advantage: float, surrogate: float, clipped: bool
) -> None:
    output, x, x_next, _ = states()
    output.requires_grad_()
    log_prob = terms(output).log_prob.detach()
    with ops.use_backend(backend):
        given = (output, x, x_next, log_prob - log_ratio, torch.full((N,), advantage))
        got = ops.gaussian_ppo(*given, **STEP)
        (slope,) = torch.autograd.grad(got.surrogate.sum(), output)
    torch.testing.assert_close(got.surrogate, torch.full_like(log_prob, surrogate))
    assert got.clipped.tolist() == [clipped] * N
    assert bool((slope == 0).all()) == (clipped or advantage == 0)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradcheck(backend: str) -> None:
    output, _, _, ref = states()
    output.requires_grad_()
    old = terms(output).log_prob.detach() - torch.linspace(-0.5, 0.5, N)
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda o: terms(o, old, output_ref=ref)[:4], output, check_batched_grad=False
        )


def test_kl_has_its_own_gradient() -> None:
    """b^2 (output - output_ref) / s^2, and none where the surrogate alone is pulled."""
    output, _, _, ref = states()
    output.requires_grad_()
    (slope,) = torch.autograd.grad(terms(output, output_ref=ref).kl.sum(), output)
    torch.testing.assert_close(slope, (0.4 / 0.3) ** 2 * (output.detach() - ref))
    assert torch.equal(terms(output).kl, torch.zeros(N, dtype=torch.float64))


def test_a_nan_goes_through_and_stays_in_its_row() -> None:
    output = states()[0]
    output[1, 2] = torch.nan
    got = terms(output)
    assert got.log_prob.isnan().tolist() == [False, True, False, False]
    assert got.surrogate.isnan().tolist() == [False, True, False, False]


def test_only_the_policy_is_differentiated() -> None:
    output, x, x_next, ref = states()
    rest = (x, x_next, torch.zeros(N), torch.ones(N))
    for place in range(4):
        marked = [t.clone().requires_grad_() if i == place else t for i, t in enumerate(rest)]
        with pytest.raises(GradientError, match=r"gaussian_ppo has no gradient, but .*detach\(\)"):
            ops.gaussian_ppo(output, *marked, **STEP)
    with pytest.raises(GradientError, match="but output_ref requires one"):
        terms(output, output_ref=ref.requires_grad_())


def test_differentiating_twice_is_refused() -> None:
    output = states()[0].requires_grad_()
    (slope,) = torch.autograd.grad(terms(output).log_prob.sum(), output, create_graph=True)
    with pytest.raises(GradientError, match="differentiated once, not twice"):
        slope.sum().backward()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_bad_arguments(backend: str) -> None:
    output, x, x_next, _ = states()
    zeros = torch.zeros(N)
    with ops.use_backend(backend):
        with pytest.raises(ArgumentError, match=r"s must be > 0 .* got 0.0"):
            terms(output, s=0.0)
        with pytest.raises(ArgumentError, match=r"s\[2\] must be > 0: a step without noise"):
            terms(output, s=torch.tensor([1.0, 1.0, 0.0, 1.0]))
        with pytest.raises(ArgumentError, match="a must be finite, got nan"):
            terms(output, a=math.nan)
        with pytest.raises(ShapeError, match=r"b must have shape \[N\] = \[4\], got \[3\]"):
            terms(output, b=torch.zeros(3))
        with pytest.raises(ArgumentError, match=r"least and the greatest ratio.* got \(1.1, 1.2\)"):
            terms(output, clip=(1.1, 1.2))
        with pytest.raises(DtypeError, match="x must be float32, got float64"):
            ops.gaussian_ppo(output.float(), x, x_next, zeros, zeros, **STEP)
        with pytest.raises(ShapeError, match=r"x_next must have shape \[N, ...\] = \[4, 6\]"):
            ops.gaussian_ppo(output, x, x_next[:, :5], zeros, zeros, **STEP)
        with pytest.raises(ShapeError, match=r"at least one trailing dimension, got \[6\]"):
            ops.gaussian_ppo(output[0], x[0], x_next[0], zeros, zeros, **STEP)


def test_halves_are_refused_with_the_way_out() -> None:
    output = torch.zeros(N, D, dtype=torch.bfloat16)
    with pytest.raises(DtypeError, match=r"got bfloat16; convert it with output\.float\(\)"):
        ops.gaussian_ppo(output, output, output, torch.zeros(N), torch.ones(N), **STEP)
