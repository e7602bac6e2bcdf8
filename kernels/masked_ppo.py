"""PPO terms of a masked step on a GPU, and their gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.kernels import device_faults
from fastguide.kernels.doubles import exp_double
from fastguide.kernels.ppo_terms import write_terms
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
from fastguide.kernels.triton_runtime import (
    OPTIONS,
    TOKEN_FAULT,
    double,
    double_argument,
    interpreting,
    note_first_fault,
)

OP = "masked_ppo"
MOST_LOGITS = 512
"""In a tile of policy and reference each; twice as many would spill."""
_INFINITY = tl.constexpr(float("inf"))


@triton.jit(do_not_specialize=["length", "vocab_size", "mask_token"])
def _masked_ppo_kernel(
    logits_ptr,
    ref_ptr,
    x_ptr,
    next_ptr,
    sites_ptr,
    log_prob_ptr,
    fault_ptr,
    row_stride,
    site_stride,
    token_stride,
    ref_row_stride,
    ref_site_stride,
    ref_token_stride,
    length,
    vocab_size,
    mask_token: tl.int64,
    temperature_bits: tl.int64,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """sites_ptr [N, L, 3]: log normaliser, that of the reference, KL; log_prob_ptr [N, L]: of the
    token that the site takes. All float64, 0 elsewhere."""
    blocks = tl.cdiv(length, BLOCK_S)
    n = tl.program_id(0).to(tl.int64) // blocks
    site = (tl.program_id(0) - n * blocks) * BLOCK_S + tl.arange(0, BLOCK_S).to(tl.int64)
    there = site < length
    at = n * length + site
    x = load_site(x_ptr, at, there)
    masked = there & (x == mask_token)
    token = load_site(next_ptr, at, masked)
    stays = masked & (token == mask_token)
    looked_at = tl.where(masked, token, x)
    bad = there & (stays == 0) & (is_token(looked_at, vocab_size) == 0)
    note_first_fault(fault_ptr, bad, n, site, looked_at, n * 0, TOKEN_FAULT)
    masked = masked & (bad == 0)
    temperature = double_argument(temperature_bits, None)
    inverse = 1.0 / temperature
    base = logits_ptr + n * row_stride + site * site_stride
    top = wide(tl.full([BLOCK_S], -_INFINITY, logits_ptr.dtype.element_ty))
    total = tl.zeros([BLOCK_S], tl.float64)
    top_ref = top
    total_ref = total
    moment = total
    for start in range(0, vocab_size, BLOCK_V):
        z = load_logits(base, token_stride, start, vocab_size, masked, inverse, BLOCK_V)
        new = tl.maximum(top, tl.max(z, axis=1))
        e = exp_of(z - finite_pivot(new)[:, None])
        scale = rescaled(top, new)
        total = total * scale + tl.sum(e, axis=1).to(tl.float64)
        top = new
        if ref_ptr is not None:
            ref = ref_ptr + n * ref_row_stride + site * ref_site_stride
            z_ref = load_logits(ref, ref_token_stride, start, vocab_size, masked, inverse, BLOCK_V)
            new = tl.maximum(top_ref, tl.max(z_ref, axis=1))
            e_ref = exp_of(z_ref - finite_pivot(new)[:, None])
            part = tl.sum(e_ref, axis=1).to(tl.float64)
            total_ref = total_ref * rescaled(top_ref, new) + part
            top_ref = new
            # A token of no weight adds nothing, whatever its logits.
            gap = tl.where(e > 0.0, z - z_ref, 0.0)
            moment = moment * scale + tl.sum(e * gap, axis=1).to(tl.float64)
    normaliser = log_normaliser(top, total)
    chosen = tl.load(base + token * token_stride, mask=masked & (stays == 0), other=0.0)
    log_prob = chosen.to(tl.float64) / temperature - normaliser
    tl.store(log_prob_ptr + at, tl.where(masked & (stays == 0), log_prob, 0.0), mask=there)
    tl.store(sites_ptr + at * 3, tl.where(masked, normaliser, 0.0), mask=there)
    normaliser_ref = tl.zeros([BLOCK_S], tl.float64)
    kl = normaliser_ref
    if ref_ptr is not None:
        normaliser_ref = log_normaliser(top_ref, total_ref)
        kl = moment / total - (normaliser - normaliser_ref)
    tl.store(sites_ptr + at * 3 + 1, tl.where(masked, normaliser_ref, 0.0), mask=there)
    tl.store(sites_ptr + at * 3 + 2, tl.where(masked, kl, 0.0), mask=there)


@triton.jit(do_not_specialize=["length"])
def _masked_ppo_rows_kernel(
    sites_ptr,
    log_probs_ptr,
    old_ptr,
    advantage_ptr,
    rho_ptr,
    surrogate_ptr,
    kl_ptr,
    log_prob_ptr,
    ratio_ptr,
    clipped_ptr,
    slope_ptr,
    low_bits: tl.int64,
    high_bits: tl.int64,
    length,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    row = n + tl.arange(0, 1)
    log_prob = tl.zeros([BLOCK], tl.float64)
    kl = tl.zeros([BLOCK], tl.float64)
    for start in range(0, length, BLOCK):
        site = start + tl.arange(0, BLOCK)
        at = n * length + site
        log_prob += tl.load(log_probs_ptr + at, mask=site < length, other=0.0)
        kl += tl.load(sites_ptr + at * 3 + 2, mask=site < length, other=0.0)
    zero = tl.zeros([1], tl.float64)
    write_terms(
        row,
        zero + tl.sum(log_prob, axis=0),
        tl.load(rho_ptr + row) * tl.sum(kl, axis=0),
        old_ptr,
        advantage_ptr,
        double_argument(low_bits, None),
        double_argument(high_bits, None),
        surrogate_ptr,
        kl_ptr,
        log_prob_ptr,
        ratio_ptr,
        clipped_ptr,
        slope_ptr,
    )


@triton.jit(do_not_specialize=["length", "vocab_size", "mask_token"])
def _masked_ppo_backward_kernel(
    logits_ptr,
    ref_ptr,
    x_ptr,
    next_ptr,
    sites_ptr,
    rho_ptr,
    pull_ptr,
    kl_pull_ptr,
    d_logits_ptr,
    row_stride,
    site_stride,
    token_stride,
    ref_row_stride,
    ref_site_stride,
    ref_token_stride,
    length,
    vocab_size,
    mask_token: tl.int64,
    temperature_bits: tl.int64,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    blocks = tl.cdiv(length, BLOCK_S)
    n = tl.program_id(0).to(tl.int64) // blocks
    site = (tl.program_id(0) - n * blocks) * BLOCK_S + tl.arange(0, BLOCK_S).to(tl.int64)
    there = site < length
    at = n * length + site
    masked = there & (load_site(x_ptr, at, there) == mask_token)
    token = load_site(next_ptr, at, masked)
    revealed = masked & (token != mask_token)
    inverse = 1.0 / double_argument(temperature_bits, None)
    normaliser = tl.load(sites_ptr + at * 3, mask=there, other=0.0)
    own = tl.where(revealed, tl.load(pull_ptr + n) * inverse, 0.0)
    base = logits_ptr + n * row_stride + site * site_stride
    for start in range(0, vocab_size, BLOCK_V):
        z = load_logits(base, token_stride, start, vocab_size, masked, inverse, BLOCK_V)
        shift = normaliser.to(z.dtype)
        rest = exp_double(shift.to(tl.float64) - normaliser)
        p = exp_of(z - shift[:, None]) * rest.to(z.dtype)[:, None]
        v = start + tl.arange(0, BLOCK_V).to(tl.int64)
        here = (v[None, :] == token[:, None]).to(z.dtype)
        pull = own.to(z.dtype)[:, None] * (here - p)
        if ref_ptr is not None:
            ref = ref_ptr + n * ref_row_stride + site * ref_site_stride
            z_ref = load_logits(ref, ref_token_stride, start, vocab_size, masked, inverse, BLOCK_V)
            normaliser_ref = tl.load(sites_ptr + at * 3 + 1, mask=there, other=0.0)
            kl = tl.load(sites_ptr + at * 3 + 2, mask=there, other=0.0)
            rate = tl.load(kl_pull_ptr + n) * tl.load(rho_ptr + n) * inverse
            level = (normaliser - normaliser_ref + kl).to(z.dtype)
            gap = tl.where(p > 0.0, z - z_ref - level[:, None], 0.0)
            pull += rate.to(z.dtype) * p * gap
        pull = tl.where(masked[:, None], pull, 0.0)
        mask = there[:, None] & (v < vocab_size)[None, :]
        out = d_logits_ptr + at[:, None] * vocab_size + v[None, :]
        tl.store(out, pull.to(d_logits_ptr.dtype.element_ty), mask=mask)


def _strides(logits: torch.Tensor, ref: torch.Tensor | None) -> tuple[int, ...]:
    return (*logits.stride(), *((0, 0, 0) if ref is None else ref.stride()))


def launch_masked_ppo(
    logits: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    mask_token: int,
    rho: torch.Tensor,
    low: float,
    high: float,
    logits_ref: torch.Tensor | None,
    temperature: float,
    *outputs: torch.Tensor,
) -> device_faults.Fault | None:
    """logits, logits_ref [N, L, V], x, x_next [N, L], numbers [N] -> the PPO terms and the slope
    [N], and sites [N, L, 3] float64."""
    *terms, sites = outputs
    num_rows, length, vocab_size = logits.shape
    if not num_rows:
        return None
    log_probs = torch.empty((num_rows, length), dtype=torch.float64, device=logits.device)
    fault = device_faults.record(OP, logits.device)
    block_s, block_v = tile_of_sites(length, vocab_size, MOST_LOGITS)
    if length:
        _masked_ppo_kernel[(num_rows * triton.cdiv(length, block_s),)](
            logits,
            logits_ref,
            x,
            x_next,
            sites,
            log_probs,
            fault,
            *_strides(logits, logits_ref),
            length,
            vocab_size,
            mask_token,
            double(temperature)[0],
            BLOCK_S=block_s,
            BLOCK_V=block_v,
            num_warps=4,
            maxnreg=MAX_REGISTERS,
            **OPTIONS,
        )
    _masked_ppo_rows_kernel[(num_rows,)](
        sites,
        log_probs,
        old_log_prob,
        advantage,
        rho,
        *terms,
        double(low)[0],
        double(high)[0],
        length,
        BLOCK=16 if interpreting() else 256,
        num_warps=1,
        **OPTIONS,
    )
    return device_faults.outcome(logits.device)


def launch_masked_ppo_backward(
    logits: torch.Tensor,
    x: torch.Tensor,
    x_next: torch.Tensor,
    mask_token: int,
    rho: torch.Tensor,
    logits_ref: torch.Tensor | None,
    temperature: float,
    sites: torch.Tensor,
    d_log_prob: torch.Tensor,
    d_kl: torch.Tensor,
    d_logits: torch.Tensor,
) -> None:
    """Inputs and sites of the forward launch, d_log_prob, d_kl [N] -> d_logits [N, L, V]."""
    num_rows, length, vocab_size = logits.shape
    if not logits.numel():
        return
    block_s, block_v = tile_of_sites(length, vocab_size, MOST_LOGITS)
    _masked_ppo_backward_kernel[(num_rows * triton.cdiv(length, block_s),)](
        logits,
        logits_ref,
        x,
        x_next,
        sites,
        rho,
        d_log_prob,
        d_kl,
        d_logits,
        *_strides(logits, logits_ref),
        length,
        vocab_size,
        mask_token,
        double(temperature)[0],
        BLOCK_S=block_s,
        BLOCK_V=block_v,
        num_warps=4,
        maxnreg=MAX_REGISTERS,
        **OPTIONS,
    )
