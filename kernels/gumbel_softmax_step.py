"""A relaxed masked step with keyed Gumbel noise on a GPU, and its gradient.

A program holds every column of its sites, in float64; hence the limit on the vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.errors import ArgumentError
from fastguide.kernels import device_faults
from fastguide.kernels.doubles import exp_double, log_double, radius_squared
from fastguide.kernels.philox import philox, word
from fastguide.kernels.triton_config import MAX_REGISTERS
from fastguide.kernels.triton_runtime import (
    CHAIN_FAULT,
    OPTIONS,
    double,
    double_argument,
    integer,
    integer_argument,
    interpreting,
    is_counter,
    note_fault,
)

OP = "gumbel_softmax_step"
MOST_COLUMNS = 2048
"""V + 1 may not exceed it: a row of the simplex lies in the registers of one program."""
_INFINITY = tl.constexpr(float("inf"))


def _tile(length: int, vocab_size: int) -> tuple[int, int, int]:
    """(sites, columns, warps) of a program.

    Raises:
        ArgumentError: too many columns.
    """
    columns = triton.next_power_of_2(vocab_size + 1)
    if columns > MOST_COLUMNS:
        raise ArgumentError(
            f"{OP}: on a GPU logits may hold at most {MOST_COLUMNS - 1} tokens, got {vocab_size}; "
            "use the CPU, or fastguide.ops.use_backend('reference')"
        )
    most = 64 if interpreting() else 256
    sites = min(triton.next_power_of_2(max(length, 1)), max(most // columns, 1))
    return sites, columns, min(max(sites * columns // 64, 4), 16)


def _most_registers(warps: int) -> int:
    """Per thread: as many as the registers of a multiprocessor leave to the program."""
    return min(MAX_REGISTERS, 65536 // (32 * warps))


@triton.jit
def _log_softmax(ptr, base, token_stride, mask, inverse):
    """log softmax over the columns [BLOCK_S, BLOCK_C] of logits in float64; -inf off the mask."""
    column = tl.arange(0, mask.shape[1]).to(tl.int64)
    z = tl.load(ptr + base[:, None] + column[None, :] * token_stride, mask=mask, other=-_INFINITY)
    z = z.to(tl.float64) * inverse
    top = tl.max(z, axis=1)
    pivot = tl.where(top == -_INFINITY, 0.0, top)
    total = tl.sum(exp_double(z - pivot[:, None]), axis=1)
    fine = (total > 0.0) & (total < _INFINITY)
    shift = tl.where(fine, pivot + log_double(tl.where(fine, total, 1.0)), float("nan"))
    return z - shift[:, None]


@triton.jit
def _log_or_infinity(x):
    """log of [B] numbers >= 0."""
    return tl.where(x > 0.0, log_double(tl.where(x > 0.0, x, 1.0)), -_INFINITY)


@triton.jit
def _draw(log_p, rho, tau, site, chain, counter, seed, vocab_size, m_row):
    """y [BLOCK_S, BLOCK_C]: the Gumbel-softmax of the columns; m_row: sites that there are."""
    column = tl.arange(0, log_p.shape[1]).to(tl.int64)
    columns = vocab_size + 1
    element = site[:, None] * columns + column[None, :]
    w = philox(word(element >> 2), word(element * 0), word(chain), word(counter), seed)
    lane = element & 3
    low = tl.where(lane == 0, w[0], w[1])
    high = tl.where(lane == 2, w[2], w[3])
    noise = log_double(0.5 * radius_squared(tl.where(lane < 2, low, high)))
    rates = rho + tl.zeros(log_p.shape, tl.float64)
    mask_column = (column == vocab_size)[None, :]
    log_q = tl.where(mask_column, _log_or_infinity(1.0 - rates), _log_or_infinity(rates) + log_p)
    inside = m_row[:, None] & (column < columns)[None, :]
    a = tl.where(inside, (log_q - noise) / tau, -_INFINITY)
    top = tl.max(a, axis=1)
    pivot = tl.where(top == -_INFINITY, 0.0, top)
    e = exp_double(a - pivot[:, None])
    total = tl.sum(e, axis=1)
    return e / tl.where(m_row, total, 1.0)[:, None]


@triton.jit(do_not_specialize=["seed", "counter", "length", "vocab_size"])
def _gumbel_softmax_step_kernel(
    logits_ptr,
    ref_ptr,
    x_ptr,
    rho_ptr,
    chains_ptr,
    next_ptr,
    kl_ptr,
    fault_ptr,
    row_stride,
    site_stride,
    token_stride,
    ref_row_stride,
    ref_site_stride,
    ref_token_stride,
    length,
    vocab_size,
    seed: tl.int64,
    counter: tl.int64,
    tau_bits: tl.int64,
    temperature_bits: tl.int64,
    HARD: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """kl_ptr: [N, L] float64, of each site."""
    blocks = tl.cdiv(length, BLOCK_S)
    n = tl.program_id(0).to(tl.int64) // blocks
    site = (tl.program_id(0) - n * blocks) * BLOCK_S + tl.arange(0, BLOCK_S).to(tl.int64)
    there = site < length
    column = tl.arange(0, BLOCK_C).to(tl.int64)
    seed = integer_argument(seed, None)
    counter = integer_argument(counter, None)
    chain = tl.load(chains_ptr + n)
    if is_counter(chain) == 0:
        note_fault(fault_ptr, n, 0, chain, counter >> 8, CHAIN_FAULT)
    inverse = 1.0 / double_argument(temperature_bits, None)
    tau = double_argument(tau_bits, None)
    rho = tl.load(rho_ptr + n)
    o_x = (n * length + site) * (vocab_size + 1)
    share = tl.load(x_ptr + o_x + vocab_size, mask=there, other=0.0).to(tl.float64)
    masked = there & (share != 0.0)
    m_logits = masked[:, None] & (column < vocab_size)[None, :]
    base = n * row_stride + site * site_stride
    log_p = _log_softmax(logits_ptr, base, token_stride, m_logits, inverse)
    y = _draw(log_p, rho, tau, site, chain, counter, seed, vocab_size, masked)
    m_x = there[:, None] & (column <= vocab_size)[None, :]
    x = tl.load(x_ptr + o_x[:, None] + column[None, :], mask=m_x, other=0.0)
    keep = (1.0 - share)[:, None]
    blend = keep * x.to(tl.float64) + tl.where(masked[:, None], share[:, None] * y, 0.0)
    blend = blend.to(x.dtype)
    if HARD:
        ranked = tl.where(m_x, blend, -_INFINITY)
        best = tl.max(ranked, axis=1)
        first = tl.min(tl.where(ranked == best[:, None], column[None, :], BLOCK_C), axis=1)
        blend = (column[None, :] == first[:, None]).to(x.dtype)
    tl.store(next_ptr + o_x[:, None] + column[None, :], blend, mask=m_x)
    if ref_ptr is not None:
        base = n * ref_row_stride + site * ref_site_stride
        log_ref = _log_softmax(ref_ptr, base, ref_token_stride, m_logits, inverse)
        gap = tl.where(m_logits & (log_p != -_INFINITY), log_p - log_ref, 0.0)
        p = tl.where(m_logits, exp_double(log_p), 0.0)
        kl = rho * share * tl.sum(p * gap, axis=1)
        tl.store(kl_ptr + n * length + site, tl.where(masked, kl, 0.0), mask=there)


@triton.jit(do_not_specialize=["seed", "counter", "length", "vocab_size"])
def _gumbel_softmax_step_backward_kernel(
    logits_ptr,
    ref_ptr,
    x_ptr,
    rho_ptr,
    chains_ptr,
    d_next_ptr,
    d_kl_ptr,
    d_logits_ptr,
    d_x_ptr,
    d_ref_ptr,
    row_stride,
    site_stride,
    token_stride,
    ref_row_stride,
    ref_site_stride,
    ref_token_stride,
    length,
    vocab_size,
    seed: tl.int64,
    counter: tl.int64,
    tau_bits: tl.int64,
    temperature_bits: tl.int64,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    blocks = tl.cdiv(length, BLOCK_S)
    n = tl.program_id(0).to(tl.int64) // blocks
    site = (tl.program_id(0) - n * blocks) * BLOCK_S + tl.arange(0, BLOCK_S).to(tl.int64)
    there = site < length
    column = tl.arange(0, BLOCK_C).to(tl.int64)
    seed = integer_argument(seed, None)
    counter = integer_argument(counter, None)
    chain = tl.load(chains_ptr + n)
    inverse = 1.0 / double_argument(temperature_bits, None)
    tau = double_argument(tau_bits, None)
    rho = tl.load(rho_ptr + n)
    o_x = (n * length + site) * (vocab_size + 1)
    share = tl.load(x_ptr + o_x + vocab_size, mask=there, other=0.0).to(tl.float64)
    m_logits = there[:, None] & (column < vocab_size)[None, :]
    base = n * row_stride + site * site_stride
    log_p = _log_softmax(logits_ptr, base, token_stride, m_logits, inverse)
    y = _draw(log_p, rho, tau, site, chain, counter, seed, vocab_size, there)
    m_x = there[:, None] & (column <= vocab_size)[None, :]
    at_x = o_x[:, None] + column[None, :]
    x = tl.load(x_ptr + at_x, mask=m_x, other=0.0).to(tl.float64)
    pull = tl.load(d_next_ptr + at_x, mask=m_x, other=0.0).to(tl.float64)
    along = tl.sum(tl.where(m_x, pull * y, 0.0), axis=1)
    d_log_q = (share / tau)[:, None] * y * (pull - along[:, None])
    d_log_q = tl.where(m_logits, d_log_q, 0.0)
    p = tl.where(m_logits, exp_double(log_p), 0.0)
    d_logits = d_log_q - p * tl.sum(d_log_q, axis=1)[:, None]
    d_share = along - tl.sum(pull * x, axis=1)
    at = (n * length + site)[:, None] * vocab_size + column[None, :]
    if ref_ptr is not None:
        base = n * ref_row_stride + site * ref_site_stride
        log_ref = _log_softmax(ref_ptr, base, ref_token_stride, m_logits, inverse)
        gap = tl.where(m_logits & (p > 0.0), log_p - log_ref, 0.0)
        kl = tl.sum(p * gap, axis=1)
        rate = tl.load(d_kl_ptr + n) * rho
        back = (rate * share)[:, None]
        d_logits += back * p * (gap - kl[:, None])
        d_share += rate * kl
        d_ref = back * (tl.where(m_logits, exp_double(log_ref), 0.0) - p) * inverse
        tl.store(d_ref_ptr + at, d_ref.to(d_ref_ptr.dtype.element_ty), mask=m_logits)
    d_logits = (d_logits * inverse).to(d_logits_ptr.dtype.element_ty)
    tl.store(d_logits_ptr + at, d_logits, mask=m_logits)
    d_x = (1.0 - share)[:, None] * pull
    d_x += tl.where((column == vocab_size)[None, :], d_share[:, None], 0.0)
    tl.store(d_x_ptr + at_x, d_x.to(d_x_ptr.dtype.element_ty), mask=m_x)


def _strides(logits: torch.Tensor, ref: torch.Tensor | None) -> tuple[int, ...]:
    return (*logits.stride(), *((0, 0, 0) if ref is None else ref.stride()))


def launch_gumbel_softmax_step(
    logits: torch.Tensor,
    x: torch.Tensor,
    rho: torch.Tensor,
    tau: float,
    seed: int,
    chains: torch.Tensor,
    counter: int,
    logits_ref: torch.Tensor | None,
    temperature: float,
    straight_through: bool,
    x_next: torch.Tensor,
    kl: torch.Tensor,
) -> device_faults.Fault | None:
    """logits, logits_ref [N, L, V], x [N, L, V + 1], rho, chains [N] -> x_next as x, kl [N]."""
    num_rows, length, vocab_size = logits.shape
    each = torch.zeros((num_rows, length), dtype=torch.float64, device=logits.device)
    if each.numel():
        block_s, block_c, warps = _tile(length, vocab_size)
        _gumbel_softmax_step_kernel[(num_rows * triton.cdiv(length, block_s),)](
            logits,
            logits_ref,
            x.contiguous(),
            rho,
            chains,
            x_next,
            each,
            device_faults.record(OP, logits.device),
            *_strides(logits, logits_ref),
            length,
            vocab_size,
            integer(seed)[0],
            counter,
            double(tau)[0],
            double(temperature)[0],
            HARD=straight_through,
            BLOCK_S=block_s,
            BLOCK_C=block_c,
            num_warps=warps,
            maxnreg=_most_registers(warps),
            **OPTIONS,
        )
    torch.sum(each, 1, out=kl)
    return device_faults.outcome(logits.device) if each.numel() else None


def launch_gumbel_softmax_step_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    rho: torch.Tensor,
    tau: float,
    seed: int,
    chains: torch.Tensor,
    counter: int,
    logits_ref: torch.Tensor | None,
    temperature: float,
    d_next: torch.Tensor,
    d_kl: torch.Tensor,
    d_logits: torch.Tensor,
    d_x: torch.Tensor,
    d_ref: torch.Tensor,
) -> None:
    """Inputs of the forward launch, d_next as x, d_kl [N] -> d_logits, d_x, d_ref (if any)."""
    num_rows, length, vocab_size = logits.shape
    if not logits.numel():
        return
    block_s, block_c, warps = _tile(length, vocab_size)
    _gumbel_softmax_step_backward_kernel[(num_rows * triton.cdiv(length, block_s),)](
        logits,
        logits_ref,
        x.contiguous(),
        rho,
        chains,
        d_next,
        d_kl,
        d_logits,
        d_x,
        None if logits_ref is None else d_ref,
        *_strides(logits, logits_ref),
        length,
        vocab_size,
        integer(seed)[0],
        counter,
        double(tau)[0],
        double(temperature)[0],
        BLOCK_S=block_s,
        BLOCK_C=block_c,
        num_warps=warps,
        maxnreg=_most_registers(warps),
        **OPTIONS,
    )
