"""PPO terms of a Gaussian step on a GPU, and their gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.kernels import device_faults
from fastguide.kernels.doubles import log_double
from fastguide.kernels.ppo_terms import write_terms
from fastguide.kernels.triton_runtime import (
    OPTIONS,
    SCALAR_FAULT,
    double,
    double_argument,
    interpreting,
    note_fault,
)

OP = "gaussian_ppo"
_HALF_LOG_2_PI = tl.constexpr(float.fromhex("0x1.d67f1c864beb5p-1"))


@triton.jit
def _gap(n, element, mask, output, x_ptr, next_ptr, a_ptr, b_ptr, x_stride, next_stride):
    """x_next - (a x + b output) of elements [B] of row n, float64."""
    x = tl.load(x_ptr + n * x_stride + element, mask=mask, other=0.0).to(tl.float64)
    x_next = tl.load(next_ptr + n * next_stride + element, mask=mask, other=0.0).to(tl.float64)
    return x_next - (tl.load(a_ptr + n) * x + tl.load(b_ptr + n) * output)


@triton.jit(do_not_specialize=["num_elements", "num_tiles"])
def _gaussian_ppo_kernel(
    output_ptr,
    x_ptr,
    next_ptr,
    ref_ptr,
    a_ptr,
    b_ptr,
    partial_ptr,
    output_stride,
    x_stride,
    next_stride,
    ref_stride,
    num_elements,
    num_tiles,
    BLOCK: tl.constexpr,
):
    """partial_ptr: [N, tiles, 2] float64, sums of squares of the gap and of output - output_ref."""
    n = tl.program_id(0).to(tl.int64) // num_tiles
    tile = tl.program_id(0) - n * num_tiles
    element = tile * BLOCK + tl.arange(0, BLOCK)
    mask = element < num_elements
    output = tl.load(output_ptr + n * output_stride + element, mask=mask, other=0.0)
    output = output.to(tl.float64)
    gap = _gap(n, element, mask, output, x_ptr, next_ptr, a_ptr, b_ptr, x_stride, next_stride)
    gap = tl.where(mask, gap, 0.0)
    o_partial = (n * num_tiles + tile) * 2
    tl.store(partial_ptr + o_partial, tl.sum(gap * gap, axis=0))
    differences = tl.zeros([], tl.float64)
    if ref_ptr is not None:
        ref = tl.load(ref_ptr + n * ref_stride + element, mask=mask, other=0.0)
        difference = output - ref.to(tl.float64)
        differences = tl.sum(difference * difference, axis=0)
    tl.store(partial_ptr + o_partial + 1, differences)


@triton.jit(do_not_specialize=["num_elements", "num_tiles"])
def _gaussian_ppo_rows_kernel(
    partial_ptr,
    old_ptr,
    advantage_ptr,
    b_ptr,
    s_ptr,
    surrogate_ptr,
    kl_ptr,
    log_prob_ptr,
    ratio_ptr,
    clipped_ptr,
    slope_ptr,
    fault_ptr,
    low_bits: tl.int64,
    high_bits: tl.int64,
    num_elements,
    num_tiles,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    row = n + tl.arange(0, 1)
    gaps = tl.zeros([BLOCK], tl.float64)
    differences = tl.zeros([BLOCK], tl.float64)
    for start in range(0, num_tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        o_partial = (n * num_tiles + tile) * 2
        gaps += tl.load(partial_ptr + o_partial, mask=tile < num_tiles, other=0.0)
        differences += tl.load(partial_ptr + o_partial + 1, mask=tile < num_tiles, other=0.0)
    s = tl.load(s_ptr + row)
    bad = tl.max((s > 0.0).to(tl.int32), axis=0) == 0
    if bad:
        note_fault(fault_ptr, n, 0, n * 0, n * 0, SCALAR_FAULT)
    s = tl.where(s > 0.0, s, 1.0)
    count = tl.zeros([1], tl.float64) + num_elements
    each = log_double(s) + _HALF_LOG_2_PI
    log_prob = -0.5 * (tl.sum(gaps, axis=0) / (s * s)) - count * each
    scale = tl.load(b_ptr + row) / s
    kl = 0.5 * (scale * scale) * tl.sum(differences, axis=0)
    low = double_argument(low_bits, None)
    high = double_argument(high_bits, None)
    write_terms(
        row,
        log_prob,
        kl,
        old_ptr,
        advantage_ptr,
        low,
        high,
        surrogate_ptr,
        kl_ptr,
        log_prob_ptr,
        ratio_ptr,
        clipped_ptr,
        slope_ptr,
    )


@triton.jit(do_not_specialize=["num_elements", "num_tiles"])
def _gaussian_ppo_backward_kernel(
    output_ptr,
    x_ptr,
    next_ptr,
    ref_ptr,
    a_ptr,
    b_ptr,
    s_ptr,
    pull_ptr,
    kl_pull_ptr,
    d_output_ptr,
    output_stride,
    x_stride,
    next_stride,
    ref_stride,
    num_elements,
    num_tiles,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) // num_tiles
    tile = tl.program_id(0) - n * num_tiles
    element = tile * BLOCK + tl.arange(0, BLOCK)
    mask = element < num_elements
    output = tl.load(output_ptr + n * output_stride + element, mask=mask, other=0.0)
    output = output.to(tl.float64)
    gap = _gap(n, element, mask, output, x_ptr, next_ptr, a_ptr, b_ptr, x_stride, next_stride)
    b = tl.load(b_ptr + n)
    s = tl.load(s_ptr + n)
    gradient = tl.load(pull_ptr + n) * (b / (s * s)) * gap
    if ref_ptr is not None:
        ref = tl.load(ref_ptr + n * ref_stride + element, mask=mask, other=0.0)
        scale = b / s
        gradient += tl.load(kl_pull_ptr + n) * (scale * scale) * (output - ref.to(tl.float64))
    gradient = gradient.to(d_output_ptr.dtype.element_ty)
    tl.store(d_output_ptr + n * num_elements + element, gradient, mask=mask)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """[N, ...] as [N, D] with unit stride along D; a copy where the strides do not allow a view."""
    rows = tensor.flatten(1)
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def _block() -> int:
    return 64 if interpreting() else 1024


def launch_gaussian_ppo(
    output: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    s: torch.Tensor,
    low: float,
    high: float,
    output_ref: torch.Tensor | None,
    outputs: tuple[torch.Tensor, ...],
) -> device_faults.Fault | None:
    """output, x, x_next, output_ref [N, ...], numbers [N] -> the five PPO terms and the slope of
    the surrogate in log_prob, [N]."""
    num_rows = output.shape[0]
    if not num_rows:
        return None
    output, x, x_next = _rows(output), _rows(x), _rows(x_next)
    ref = None if output_ref is None else _rows(output_ref)
    num_elements = output.shape[1]
    num_tiles = triton.cdiv(num_elements, _block())
    # One partial sum per tile, added in a fixed order, where atomic additions would not repeat.
    partial = torch.empty((num_rows, num_tiles, 2), dtype=torch.float64, device=output.device)
    strides = [0 if each is None else each.stride(0) for each in (output, x, x_next, ref)]
    if num_tiles:
        _gaussian_ppo_kernel[(num_rows * num_tiles,)](
            output,
            x,
            x_next,
            ref,
            a,
            b,
            partial,
            *strides,
            num_elements,
            num_tiles,
            BLOCK=_block(),
            num_warps=4,
            **OPTIONS,
        )
    _gaussian_ppo_rows_kernel[(num_rows,)](
        partial,
        old_log_prob,
        advantage,
        b,
        s,
        *outputs,
        device_faults.record(OP, output.device),
        double(low)[0],
        double(high)[0],
        num_elements,
        num_tiles,
        BLOCK=16,
        num_warps=1,
        **OPTIONS,
    )
    return device_faults.outcome(output.device)


def launch_gaussian_ppo_backward(
    output: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    s: torch.Tensor,
    output_ref: torch.Tensor | None,
    pulls: tuple[torch.Tensor, torch.Tensor],
    d_output: torch.Tensor,
) -> None:
    """Inputs of the forward launch, gradients in log_prob and kl [N] -> d_output [N, ...]."""
    if not output.numel():
        return
    output, x, x_next = _rows(output), _rows(x), _rows(x_next)
    ref = None if output_ref is None else _rows(output_ref)
    num_elements = output.shape[1]
    num_tiles = triton.cdiv(num_elements, _block())
    strides = [0 if each is None else each.stride(0) for each in (output, x, x_next, ref)]
    _gaussian_ppo_backward_kernel[(output.shape[0] * num_tiles,)](
        output,
        x,
        x_next,
        ref,
        a,
        b,
        s,
        *pulls,
        d_output,
        *strides,
        num_elements,
        num_tiles,
        BLOCK=_block(),
        num_warps=4,
        **OPTIONS,
    )
