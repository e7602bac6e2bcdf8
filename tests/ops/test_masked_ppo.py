"""masked_ppo: closed forms, what is left out, the KL of hard states, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastguide import ops
from fastguide.errors import ArgumentError, DtypeError, GradientError, ShapeError

N, L, V = 3, 6, 4
STEP: dict[str, Any] = dict(mask_token=V, rho=0.4, clip=(0.8, 1.2))
BACKENDS = pytest.mark.parametrize("backend", ["cpp", "reference"])


def step(vocab: int = V, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """logits, those of a reference, x, x_next: two sites revealed, two left, two clean in a row."""
    generator = torch.Generator().manual_seed(2)
    logits, ref = torch.randn(2, N, L, vocab, generator=generator, dtype=dtype)
    clean = torch.randint(0, vocab, (N, L), generator=generator)
    x, x_next = clean.clone(), clean.clone()
    x[:, :4], x_next[:, 2:4] = vocab, vocab
    return logits, ref, x, x_next


def terms(
    logits: torch.Tensor, x: torch.Tensor, x_next: torch.Tensor, old: Any = None, **changes: Any
) -> ops.PPOTerms:
    old = torch.zeros(len(x)) if old is None else old
    mask = dict(mask_token=logits.shape[-1])
    return ops.masked_ppo(logits, x, x_next, old, torch.ones(len(x)), **{**STEP, **mask, **changes})


@BACKENDS
@pytest.mark.parametrize("vocab", [4, 37, 700])
def test_log_prob_and_kl_are_those_of_torch(backend: str, vocab: int) -> None:
    logits, ref, x, x_next = step(vocab)
    rho = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    with ops.use_backend(backend):
        got = terms(logits, x, x_next, rho=rho, logits_ref=ref, temperature=0.7)
    law = torch.distributions.Categorical(logits=logits[:, :4] / 0.7)
    other = torch.distributions.Categorical(logits=ref[:, :4] / 0.7)
    due = law.log_prob(x_next[:, :4].clamp_max(vocab - 1))[:, :2].sum(1)
    torch.testing.assert_close(got.log_prob, due)
    kl = torch.distributions.kl_divergence(law, other).sum(1)
    torch.testing.assert_close(got.kl, rho * kl)


@BACKENDS
def test_kl_of_the_step_is_that_of_its_whole_law(backend: str) -> None:
    """Two masked sites: rho sum_i KL_i is the KL between the laws of all nine outcomes."""
    generator = torch.Generator().manual_seed(3)
    logits, ref = torch.randn(2, 1, 2, 2, generator=generator, dtype=torch.float64)
    rho, x = 0.3, torch.full((1, 2), 2)

    def law(values: torch.Tensor) -> torch.Tensor:
        sites = torch.cat(
            [rho * values[0].softmax(-1), torch.full((2, 1), 1 - rho, dtype=torch.float64)], 1
        )
        return sites[0][:, None] * sites[1][None]

    due = (law(logits) * (law(logits) / law(ref)).log()).sum()
    with ops.use_backend(backend):
        got = terms(logits, x, x, rho=rho, logits_ref=ref)
    assert float(got.kl) == pytest.approx(float(due), rel=1e-12)


def test_float32_kl_of_hard_states() -> None:
    """The sums are float64, so that a KL of 1e-3 nats is right to 1e-6, and 0 is 0."""
    for vocab in (4, 700):
        logits, ref, x, x_next = step(vocab, torch.float32)
        near = logits + 0.05 * ref
        due = terms(logits.double(), x, x_next, logits_ref=near.double()).kl
        got = terms(logits, x, x_next, logits_ref=near).kl
        assert float((got - due).abs().max()) < 1e-6
        same = terms(logits, x, x_next, logits_ref=logits.clone())
        assert torch.equal(same.kl, torch.zeros(N, dtype=torch.float64))


@BACKENDS
@pytest.mark.parametrize("vocab", [4, 700])
def test_ratio_is_one_at_the_old_weights(backend: str, vocab: int) -> None:
    logits, _, x, x_next = step(vocab, torch.float32)
    with ops.use_backend(backend):
        old = terms(logits, x, x_next).log_prob
        assert torch.equal(terms(logits, x, x_next, old).ratio, torch.ones(N, dtype=torch.float64))


@BACKENDS
def test_logits_are_not_read_where_nothing_is_masked(backend: str) -> None:
    logits, ref, x, x_next = step()
    due = terms(logits, x, x_next, logits_ref=ref)
    logits[:, 4:], ref[:, 4:] = torch.nan, torch.nan
    logits.requires_grad_()
    with ops.use_backend(backend):
        got = terms(logits, x, x_next, logits_ref=ref)
        (slope,) = torch.autograd.grad((got.log_prob + got.kl).sum(), logits)
    torch.testing.assert_close(got.log_prob, due.log_prob)
    assert torch.equal(slope[:, 4:], torch.zeros(N, 2, V, dtype=torch.float64))
    assert bool((slope[:, :4] != 0).all())


@BACKENDS
def test_logits_far_apart(backend: str) -> None:
    """Pivots that have to be raised, and tokens that no float32 exponential can say."""
    logits, ref, x, x_next = step(1300, torch.float32)
    logits[..., 900] += 300
    logits[..., :500] -= 200
    ref[..., 1200] += 1e4
    x_next[:, :2] = 900
    due = terms(logits.double(), x, x_next, logits_ref=ref.double())
    with ops.use_backend(backend):
        got = terms(logits, x, x_next, logits_ref=ref)
    torch.testing.assert_close(got.kl, due.kl, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.log_prob, due.log_prob, rtol=1e-6, atol=1e-6)


@BACKENDS
@pytest.mark.parametrize("vocab", [4, 200])
def test_gradcheck(backend: str, vocab: int) -> None:
    logits, ref, x, x_next = (tensor[:1] for tensor in step(vocab))
    logits = logits.clone().requires_grad_()
    old = terms(logits, x, x_next).log_prob.detach() - 0.1
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda z: terms(z, x, x_next, old, logits_ref=ref, temperature=1.3)[:4], logits
        )


@BACKENDS
def test_a_forbidden_token_has_no_weight(backend: str) -> None:
    logits, ref, x, x_next = step()
    logits[..., 1], ref[..., 1] = -torch.inf, -torch.inf
    x_next[x_next == 1] = 0
    logits.requires_grad_()
    with ops.use_backend(backend):
        got = terms(logits, x, x_next, logits_ref=ref)
        (slope,) = torch.autograd.grad((got.log_prob + got.kl).sum(), logits)
    assert bool(got.kl.isfinite().all())
    assert torch.equal(slope[..., 1], torch.zeros(N, L, dtype=torch.float64))
    assert bool(slope.isfinite().all())


@BACKENDS
def test_bad_arguments(backend: str) -> None:
    logits, ref, x, x_next = step()
    with ops.use_backend(backend):
        with pytest.raises(ArgumentError, match=r"x or x_next holds 9 at \[1, 5\]"):
            terms(logits, x.index_put((torch.tensor(1), torch.tensor(5)), torch.tensor(9)), x_next)
        with pytest.raises(ArgumentError, match=r"x or x_next holds -2 at \[2, 0\]"):
            terms(logits, x, x_next.index_put((torch.tensor(2), torch.tensor(0)), torch.tensor(-2)))
        with pytest.raises(ShapeError, match=r"logits must have shape \[N, L, V\]"):
            terms(logits[:, :5], x, x_next)
        with pytest.raises(ArgumentError, match="temperature must be positive"):
            terms(logits, x, x_next, temperature=0.0)
        with pytest.raises(GradientError, match="but logits_ref requires one"):
            terms(logits, x, x_next, logits_ref=ref.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("with_ref", [False, True])
@pytest.mark.parametrize("vocab", [1, 5, 191, 192, 1300])
def test_halves_are_float32_with_a_rounded_gradient(
    vocab: int, with_ref: bool, apart: bool, dtype: torch.dtype
) -> None:
    """Bit for bit: reading them and rounding the gradient are all that is different."""
    logits, ref, x, x_next = step(vocab, torch.float32)
    logits, ref = (4 * logits).to(dtype), (4 * ref).to(dtype)
    if vocab > 1:
        logits[..., 0], ref[..., 0] = -torch.inf, -torch.inf
        x_next.clamp_min_(1)
    if apart:
        logits, ref = (z.permute(2, 0, 1).contiguous().permute(1, 2, 0) for z in (logits, ref))

    def slopes(cast: Any) -> tuple[torch.Tensor, ...]:
        leaf = cast(logits).detach().requires_grad_()
        other = cast(ref) if with_ref else None
        got = terms(leaf, x, x_next, logits_ref=other, temperature=0.7)
        (slope,) = torch.autograd.grad((got.log_prob + got.kl).sum(), leaf)
        return got.log_prob.detach(), got.kl.detach(), slope

    *numbers, slope = slopes(lambda z: z)
    *due, due_slope = slopes(torch.Tensor.float)
    assert slope.dtype is dtype
    assert all(map(torch.equal, numbers, due))
    assert torch.equal(slope, due_slope.to(dtype))
    with pytest.raises(DtypeError, match=f"logits_ref must be {str(dtype)[6:]}, got float32"):
        terms(logits, x, x_next, logits_ref=ref.float())
