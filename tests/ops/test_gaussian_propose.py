"""Gaussian steps: the noise, the law, the log-ratio of a shift, gradients, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastguide import ops, reference
from fastguide.errors import ArgumentError, DtypeError, GradientError, ShapeError
from fastguide.rng import Purpose
from fastguide.testing import ks_uniform_p, z_score


def propose(x: torch.Tensor, output: torch.Tensor, **changes: Any) -> ops.GaussianProposal:
    arguments: dict[str, Any] = dict(
        a=0.9, b=0.2, s=0.3, seed=1, chains=torch.arange(len(x)), step=0, num_candidates=3
    )
    return ops.gaussian_propose(x, output, **{**arguments, **changes})


def noise(num_chains: int, size: int, dtype: torch.dtype, **changes: Any) -> torch.Tensor:
    zeros = torch.zeros(num_chains, size, dtype=dtype)
    return propose(zeros, zeros, **{"a": 0.0, "b": 0.0, "s": 1.0, **changes}).candidates


def cdf(z: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.erfc(-z.double() / math.sqrt(2))


def test_float64_noise_is_the_normal_stream() -> None:
    due = ops.philox_normal(
        1,
        torch.arange(5),
        0,
        Purpose.NOISE,
        num_elements=301,
        num_candidates=3,
        dtype=torch.float64,
    )
    assert torch.equal(noise(5, 301, torch.float64), due)


def test_float32_noise_is_within_two_ulp_of_the_normal_stream() -> None:
    exact = reference.philox_normal(
        1,
        torch.arange(40),
        0,
        Purpose.NOISE,
        num_elements=4001,
        num_candidates=3,
        dtype=torch.float64,
    )
    got = noise(40, 4001, torch.float32)
    ulp = torch.nextafter(got.abs(), torch.tensor(torch.inf)) - got.abs()
    assert float(((got - exact.float()).abs() / ulp).max()) <= 2
    assert float(((got.double() - exact).abs() / ulp).max()) <= 2.4


def test_float32_noise_reaches_no_farther_than_its_words() -> None:
    z = noise(64, 1 << 16, torch.float32, num_candidates=1)
    assert bool(torch.isfinite(z).all())
    assert float(z.abs().max()) <= math.sqrt(2 * 33 * math.log(2)) * (1 + 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_law(dtype: torch.dtype) -> None:
    n = 200_000
    x, output = torch.randn(1, n, dtype=dtype), torch.randn(1, n, dtype=dtype)
    got = propose(x, output, a=0.8, b=-0.5, s=0.7, num_candidates=2).candidates
    mean = 0.8 * x.double() - 0.5 * output.double()
    z = (got.double() - mean[:, None]) / 0.7
    for k in range(2):
        draws = z[0, k]
        assert ks_uniform_p(cdf(draws)) > 1e-6
        assert abs(float(draws.mean())) * math.sqrt(n) < 5
        assert abs(float(draws.square().mean()) - 1) * math.sqrt(n / 2) < 5
        for threshold in (2.0, 3.0, 4.0):
            tail = math.erfc(threshold / math.sqrt(2))
            assert abs(z_score(int((draws.abs() > threshold).sum()), n, tail)) < 5
        for lag in (1, 2, 3, 4, 32):
            assert abs(float((draws[:-lag] * draws[lag:]).mean())) * math.sqrt(n - lag) < 5
    assert abs(float((z[0, 0] * z[0, 1]).mean())) * math.sqrt(n) < 5


@pytest.mark.parametrize("axis", ["candidate", "chain", "step", "seed"])
def test_every_axis_draws_anew(axis: str) -> None:
    n = 50_000
    if axis == "candidate":
        z = noise(1, 4, torch.float32, num_candidates=n)[0, :, 0]
    elif axis == "chain":
        z = noise(n, 4, torch.float32, num_candidates=1)[:, 0, 0]
    else:
        z = torch.cat(
            [
                noise(1, 500, torch.float32, num_candidates=1, **{axis: i}).flatten()
                for i in range(100)
            ]
        )
    assert ks_uniform_p(cdf(z)) > 1e-6
    assert abs(float((z[:-1] * z[1:]).mean())) * math.sqrt(len(z)) < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_split_draws_the_same(dtype: torch.dtype) -> None:
    """By chain, by candidate, and by a prefix of the elements (in any tile)."""
    x, output = torch.randn(4, 5003, dtype=dtype), torch.randn(4, 5003, dtype=dtype)
    whole = propose(x, output, num_candidates=5).candidates
    for n in range(4):
        rows = slice(n, n + 1)
        one = propose(x[rows], output[rows], num_candidates=5, chains=torch.tensor([n]))
        assert torch.equal(one.candidates, whole[rows])
    later = propose(x, output, num_candidates=2, first_candidate=torch.full((4,), 3)).candidates
    assert torch.equal(later, whole[:, 3:])
    for size in (1, 3, 31, 64, 65, 4095, 4097):
        part = propose(x[:, :size], output[:, :size], num_candidates=5).candidates
        assert torch.equal(part, whole[..., :size])


def test_shape_of_the_state_is_kept_and_its_order_is_row_major() -> None:
    x, output = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    flat = propose(x.flatten(1), output.flatten(1)).candidates
    assert torch.equal(propose(x, output).candidates, flat.view(3, 3, 4, 5, 6))
    channels_last = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(propose(channels_last, output).candidates, flat.view(3, 3, 4, 5, 6))


def test_index_shares_outputs() -> None:
    x, output = torch.randn(5, 40), torch.randn(2, 40)
    index = torch.tensor([0, 1, 1, 0, 1])
    shared = propose(x, output, index=index).candidates
    assert torch.equal(shared, propose(x, output[index]).candidates)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_noise_gives_the_mean(dtype: torch.dtype) -> None:
    x, output = torch.randn(2, 77, dtype=dtype), torch.randn(2, 77, dtype=dtype)
    got = propose(x, output, s=0.0).candidates
    mean = (0.9 * x.double() + 0.2 * output.double()).to(dtype)
    torch.testing.assert_close(got, mean[:, None].expand(-1, 3, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_ratio_is_that_of_the_densities(dtype: torch.dtype) -> None:
    x, output = torch.randn(3, 900, dtype=dtype), torch.randn(3, 900, dtype=dtype)
    shift = 0.2 * torch.randn(3, 900, dtype=dtype)
    got = propose(x, output, shift=shift)
    mean = (0.9 * x.double() + 0.2 * output.double())[:, None]
    plain = torch.distributions.Normal(mean, 0.3)
    shifted = torch.distributions.Normal(mean + shift.double()[:, None], 0.3)
    candidates = got.candidates.double()
    due = (plain.log_prob(candidates) - shifted.log_prob(candidates)).sum(-1)
    tight = dtype == torch.float64
    torch.testing.assert_close(got.log_ratio, due, rtol=0, atol=1e-9 if tight else 1e-3)
    unshifted = propose(x, output)
    assert unshifted.log_ratio.shape == (3, 0)
    torch.testing.assert_close(
        got.candidates, unshifted.candidates + shift[:, None], rtol=1e-5, atol=1e-6
    )


def test_log_ratio_makes_the_shifted_proposal_unbiased() -> None:
    """E_q[p / q] = 1, and E_q[x' p / q] is the unshifted mean."""
    k = 200_000
    x = torch.zeros(1, 2, dtype=torch.float64)
    shift = torch.tensor([[0.2, -0.1]], dtype=torch.float64)
    got = propose(x, x, s=0.5, shift=shift, num_candidates=k)
    weights = got.log_ratio[0].exp()
    assert abs(float(weights.mean() - 1) / float(weights.std())) * math.sqrt(k) < 5
    moved = weights[:, None] * got.candidates[0]
    assert bool(((moved.mean(0) / moved.std(0)).abs() * math.sqrt(k) < 5).all())


def test_log_ratio_does_not_depend_on_threads_or_split() -> None:
    x = torch.randn(3, 9001)
    shift = torch.randn(3, 9001)
    whole = propose(x, x, shift=shift).log_ratio
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            assert torch.equal(propose(x, x, shift=shift).log_ratio, whole)
    finally:
        torch.set_num_threads(threads)
    last = slice(2, 3)
    alone = propose(x[last], x[last], shift=shift[last], chains=torch.tensor([2]))
    assert torch.equal(alone.log_ratio, whole[last])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_gradients(backend: str) -> None:
    def doubles(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    index = torch.tensor([1, 0, 1])
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda x, y, d: propose(x, y, shift=d, index=index),
            (doubles(3, 7), doubles(2, 7), doubles(3, 7)),
        )
        assert torch.autograd.gradcheck(
            lambda x, y: propose(x, y).candidates, (doubles(2, 3, 2), doubles(2, 3, 2))
        )


def test_gradient_of_float32_inputs_has_their_dtype() -> None:
    x, output = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    propose(x, output).candidates.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 5), 3 * 0.9))
    torch.testing.assert_close(output.grad, torch.full((2, 5), 3 * 0.2))


def test_out_cannot_carry_a_gradient() -> None:
    x = torch.randn(2, 5, requires_grad=True)
    out = (torch.empty(2, 3, 5), torch.empty(2, 0, dtype=torch.float64))
    with pytest.raises(GradientError, match="out= cannot carry a gradient, but x requires one"):
        propose(x, x.detach(), out=out)
    with torch.no_grad():
        assert propose(x, x, out=out).candidates is out[0]


def test_nan_goes_through_where_it_is() -> None:
    x = torch.zeros(2, 70)
    x[1, 66] = torch.nan
    bad = propose(x, torch.zeros(2, 70)).candidates.isnan()
    assert int(bad.sum()) == 3
    assert bool(bad[1, :, 66].all())


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_bad_contents(backend: str) -> None:
    x = torch.zeros(3, 4)
    with ops.use_backend(backend):
        with pytest.raises(ArgumentError, match=r"index\[2\] = 5 is no row of output"):
            propose(x, x, index=torch.tensor([0, 1, 5]))
        with pytest.raises(ArgumentError, match=r"chains\[0\] = 4294967296 must lie"):
            propose(x, x, chains=torch.tensor([2**32, 0, 0]))
        with pytest.raises(ArgumentError, match="row 1 has candidate or particle id 4294967295"):
            propose(x, x, first_candidate=torch.tensor([0, 2**32 - 1, 0]))


def test_bad_arguments() -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(ArgumentError, match=r"s must be >= 0 .*, got -1.0"):
        propose(x, x, s=-1)
    for name in "abs":
        with pytest.raises(ArgumentError, match=f"{name} must be finite, got nan"):
            propose(x, x, **{name: math.nan})
    with pytest.raises(ArgumentError, match="shift needs s > 0"):
        propose(x, x, s=0, shift=x)
    with pytest.raises(ArgumentError, match="num_candidates must be at least 1, got 0"):
        propose(x, x, num_candidates=0)
    with pytest.raises(ShapeError, match=r"x must have shape \[N, ...\] .*, got \[3\]"):
        propose(x[:, 0], x[:, 0])
    with pytest.raises(
        ShapeError, match=r"output must have shape \[U, ...\] = \[3, 4\], got \[2, 4\]"
    ):
        propose(x, x[:2])
    with pytest.raises(ShapeError, match=r"shift must have shape \[N, ...\]"):
        propose(x, x, shift=x[:, :2])
    with pytest.raises(DtypeError, match="output must be float32, got float64"):
        propose(x, x.double())
    with pytest.raises(DtypeError, match="x must be float32 or float64, got float16"):
        propose(x.half(), x.half())
