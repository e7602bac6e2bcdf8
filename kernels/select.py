"""One candidate per row from its log-weights, on a GPU.

Sums over the candidates are parallel. The index is that of sequential sums nevertheless: where the
target comes so close to a step of the CDF that the order of addition could matter, the row is
summed again in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from fastguide.kernels import device_faults
from fastguide.kernels.doubles import exp_double, log_double
from fastguide.kernels.gather_rows import launch_gather_rows
from fastguide.kernels.philox import uniform_at, word
from fastguide.kernels.triton_config import MAX_REGISTERS
from fastguide.kernels.triton_runtime import (
    CANDIDATE_FAULT,
    CHAIN_FAULT,
    OPTIONS,
    VALUE_FAULT,
    double,
    double_argument,
    integer,
    integer_argument,
    interpreting,
    is_counter,
    note_first_row,
    tie_margin,
)

OP = "select"


@triton.jit
def log_weights(values_ptr, ratio_ptr, o_value, o_ratio, mask, alpha):
    """values / alpha + ratio as float64 [R, B]; alpha [R, 1], 0: values alone; masked: -inf."""
    INFINITY: tl.constexpr = float("inf")
    log_w = tl.load(values_ptr + o_value, mask=mask, other=-INFINITY).to(tl.float64)
    log_w = tl.where(alpha == 0.0, log_w, log_w / tl.where(alpha == 0.0, 1.0, alpha))
    if ratio_ptr is not None:
        log_w += tl.load(ratio_ptr + o_ratio, mask=mask, other=0.0).to(tl.float64)
    return log_w


@triton.jit
def weights_of(log_w, pivot):
    """exp(log_w - pivot), float64; 0 for a log-weight that is not below +inf."""
    INFINITY: tl.constexpr = float("inf")
    return exp_double(tl.where(log_w < INFINITY, log_w, -INFINITY) - pivot)


@triton.jit(do_not_specialize=["seed", "counter", "num_rows", "num_candidates", "alpha_bits"])
def _select_kernel(
    values_ptr,
    ratio_ptr,
    chains_ptr,
    particles_ptr,
    index_ptr,
    lme_ptr,
    ess_ptr,
    fault_ptr,
    row_stride,
    candidate_stride,
    ratio_row_stride,
    ratio_stride,
    num_rows,
    num_candidates,
    alpha_bits: tl.int64,
    alpha_ptr,
    seed: tl.int64,
    seed_ptr,
    counter: tl.int64,
    counter_ptr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    INFINITY: tl.constexpr = float("inf")
    seed = integer_argument(seed, seed_ptr)
    counter = integer_argument(counter, counter_ptr)
    step = counter >> 8
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = n < num_rows
    chain = tl.load(chains_ptr + n, mask=m_n, other=0)
    note_first_row(fault_ptr, is_counter(chain) == 0, n, 0, chain, step, CHAIN_FAULT)
    particle = tl.zeros([BLOCK_N], tl.int64)
    if particles_ptr is not None:
        particle = tl.load(particles_ptr + n, mask=m_n, other=0)
        note_first_row(fault_ptr, is_counter(particle) == 0, n, 0, particle, step, CANDIDATE_FAULT)
    u = uniform_at(word(n * 0), word(particle), word(chain), word(counter), seed)

    # A block, not a scalar: the interpreter cannot broadcast a scalar truth value.
    alpha = double_argument(alpha_bits, alpha_ptr) + tl.zeros([BLOCK_N], tl.float64)
    greedy = alpha == 0.0
    o_n = (n * row_stride)[:, None]
    o_ratio_n = (n * ratio_row_stride)[:, None]
    top = tl.full([BLOCK_N], -INFINITY, tl.float64)
    best = tl.zeros([BLOCK_N], tl.int64)
    for start in range(0, num_candidates, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)[None, :]
        mask = m_n[:, None] & (k < num_candidates)
        log_w = log_weights(
            values_ptr,
            ratio_ptr,
            o_n + k * candidate_stride,
            o_ratio_n + k * ratio_stride,
            mask,
            alpha[:, None],
        )
        bad = (log_w < INFINITY) == 0
        first_bad = tl.min(tl.where(bad, k, num_candidates), axis=1)
        note_first_row(
            fault_ptr, first_bad < num_candidates, n, first_bad + 1, n * 0, step, VALUE_FAULT
        )
        log_w = tl.where(bad, -INFINITY, log_w)
        b_top = tl.max(log_w, axis=1)
        first = tl.min(tl.where(log_w == b_top[:, None], k, num_candidates), axis=1)
        best = tl.where(b_top > top, first, best)
        top = tl.maximum(top, b_top)
    dead = top == -INFINITY
    pivot = tl.where(dead, 0.0, top)

    total = tl.zeros([BLOCK_N], tl.float64)
    squares = tl.zeros([BLOCK_N], tl.float64)
    for start in range(0, num_candidates, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)[None, :]
        mask = m_n[:, None] & (k < num_candidates)
        log_w = log_weights(
            values_ptr,
            ratio_ptr,
            o_n + k * candidate_stride,
            o_ratio_n + k * ratio_stride,
            mask,
            alpha[:, None],
        )
        weights = weights_of(log_w, pivot[:, None])
        total += tl.sum(weights, axis=1)
        squares += tl.sum(weights * weights, axis=1)

    target = u * total
    margin = total * tie_margin(num_candidates)
    index = tl.zeros([BLOCK_N], tl.int64)
    near = tl.zeros([BLOCK_N], tl.int32)
    before = tl.zeros([BLOCK_N], tl.float64)
    for start in range(0, num_candidates, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)[None, :]
        valid = k < num_candidates
        log_w = log_weights(
            values_ptr,
            ratio_ptr,
            o_n + k * candidate_stride,
            o_ratio_n + k * ratio_stride,
            m_n[:, None] & valid,
            alpha[:, None],
        )
        weights = weights_of(log_w, pivot[:, None])
        gap = before[:, None] + tl.cumsum(weights, axis=1) - target[:, None]
        index += tl.sum((valid & (gap <= 0.0)).to(tl.int64), axis=1)
        close = valid & (tl.abs(gap) <= margin[:, None])
        near = tl.maximum(near, tl.max(close.to(tl.int32), axis=1))
        before += tl.sum(weights, axis=1)

    near = tl.where(m_n & (dead == 0) & (greedy == 0), near, 0)
    if tl.max(near, axis=0) > 0:
        sequential = tl.zeros([BLOCK_N], tl.float64)
        last = tl.zeros([BLOCK_N], tl.int64)
        o_value, o_ratio = n * row_stride, n * ratio_row_stride
        for k in range(num_candidates):
            log_w = log_weights(values_ptr, ratio_ptr, o_value, o_ratio, m_n, alpha)
            weight = weights_of(log_w, pivot)
            sequential += weight
            last = tl.where(weight > 0.0, k, last)
            o_value += candidate_stride
            o_ratio += ratio_stride
        target = u * sequential
        sequential = tl.zeros([BLOCK_N], tl.float64)
        index = tl.zeros([BLOCK_N], tl.int64)
        o_value, o_ratio = n * row_stride, n * ratio_row_stride
        for _ in range(num_candidates):
            log_w = log_weights(values_ptr, ratio_ptr, o_value, o_ratio, m_n, alpha)
            sequential += weights_of(log_w, pivot)
            index += (sequential <= target).to(tl.int64)
            o_value += candidate_stride
            o_ratio += ratio_stride
        index = tl.minimum(index, last)

    uniform = (u * num_candidates).to(tl.int64)
    index = tl.where(greedy, best, index)
    index = tl.where(dead, tl.minimum(uniform, num_candidates - 1), index)
    mean = tl.where(dead, 1.0, total / num_candidates)
    lme = tl.where(greedy | dead, top, top + log_double(mean))
    ess = tl.where(dead, 0.0, total * total / tl.where(dead, 1.0, squares))
    ess = tl.where(greedy & (dead == 0), 1.0, ess)
    tl.store(index_ptr + n, index, mask=m_n)
    tl.store(lme_ptr + n, lme, mask=m_n)
    tl.store(ess_ptr + n, ess, mask=m_n)


def launch_select(
    values: torch.Tensor,
    alpha: float | torch.Tensor,
    log_ratio: torch.Tensor | None,
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    counter: int | torch.Tensor,
    particles: torch.Tensor | None,
    gather: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    index: torch.Tensor,
    lme: torch.Tensor,
    ess: torch.Tensor,
    gathered: Sequence[torch.Tensor],
) -> device_faults.Fault | None:
    """values [N, K], items [N, K, ...] or ([U, ...], [N, K]) -> index, lme, ess [N], gathered."""
    num_rows, num_candidates = values.shape
    if not num_rows:
        return None
    block_k = min(triton.next_power_of_2(num_candidates), 16 if interpreting() else 256)
    block_n = max(1, (64 if interpreting() else 256) // block_k)
    fault = device_faults.record(OP, values.device)
    _select_kernel[(triton.cdiv(num_rows, block_n),)](
        values,
        log_ratio,
        chains,
        particles,
        index,
        lme,
        ess,
        fault,
        *values.stride(),
        *((0, 0) if log_ratio is None else log_ratio.stride()),
        num_rows,
        num_candidates,
        *double(alpha),
        *integer(seed),
        *integer(counter),
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=4,
        maxnreg=MAX_REGISTERS,
        **OPTIONS,
    )
    launch_gather_rows(gather, index, num_candidates, gathered, fault)
    return device_faults.outcome(values.device)
