"""Attention equals a softmax written out in float64, packed, padded and plain."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from fastguide.errors import ArgumentError, BackendError, DtypeError, ShapeError
from fastguide.nn import attention, attention_backend, packed_attention

module = sys.modules[attention.__module__]

LENGTHS = [3, 1, 7, 4, 7]
# Behind each, the largest error seen on the CPU over 50 draws.
BUDGET = {
    torch.float64: 1e-14,  # 1.8e-15
    torch.float32: 4e-6,  # 1.0e-6
    torch.bfloat16: 3e-2,  # 8e-3
    torch.float16: 5e-3,  # 1.3e-3
}
# Not measured yet; single precision may be made of products of TF32.
GPU_BUDGET = {**BUDGET, torch.float32: 1e-4}


def naive(q, k, v, *, mask=None, scale=None):
    """[B, Lq, H, D] in float64; mask [B, Lk]."""
    q, k, v = (x.detach().double().cpu() for x in (q, k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * (
        q.shape[-1] ** -0.5 if scale is None else scale
    )
    if mask is not None:
        scores = scores.masked_fill(~mask.cpu()[:, None, None, :], float("-inf"))
    weights = torch.nan_to_num(scores.softmax(dim=-1))  # 0 where no key is left
    return torch.einsum("bhij,bjhd->bihd", weights, v)


def naive_packed(q, k, v, lengths, *, scale=None):
    pieces = [x.split(lengths, dim=1) for x in (q, k, v)]
    return torch.cat([naive(*piece, scale=scale) for piece in zip(*pieces, strict=True)], dim=1)


def draw(rows, length, dtype=torch.float32, heads=2, features=8, device="cpu"):
    return [torch.randn(rows, length, heads, features).to(device, dtype) for _ in range(3)]


def assert_near(found, due, dtype):
    assert found.dtype == dtype
    torch.testing.assert_close(found.detach().double().cpu(), due, rtol=0, atol=BUDGET[dtype])


@pytest.mark.parametrize("dtype", BUDGET)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_plain(dtype, scale):
    q, k, v = draw(3, 9, dtype)
    assert_near(attention(q, k, v, scale=scale), naive(q, k, v, scale=scale), dtype)
    cross = attention(q[:, :4], k, v, scale=scale)
    assert_near(cross, naive(q[:, :4], k, v, scale=scale), dtype)


@pytest.mark.parametrize("dtype", BUDGET)
def test_padded_keys(dtype):
    q, k, v = draw(4, 6, dtype)
    mask = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1], [0] * 6]).bool()
    k[~mask], v[~mask] = 1e3, 1e3  # whatever stands there must not matter
    found = attention(q, k, v, key_mask=mask)
    assert_near(found, naive(q, k, v, mask=mask), dtype)
    assert bool((found[3] == 0).all())


@pytest.mark.parametrize("dtype", BUDGET)
@pytest.mark.parametrize("lengths", [LENGTHS, [5], [1, 1], [2] * 3])
def test_packed(dtype, lengths):
    q, k, v = draw(1, sum(lengths), dtype)
    found = packed_attention(q, k, v, lengths, scale=0.5)
    assert_near(found, naive_packed(q, k, v, lengths, scale=0.5), dtype)


def test_packed_sequences_do_not_see_each_other():
    q, k, v = draw(1, sum(LENGTHS))
    before = packed_attention(q, k, v, LENGTHS)
    k[:, 4:11], v[:, 4:11] = torch.randn(7, 2, 8), torch.randn(7, 2, 8)
    after = packed_attention(q, k, v, LENGTHS)
    changed = (before != after).flatten(2).any(dim=-1)[0]
    assert changed.tolist() == [False] * 4 + [True] * 7 + [False] * 11


def test_no_sequence():
    q, k, v = draw(1, 0)
    assert packed_attention(q, k, v, []).shape == (1, 0, 2, 8)


def test_gradients():
    """Of packed and padded attention against those of the sum written out."""
    lengths = [2, 3]
    q, k, v = (x.requires_grad_() for x in draw(1, 5, torch.float64, features=3))
    assert torch.autograd.gradcheck(lambda *x: packed_attention(*x, lengths), (q, k, v))


class Blocks:
    """A stand-in for BlockDiagonalMask of xformers, with its meaning."""

    def __init__(self, q_lengths, k_lengths):
        self.lengths = q_lengths, k_lengths

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
        assert all(isinstance(n, int) and n > 0 for n in [*q_seqlen, *kv_seqlen])
        assert device == torch.device("cpu")
        return cls(q_seqlen, kv_seqlen)


def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None):
    if attn_bias is None:
        return naive(query, key, value, scale=scale).to(query.dtype)
    assert query.shape[0] == key.shape[0] == value.shape[0] == 1
    q_lengths, k_lengths = attn_bias.lengths
    pieces = query.split(q_lengths, 1), key.split(k_lengths, 1), value.split(k_lengths, 1)
    parts = [naive(*piece, scale=scale) for piece in zip(*pieces, strict=True)]
    return torch.cat(parts, dim=1).to(query.dtype)


@pytest.fixture
def stand_in(monkeypatch):
    """xformers' interface on the CPU, so that what is passed to it is tested without a GPU."""
    bias = SimpleNamespace(BlockDiagonalMask=Blocks)
    ops = SimpleNamespace(
        fmha=SimpleNamespace(attn_bias=bias), memory_efficient_attention=memory_efficient_attention
    )
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(module, "_why_not", lambda *of: None)


@pytest.mark.usefixtures("stand_in")
def test_calls_of_xformers():
    q, k, v = draw(4, 6)
    assert_near(attention(q, k, v, scale=0.3), naive(q, k, v, scale=0.3), torch.float32)
    mask = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1], [0] * 6]).bool()
    found = attention(q[:, :5], k, v, key_mask=mask)
    assert_near(found, naive(q[:, :5], k, v, mask=mask), torch.float32)
    q, k, v = draw(1, sum(LENGTHS))
    found = packed_attention(q, k, v, LENGTHS, backend="xformers")
    assert_near(found, naive_packed(q, k, v, LENGTHS), torch.float32)


@pytest.mark.usefixtures("stand_in")
def test_xformers_without_a_kernel(monkeypatch):
    def refuse(*tensors, **options):
        raise NotImplementedError("No operator found")

    monkeypatch.setattr(sys.modules["xformers.ops"], "memory_efficient_attention", refuse)
    with pytest.raises(BackendError, match="no kernel for these tensors on this GPU; pass backend"):
        attention(*draw(1, 4))


def test_choice(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert attention_backend("cuda") == ("xformers", "sdpa serves on request only")
    assert attention_backend("cpu")[0] == "sdpa"
    assert attention_backend("cuda", torch.float64) == (
        "sdpa", "xformers has no kernel for torch.float64"
    )  # fmt: skip
    assert "multiple of 8, got 12" in attention_backend("cuda", head_dim=12)[1]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert attention_backend("cuda")[0] == "sdpa"
    assert attention_backend("cuda", torch.bfloat16)[0] == "xformers"
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert attention_backend("cuda", torch.bfloat16) == (
        "sdpa", "xformers is not installed: pip install 'fastguide[gpu]'"
    )  # fmt: skip


def test_forced_backend_fails_loudly():
    q, k, v = draw(1, 4)
    with pytest.raises(BackendError, match="'xformers' serves CUDA tensors only, got one on cpu"):
        attention(q, k, v, backend="xformers")
    with pytest.raises(ArgumentError, match="backend must be 'xformers', 'sdpa' or None, got 'fl"):
        attention(q, k, v, backend="flash")
    assert torch.equal(attention(q, k, v, backend="sdpa"), attention(q, k, v))


def test_errors():
    q, k, v = draw(2, 4)
    mask = torch.ones(2, 4, dtype=torch.bool)
    wrong = [
        ((q[0], k, v), {}, ShapeError, r"q must be \[B, L, H, D\], got \[4, 2, 8\]"),
        ((q, k[:, :3], v), {}, ShapeError, "k and v must have equal shapes"),
        ((q, k[..., :4], v[..., :4]), {}, ShapeError, r"features \[2, 8\], got \[2, 4, 2, 4\]"),
        ((q, k[:1], v[:1]), {}, ShapeError, "q's batch of 2 rows, got 1"),
        ((q, k.double(), v), {}, DtypeError, "k must be floating point, as q is, got torch.fl"),
        ((q, k, v), {"key_mask": mask[:, :3]}, ShapeError, r"\[B, Lk\] = \[2, 4\], got \[2, 3\]"),
        ((q, k, v), {"key_mask": mask.float()}, DtypeError, "key_mask must be bool"),
    ]
    for arguments, options, error, text in wrong:
        with pytest.raises(error, match=text):
            attention(*arguments, **options)
    one = [x[:1] for x in (q, k, v)]
    with pytest.raises(ShapeError, match=r"sum\(lengths\) = 5 sites, \[1, 5, H, D\], got \[1, 4"):
        packed_attention(*one, [2, 3])
    with pytest.raises(ArgumentError, match="lengths must be at least 1 each, got 0"):
        packed_attention(*one, [4, 0])


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["xformers", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(backend, dtype):
    if backend == "xformers" and importlib.util.find_spec("xformers") is None:
        pytest.skip("needs xformers")
    q, k, v = draw(5, 70, dtype, features=32, device="cuda")
    mask = torch.rand(5, 70, device="cuda") < 0.5
    mask[4] = False
    packed = draw(1, sum(LENGTHS), dtype, features=32, device="cuda")
    pairs = (
        (attention(q, k, v, backend=backend), naive(q, k, v)),
        (attention(q, k, v, key_mask=mask, backend=backend), naive(q, k, v, mask=mask)),
        (packed_attention(*packed, LENGTHS, backend=backend), naive_packed(*packed, LENGTHS)),
    )
    for found, due in pairs:
        assert found.is_cuda
        torch.testing.assert_close(found.double().cpu(), due, rtol=0, atol=GPU_BUDGET[dtype])
