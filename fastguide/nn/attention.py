"""Softmax attention in memory linear in the length: xformers on CUDA, torch elsewhere.

Tensors are laid out [B, L, H, D]: batch, sites, heads, features of a head. Sequences of different
lengths go either padded, with a mask over keys, or packed end to end into one row, which wastes
nothing. Source: Rabe & Staats 2021 (arXiv 2112.05682); Dao et al. 2022 (arXiv 2205.14135).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from fastguide.errors import ArgumentError, BackendError, DtypeError, ShapeError

Tensor = torch.Tensor

BACKENDS = ("xformers", "sdpa")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What the kernels of xformers compute in."""

_log = logging.getLogger("fastguide")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale q k^T) v for each head.

    Args:
        q: [B, Lq, H, D] float.   k, v: [B, Lk, H, D], of q's dtype and device.
        key_mask: [B, Lk] bool, True where a key counts; None for all. A row without any gives 0.
        scale: default D ** -0.5.
        backend: "xformers", "sdpa", or None to choose, see `attention_backend`.

    Returns:
        [B, Lq, H, D].

    Raises:
        ShapeError, DtypeError: inputs do not fit together.
        BackendError: the backend asked for cannot serve these tensors; says why.
    """
    _check(q, k, v)
    if k.shape[0] != q.shape[0]:
        raise ShapeError(f"k and v must have q's batch of {q.shape[0]} rows, got {k.shape[0]}")
    if key_mask is not None:
        _check_mask(key_mask, k)
    if _chosen(q, backend) == "sdpa":
        return _sdpa(q, k, v, key_mask, scale)
    if key_mask is None:
        return _xformers(q, k, v, None, scale)
    empty = ~key_mask.any(dim=1)
    kept = key_mask.clone()
    kept[:, 0] |= empty  # a block without keys would divide 0 by 0
    blocks = ([q.shape[1]] * q.shape[0], kept.sum(dim=1).tolist())
    packed = _xformers(q.flatten(0, 1)[None], k[kept][None], v[kept][None], blocks, scale)
    return packed.view(q.shape).masked_fill(empty[:, None, None, None], 0)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention within each of several sequences that lie end to end in one row.

    Args:
        q, k, v: [1, sum(lengths), H, D] float.
        lengths: of the sequences, in order, each at least 1.
        scale, backend: as for `attention`.

    Returns:
        [1, sum(lengths), H, D]: sequence by sequence what `attention` gives it alone.

    Raises:
        ArgumentError: a length < 1.   ShapeError, DtypeError, BackendError: as for `attention`.
    """
    _check(q, k, v)
    lengths = [int(length) for length in lengths]
    if min(lengths, default=1) < 1:
        raise ArgumentError(f"lengths must be at least 1 each, got {min(lengths)}")
    total = sum(lengths)
    if q.shape[:2] != (1, total) or k.shape[:2] != (1, total):
        raise ShapeError(
            f"q, k and v must be one row of sum(lengths) = {total} sites, [1, {total}, H, D], got "
            f"{list(q.shape)} and {list(k.shape)}"
        )
    if _chosen(q, backend) == "xformers":
        return _xformers(q, k, v, (lengths, lengths), scale)
    if not lengths:
        return torch.zeros_like(q)
    q, k, v = (pad_sequence(x[0].split(lengths), batch_first=True) for x in (q, k, v))
    site = torch.arange(max(lengths), device=q.device)
    mask = site < torch.tensor(lengths, device=q.device)[:, None]
    return _sdpa(q, k, v, mask, scale)[mask][None]


def attention_backend(
    device: torch.device | str, dtype: torch.dtype = torch.float32, head_dim: int = 64
) -> tuple[str, str]:
    """The backend that serves such tensors, and why the other one does not.

    It follows from device, dtype, head size and what is installed, never from a failure: xformers
    for CUDA tensors of `DTYPES` whose head size is a multiple of 8 (and float32 up to compute
    capability 9.0), else torch's scaled_dot_product_attention.

    Args:
        device: of q.   dtype: of q.   head_dim: D.

    Returns:
        ("xformers" or "sdpa", reason).
    """
    why = _why_not(torch.device(device), dtype, head_dim)
    return ("sdpa", f"xformers {why}") if why else ("xformers", "sdpa serves on request only")


def _chosen(q: Tensor, backend: str | None) -> str:
    if backend == "sdpa":
        return backend
    if backend is None:
        chosen, why = attention_backend(q.device, q.dtype, q.shape[-1])
        _log_once(q.device.type, chosen, why)
        return chosen
    if backend != "xformers":
        raise ArgumentError(f"backend must be 'xformers', 'sdpa' or None, got {backend!r}")
    why_not = _why_not(q.device, q.dtype, q.shape[-1])
    if why_not:
        raise BackendError(
            f"attention: the backend 'xformers' {why_not}; or pass backend='sdpa' or None"
        )
    return backend


@functools.cache
def _log_once(device: str, backend: str, why: str) -> None:
    _log.info("attention: %s tensors are served by backend %r (%s)", device, backend, why)


def _why_not(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why xformers cannot serve, with the fix, or None if it can."""
    if device.type != "cuda":
        return f"serves CUDA tensors only, got one on {device.type}"
    if importlib.util.find_spec("xformers") is None:
        return "is not installed: pip install 'fastguide[gpu]'"
    if dtype not in DTYPES:
        return f"has no kernel for {dtype}"
    if head_dim % 8:
        return f"needs a head size that is a multiple of 8, got {head_dim}"
    if dtype == torch.float32 and torch.cuda.get_device_capability(device) > (9, 0):
        return "has no float32 kernel for this GPU"
    return None


def _xformers(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: tuple[list[int], list[int]] | None,
    scale: float | None,
) -> Tensor:
    """xformers. With `blocks` of lengths, of one row each, block i of q sees block i of k and v."""
    xops = importlib.import_module("xformers.ops")
    bias = None
    if blocks is not None:
        mask = xops.fmha.attn_bias.BlockDiagonalMask
        bias = mask.from_seqlens(*blocks, device=q.device)
    try:
        out: Tensor = xops.memory_efficient_attention(q, k, v, attn_bias=bias, scale=scale)
    except NotImplementedError as error:
        raise BackendError(
            "attention: xformers has no kernel for these tensors on this GPU; pass backend='sdpa', "
            "or reinstall xformers for this version of torch"
        ) from error
    return out


def _sdpa(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, scale: float | None) -> Tensor:
    mask = None if key_mask is None else key_mask[:, None, None, :]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ShapeError(f"{name} must be [B, L, H, D], got {list(x.shape)}")
        if not x.is_floating_point() or x.dtype != q.dtype:
            raise DtypeError(f"{name} must be floating point, as q is, got {x.dtype}")
        if x.device != q.device:
            raise ArgumentError(f"{name} must be on q's device {q.device}, got {x.device}")
    if k.shape != v.shape or k.shape[2:] != q.shape[2:]:
        raise ShapeError(
            "k and v must have equal shapes, and q's heads and features "
            f"{list(q.shape[2:])}, got {list(k.shape)} and {list(v.shape)}"
        )


def _check_mask(key_mask: Tensor, k: Tensor) -> None:
    if key_mask.dtype != torch.bool:
        raise DtypeError(f"key_mask must be bool, True where a key counts, got {key_mask.dtype}")
    if key_mask.shape != k.shape[:2]:
        raise ShapeError(
            f"key_mask must be [B, Lk] = {list(k.shape[:2])}, got {list(key_mask.shape)}"
        )
