"""Soft values of inner samples on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.kernels.doubles import exp_double, log_double
from fastguide.kernels.triton_config import MAX_REGISTERS
from fastguide.kernels.triton_runtime import OPTIONS, double, double_argument, interpreting

OP = "soft_value"
LOG_MEAN_EXP = tl.constexpr(0)
MEAN = tl.constexpr(1)
CVAR = tl.constexpr(2)
KINDS = {"lme": 0, "mean": 1, "cvar": 2}
MOST_SORTED = 1024
"""Rows up to here are sorted in registers; longer ones by torch before the launch."""
_TILE = 4096


@triton.jit(do_not_specialize=["num_rows", "num_samples", "alpha_bits", "tau_bits"])
def _soft_value_kernel(
    values_ptr,
    out_ptr,
    row_stride,
    sample_stride,
    num_rows,
    num_samples,
    alpha_bits: tl.int64,
    alpha_ptr,
    tau_bits: tl.int64,
    tau_ptr,
    KIND: tl.constexpr,
    SORT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    INFINITY: tl.constexpr = float("inf")
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_row = row < num_rows
    base = values_ptr + row[:, None] * row_stride
    total = tl.zeros([BLOCK_R], tl.float64)
    is_nan = tl.zeros([BLOCK_R], tl.int32)
    top = tl.full([BLOCK_R], -INFINITY, tl.float64)
    count = total + num_samples
    share = double_argument(tau_bits, tau_ptr) * count
    for start in range(0, num_samples, BLOCK_S):
        sample = start + tl.arange(0, BLOCK_S).to(tl.int64)
        mask = m_row[:, None] & (sample < num_samples)[None, :]
        b_values = tl.load(base + sample[None, :] * sample_stride, mask=mask, other=0.0)
        b_values = b_values.to(tl.float64)
        b_nan = b_values != b_values
        is_nan = tl.maximum(is_nan, tl.max(b_nan.to(tl.int32), axis=1))
        if KIND == CVAR:
            b_values = tl.where(mask & (b_nan == 0), b_values, INFINITY)
            if SORT:
                b_values = tl.sort(b_values, dim=1)
            part = share[:, None] - sample[None, :].to(tl.float64)
            part = tl.where(part < 1.0, part, 1.0)
            total += tl.sum(tl.where(part > 0.0, b_values * part, 0.0), axis=1)
        elif KIND == MEAN:
            total += tl.sum(tl.where(mask, b_values, 0.0), axis=1)
        else:
            b_values = tl.where(mask & (b_nan == 0), b_values, -INFINITY)
            top = tl.maximum(top, tl.max(b_values, axis=1))
    if KIND == LOG_MEAN_EXP:
        # A block, not a scalar: the interpreter cannot broadcast a scalar truth value.
        alpha = double_argument(alpha_bits, alpha_ptr) + tl.zeros([BLOCK_R], tl.float64)
        # Infinite maxima and alpha = 0 answer the maximum itself.
        plain = (alpha == 0.0) | (top == INFINITY) | (top == -INFINITY)
        pivot = tl.where(plain, 0.0, top)
        divisor = tl.where(alpha == 0.0, 1.0, alpha)
        for start in range(0, num_samples, BLOCK_S):
            sample = start + tl.arange(0, BLOCK_S).to(tl.int64)
            mask = m_row[:, None] & (sample < num_samples)[None, :]
            b_values = tl.load(base + sample[None, :] * sample_stride, mask=mask, other=-INFINITY)
            weights = exp_double((b_values.to(tl.float64) - pivot[:, None]) / divisor[:, None])
            total += tl.sum(tl.where(mask, weights, 0.0), axis=1)
        # A plain row's sum is arbitrary; the logarithm needs a positive number.
        mean = tl.where(plain, 1.0, total / count)
        result = tl.where(plain, top, top + alpha * log_double(mean))
    elif KIND == CVAR:
        result = total / share
    else:
        result = total / count
    result = tl.where(is_nan != 0, float("nan"), result)
    tl.store(out_ptr + row, result.to(out_ptr.dtype.element_ty), mask=m_row)


def launch_soft_value(
    values: torch.Tensor,
    alpha: float | torch.Tensor,
    kind: str,
    tau: float | torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """values [R, S] -> out [R] of the same dtype; tau for kind "cvar" only."""
    num_rows, num_samples = values.shape
    if not num_rows:
        return
    sort = kind == "cvar" and num_samples <= MOST_SORTED
    if kind == "cvar" and not sort:
        values = values.sort(dim=1).values
    most = MOST_SORTED if kind == "cvar" else 256
    block_s = min(triton.next_power_of_2(num_samples), most)
    tile = 64 if interpreting() else 1024
    block_r = max(1, tile // block_s)
    _soft_value_kernel[(triton.cdiv(num_rows, block_r),)](
        values,
        out,
        *values.stride(),
        num_rows,
        num_samples,
        *double(alpha),
        *double(0.0 if tau is None else tau),
        KIND=KINDS[kind],
        SORT=sort,
        BLOCK_R=block_r,
        BLOCK_S=block_s,
        num_warps=4,
        maxnreg=MAX_REGISTERS,
        **OPTIONS,
    )
