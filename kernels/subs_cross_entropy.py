"""SUBS cross-entropy on a GPU, from logits or from slices of a head, and its gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.kernels import chunked_head, device_faults
from fastguide.kernels.doubles import exp_double
from fastguide.kernels.site_softmax import (
    exp_of,
    finite_pivot,
    is_token,
    load_logits,
    load_site,
    log_normaliser,
    rescaled,
    tile_of_sites,
    wide,
)
from fastguide.kernels.triton_config import MAX_REGISTERS
from fastguide.kernels.triton_runtime import OPTIONS, TOKEN_FAULT, note_first_fault

OP = "subs_cross_entropy"
_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _walk(base, token_stride, vocab_size, m_site, top, total, BLOCK_V: tl.constexpr):
    """(top, total) [BLOCK_S] after the logits of a vocabulary."""
    one = tl.full([], 1.0, tl.float64)
    for start in range(0, vocab_size, BLOCK_V):
        z = load_logits(base, token_stride, start, vocab_size, m_site, one, BLOCK_V)
        new = tl.maximum(top, tl.max(z, axis=1))
        e = exp_of(z - finite_pivot(new)[:, None])
        total = total * rescaled(top, new) + tl.sum(e, axis=1).to(tl.float64)
        top = new
    return top, total


@triton.jit(do_not_specialize=["length", "vocab_size", "mask_token"])
def _subs_cross_entropy_kernel(
    logits_ptr,
    x_ptr,
    targets_ptr,
    loss_ptr,
    normalisers_ptr,
    fault_ptr,
    row_stride,
    site_stride,
    token_stride,
    length,
    vocab_size,
    mask_token: tl.int64,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """loss_ptr, normalisers_ptr: [N, L] float64, 0 at clean sites."""
    blocks = tl.cdiv(length, BLOCK_S)
    n = tl.program_id(0).to(tl.int64) // blocks
    site = (tl.program_id(0) - n * blocks) * BLOCK_S + tl.arange(0, BLOCK_S).to(tl.int64)
    there = site < length
    at = n * length + site
    x = load_site(x_ptr, at, there)
    masked = there & (x == mask_token)
    target = load_site(targets_ptr, at, masked)
    looked_at = tl.where(masked, target, x)
    bad = there & (is_token(looked_at, vocab_size) == 0)
    note_first_fault(fault_ptr, bad, n, site, looked_at, n * 0, TOKEN_FAULT)
    masked = masked & (bad == 0)
    base = logits_ptr + n * row_stride + site * site_stride
    top = wide(tl.full([BLOCK_S], -_INFINITY, logits_ptr.dtype.element_ty))
    total = tl.zeros([BLOCK_S], tl.float64)
    top, total = _walk(base, token_stride, vocab_size, masked, top, total, BLOCK_V)
    normaliser = log_normaliser(top, total)
    chosen = tl.load(base + target * token_stride, mask=masked, other=0.0).to(tl.float64)
    tl.store(loss_ptr + at, tl.where(masked, normaliser - chosen, 0.0), mask=there)
    tl.store(normalisers_ptr + at, tl.where(masked, normaliser, 0.0), mask=there)


@triton.jit
def _write_pull(
    base,
    token_stride,
    out,
    vocab_size,
    m_site,
    there,
    target,
    normaliser,
    scale,
    BLOCK_V: tl.constexpr,
):
    """out: scale (softmax - one-hot of target) of sites [BLOCK_S], 0 where m_site is not set."""
    one = tl.full([], 1.0, tl.float64)
    for start in range(0, vocab_size, BLOCK_V):
        z = load_logits(base, token_stride, start, vocab_size, m_site, one, BLOCK_V)
        shift = normaliser.to(z.dtype)
        rest = exp_double(shift.to(tl.float64) - normaliser)
        p = exp_of(z - shift[:, None]) * rest.to(z.dtype)[:, None]
        v = start + tl.arange(0, BLOCK_V).to(tl.int64)
        p = p - (v[None, :] == target[:, None]).to(z.dtype)
        pull = tl.where(m_site[:, None], p * scale.to(z.dtype)[:, None], 0.0)
        mask = there[:, None] & (v < vocab_size)[None, :]
        tl.store(out[:, None] + v[None, :], pull.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["length", "vocab_size", "mask_token"])
def _subs_cross_entropy_backward_kernel(
    logits_ptr,
    x_ptr,
    targets_ptr,
    normalisers_ptr,
    pull_ptr,
    d_logits_ptr,
    row_stride,
    site_stride,
    token_stride,
    length,
    vocab_size,
    mask_token: tl.int64,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    blocks = tl.cdiv(length, BLOCK_S)
    n = tl.program_id(0).to(tl.int64) // blocks
    site = (tl.program_id(0) - n * blocks) * BLOCK_S + tl.arange(0, BLOCK_S).to(tl.int64)
    there = site < length
    at = n * length + site
    masked = there & (load_site(x_ptr, at, there) == mask_token)
    normaliser = tl.load(normalisers_ptr + at, mask=there, other=0.0)
    scale = tl.load(pull_ptr + n) + tl.zeros([BLOCK_S], tl.float64)
    _write_pull(
        logits_ptr + n * row_stride + site * site_stride,
        token_stride,
        d_logits_ptr + at * vocab_size,
        vocab_size,
        masked,
        there,
        load_site(targets_ptr, at, masked),
        normaliser,
        scale,
        BLOCK_V,
    )


@triton.jit(do_not_specialize=["num_rows", "num_tokens", "first"])
def _subs_slice_sums_kernel(
    logits_ptr,
    targets_ptr,
    top_ptr,
    total_ptr,
    chosen_ptr,
    num_rows,
    num_tokens,
    first,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S).to(tl.int64)
    there = row < num_rows
    base = logits_ptr + row * num_tokens
    top = tl.load(top_ptr + row, mask=there, other=0.0)
    top = wide(top.to(logits_ptr.dtype.element_ty))
    total = tl.load(total_ptr + row, mask=there, other=0.0)
    top, total = _walk(base, 1, num_tokens, there, top, total, BLOCK_V)
    tl.store(top_ptr + row, top.to(tl.float64), mask=there)
    tl.store(total_ptr + row, total, mask=there)
    place = load_site(targets_ptr, row, there) - first
    here = there & is_token(place, num_tokens)
    chosen = tl.load(base + place, mask=here, other=0.0).to(tl.float64)
    tl.store(chosen_ptr + row, chosen, mask=here)


@triton.jit(do_not_specialize=["num_rows", "num_tokens", "first"])
def _subs_slice_pull_kernel(
    logits_ptr,
    targets_ptr,
    normalisers_ptr,
    scale_ptr,
    num_rows,
    num_tokens,
    first,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S).to(tl.int64)
    there = row < num_rows
    base = logits_ptr + row * num_tokens
    _write_pull(
        base,
        1,
        base,
        num_tokens,
        there,
        there,
        load_site(targets_ptr, row, there) - first,
        tl.load(normalisers_ptr + row, mask=there, other=0.0),
        tl.load(scale_ptr + row, mask=there, other=0.0),
        BLOCK_V,
    )


def launch_subs_cross_entropy(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    loss: torch.Tensor,
    normalisers: torch.Tensor,
) -> device_faults.Fault | None:
    """logits [N, L, V], x, targets [N, L] -> loss [N], normalisers [N, L], both float64."""
    num_rows, length, vocab_size = logits.shape
    each = torch.empty_like(normalisers)
    if each.numel():
        block_s, block_v = tile_of_sites(length, vocab_size)
        _subs_cross_entropy_kernel[(num_rows * triton.cdiv(length, block_s),)](
            logits,
            x,
            targets,
            each,
            normalisers,
            device_faults.record(OP, logits.device),
            *logits.stride(),
            length,
            vocab_size,
            mask_token,
            BLOCK_S=block_s,
            BLOCK_V=block_v,
            num_warps=4,
            maxnreg=MAX_REGISTERS,
            **OPTIONS,
        )
    torch.sum(each, 1, out=loss)
    return device_faults.outcome(logits.device) if each.numel() else None


def launch_subs_cross_entropy_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    normalisers: torch.Tensor,
    d_loss: torch.Tensor,
    d_logits: torch.Tensor,
) -> None:
    """Inputs and normalisers of the forward launch, d_loss [N] -> d_logits [N, L, V]."""
    num_rows, length, vocab_size = logits.shape
    if not logits.numel():
        return
    block_s, block_v = tile_of_sites(length, vocab_size)
    _subs_cross_entropy_backward_kernel[(num_rows * triton.cdiv(length, block_s),)](
        logits,
        x,
        targets,
        normalisers,
        d_loss,
        d_logits,
        *logits.stride(),
        length,
        vocab_size,
        mask_token,
        BLOCK_S=block_s,
        BLOCK_V=block_v,
        num_warps=4,
        maxnreg=MAX_REGISTERS,
        **OPTIONS,
    )


def slice_sums(
    logits: torch.Tensor,
    first: int,
    targets: torch.Tensor,
    top: torch.Tensor,
    total: torch.Tensor,
    chosen: torch.Tensor,
) -> None:
    if not logits.numel():
        return
    block_s, block_v = tile_of_sites(*logits.shape)
    _subs_slice_sums_kernel[(triton.cdiv(logits.shape[0], block_s),)](
        logits,
        targets,
        top,
        total,
        chosen,
        *logits.shape,
        first,
        BLOCK_S=block_s,
        BLOCK_V=block_v,
        num_warps=4,
        maxnreg=MAX_REGISTERS,
        **OPTIONS,
    )


def slice_pull(
    logits: torch.Tensor,
    first: int,
    targets: torch.Tensor,
    normalisers: torch.Tensor,
    scale: torch.Tensor,
) -> None:
    if not logits.numel():
        return
    block_s, block_v = tile_of_sites(*logits.shape)
    _subs_slice_pull_kernel[(triton.cdiv(logits.shape[0], block_s),)](
        logits,
        targets,
        normalisers,
        scale,
        *logits.shape,
        first,
        BLOCK_S=block_s,
        BLOCK_V=block_v,
        num_warps=4,
        maxnreg=MAX_REGISTERS,
        **OPTIONS,
    )


def launch_subs_cross_entropy_head(
    hidden: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    head: torch.Tensor,
    loss: torch.Tensor,
    normalisers: torch.Tensor,
) -> device_faults.Fault | None:
    """hidden [N, L, H], x, targets [N, L], head [V, H] -> loss [N], normalisers [N, L]."""
    fault = chunked_head.first_bad_token(x, targets, head.shape[0], mask_token)
    if fault is not None:
        return (TOKEN_FAULT.value, *fault)
    given = (hidden, x, targets, mask_token, head)
    chunked_head.head_forward(slice_sums, *given, loss, normalisers)
    return None


def launch_subs_cross_entropy_head_backward(
    hidden: torch.Tensor,
    x: torch.Tensor,
    targets: torch.Tensor,
    mask_token: int,
    head: torch.Tensor,
    normalisers: torch.Tensor,
    d_loss: torch.Tensor,
    d_hidden: torch.Tensor,
    d_head: torch.Tensor,
) -> None:
    """Inputs and normalisers of the forward launch, d_loss [N] -> d_hidden, d_head."""
    given = (hidden, x, targets, mask_token, head, normalisers, d_loss)
    chunked_head.head_backward(slice_pull, *given, d_hidden, d_head)
