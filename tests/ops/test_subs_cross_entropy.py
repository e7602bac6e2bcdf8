"""subs_cross_entropy: closed forms, the chunked head and its memory, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastguide import ops
from fastguide.errors import ArgumentError, DtypeError, GradientError, ShapeError
from fastguide.kernels import chunked_head

BACKENDS = pytest.mark.parametrize("backend", ["cpp", "reference"])


def rows(
    vocab: int, n: int = 3, length: int = 6, width: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits (or hidden states of `width`), x with two thirds masked, targets."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(n, length, width or vocab, generator=generator, dtype=dtype)
    targets = torch.randint(0, vocab, (n, length), generator=generator)
    x = targets.clone()
    x[:, ::3], x[:, 1::3] = vocab, vocab
    return logits, x, targets


@BACKENDS
@pytest.mark.parametrize("vocab", [4, 700])
def test_it_is_the_cross_entropy_of_torch(backend: str, vocab: int) -> None:
    logits, x, targets = rows(vocab)
    weight = torch.tensor([0.5, 2.0, 0.0])
    with ops.use_backend(backend):
        got = ops.subs_cross_entropy(logits, x, targets, mask_token=vocab, weight=weight)
    each = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
    torch.testing.assert_close(got, (each * (x == vocab)).sum(1) * weight)


@BACKENDS
def test_extreme_logits(backend: str) -> None:
    """A late logit far above the first ones; NaN stays in its row; clean sites are not read."""
    logits, x, targets = rows(1300, dtype=torch.float32)
    logits[..., 1250] += 500
    logits[1, 0, 600] = torch.nan
    logits[2, 2] = torch.inf
    due = torch.nn.functional.cross_entropy(logits.double().mT, targets, reduction="none")
    with ops.use_backend(backend):
        got = ops.subs_cross_entropy(logits, x, targets, mask_token=1300)
    assert got.isnan().tolist() == [False, True, False]
    masked = x == 1300
    torch.testing.assert_close(got[0], (due * masked)[0].sum(), rtol=1e-6, atol=1e-5)


@BACKENDS
@pytest.mark.parametrize("vocab", [4, 200])
def test_gradcheck(backend: str, vocab: int) -> None:
    logits, x, targets = rows(vocab, n=2, length=3)
    logits.requires_grad_()
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda z: ops.subs_cross_entropy(z, x, targets, mask_token=vocab), logits
        )


@BACKENDS
def test_gradcheck_with_a_head(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_head, "MOST_LOGITS", 8)
    monkeypatch.setattr(chunked_head, "FEWEST_TOKENS", 3)
    hidden, x, targets = rows(10, n=2, length=3, width=4)
    head = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    with ops.use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda h, w: ops.subs_cross_entropy(h, x, targets, mask_token=10, head=w),
            (hidden.requires_grad_(), head),
        )


@pytest.mark.parametrize("most", [1, 700, 2**22])
def test_slices_of_the_head_do_not_show(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_head, "MOST_LOGITS", most)
    hidden, x, targets = rows(1000, width=16)
    head = torch.randn(1000, 16, dtype=torch.float64, requires_grad=True)
    hidden.requires_grad_()
    got = ops.subs_cross_entropy(hidden, x, targets, mask_token=1000, head=head)
    due = ops.subs_cross_entropy(hidden @ head.T, x, targets, mask_token=1000)
    torch.testing.assert_close(got, due)
    pull = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    slopes = torch.autograd.grad(got, (hidden, head), pull)
    torch.testing.assert_close(slopes, torch.autograd.grad(due, (hidden, head), pull))


class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the most elements that a tensor made inside has."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple) else (result,):
            if isinstance(each, torch.Tensor):
                self.most = max(self.most, each.untyped_storage().nbytes() // each.element_size())
        return result


def test_the_logits_never_exist_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_head, "MOST_LOGITS", 4096)
    hidden, x, targets = rows(5000, n=4, length=30, width=8, dtype=torch.float32)
    head = torch.randn(5000, 8, requires_grad=True)
    hidden.requires_grad_()
    with Sizes() as sizes:
        loss = ops.subs_cross_entropy(hidden, x, targets, mask_token=5000, head=head).sum()
        loss.backward()
    assert int((x == 5000).sum()) * 5000 == 400_000
    assert sizes.most == head.numel() == 40_000


@BACKENDS
def test_bad_arguments(backend: str) -> None:
    logits, x, targets = rows(4)
    wrong = targets.clone()
    wrong[1, 0] = 4
    with ops.use_backend(backend):
        for head in (None, torch.zeros(4, 4, dtype=torch.float64)):
            with pytest.raises(ArgumentError, match=r"x or targets holds 4 at \[1, 0\]"):
                ops.subs_cross_entropy(logits, x, wrong, mask_token=4, head=head)
            with pytest.raises(ArgumentError, match=r"x or targets holds 4 at \[0, 0\]"):
                ops.subs_cross_entropy(logits, x, targets, mask_token=9, head=head)
        with pytest.raises(ShapeError, match=r"logits must have shape \[N, L, V\]"):
            ops.subs_cross_entropy(logits[0], x, targets, mask_token=4)
        narrow = torch.zeros(4, 3, dtype=torch.float64)
        with pytest.raises(ShapeError, match=r"head must have shape \[V, H\]"):
            ops.subs_cross_entropy(logits, x, targets, mask_token=4, head=narrow)
        with pytest.raises(DtypeError, match="head must be float64"):
            ops.subs_cross_entropy(logits, x, targets, mask_token=4, head=torch.zeros(4, 4))
        weight = torch.ones(3, requires_grad=True)
        with pytest.raises(GradientError, match="but weight requires one"):
            ops.subs_cross_entropy(logits, x, targets, mask_token=4, weight=weight)


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def loss_and_slopes(
    logits: torch.Tensor, x: torch.Tensor, targets: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, ...]:
    leaves = [logits.detach().requires_grad_()]
    if "head" in kwargs:
        kwargs["head"] = kwargs["head"].detach().requires_grad_()
        leaves.append(kwargs["head"])
    loss = ops.subs_cross_entropy(leaves[0], x, targets, **kwargs)
    return loss.detach(), *torch.autograd.grad(loss.sum(), leaves)


@HALVES
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("vocab", [1, 7, 191, 192, 1300])
def test_halves_are_float32_with_a_rounded_gradient(
    vocab: int, apart: bool, dtype: torch.dtype
) -> None:
    """Bit for bit: reading them and rounding the gradient are all that is different."""
    logits, x, targets = rows(vocab, n=4, length=9)
    logits = (4 * logits).to(dtype)
    if vocab > 1:
        logits[..., 0] = -torch.inf
        targets.clamp_min_(1)
    if vocab > 500:
        logits[1, :, 1250] = 300
    logits[3, 0, vocab // 2] = torch.nan
    if apart:
        logits = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    loss, slope = loss_and_slopes(logits, x, targets, mask_token=vocab)
    due, due_slope = loss_and_slopes(logits.float(), x, targets, mask_token=vocab)
    assert slope.dtype is dtype
    assert loss.isnan().tolist() == [False, False, False, True]
    assert torch.equal(loss[:3], due[:3])
    assert torch.equal(slope[:3], due_slope[:3].to(dtype))
    torch.testing.assert_close(slope[3], due_slope[3].to(dtype), rtol=0, atol=0, equal_nan=True)


@HALVES
def test_a_head_of_halves(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As good as one product in their dtype, however many slices the gradient is a sum of."""
    hidden, x, targets = rows(1000, width=16)
    hidden, head = hidden.to(dtype), torch.randn(1000, 16).to(dtype)
    due = loss_and_slopes(hidden.double(), x, targets, mask_token=1000, head=head.double())
    for backend, most in (("cpp", 2**22), ("cpp", 1), ("reference", 1)):
        monkeypatch.setattr(chunked_head, "MOST_LOGITS", most)
        monkeypatch.setattr(chunked_head, "FEWEST_TOKENS", 7)
        with ops.use_backend(backend):
            got = loss_and_slopes(hidden, x, targets, mask_token=1000, head=head)
        assert [each.dtype for each in got] == [torch.float64, dtype, dtype]
        for one, other in zip(got, due, strict=True):
            error = float((one.double() - other).norm() / other.norm())
            assert error < torch.finfo(dtype).eps, (backend, most)


@HALVES
def test_compiled_and_without_a_masked_site(dtype: torch.dtype) -> None:
    logits, x, targets = rows(200)
    logits = logits.to(dtype)
    compiled = torch.compile(ops.subs_cross_entropy, backend="aot_eager", fullgraph=True)
    for states in (x, targets):
        due = loss_and_slopes(logits, states, targets, mask_token=200)
        leaf = logits.detach().requires_grad_()
        loss = compiled(leaf, states, targets, mask_token=200)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
        assert slope.dtype is dtype
        assert torch.equal(loss, due[0])
        assert torch.equal(slope, due[1])
    assert torch.equal(due[0], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(due[1], torch.zeros_like(logits))


def allocated(logits: torch.Tensor, x: torch.Tensor, targets: torch.Tensor) -> int:
    """Most bytes that exist at once, forward and backward, above the inputs."""
    with torch.profiler.profile(profile_memory=True) as profile:
        loss_and_slopes(logits, x, targets, mask_token=logits.shape[-1])
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def test_halves_take_half_the_memory() -> None:
    logits, x, targets = rows(5000, n=4, length=8, dtype=torch.float32)
    halves = allocated(logits.bfloat16(), x, targets)
    assert logits.nbytes // 2 <= halves < 0.51 * logits.nbytes
    assert logits.nbytes <= allocated(logits, x, targets)
