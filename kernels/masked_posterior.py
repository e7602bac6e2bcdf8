"""Clean predictions of masked states on a GPU.

Up to SMALL tokens, one launch does everything, a thread per site. Above, a first launch makes the
copies and lists the masked sites; a second one, of a fixed grid, works through that list.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.kernels import device_faults
from fastguide.kernels.categorical import (
    fast_weight,
    first_maximum,
    logits_of_sites,
    mode_of_sites,
    pick_by_blocks,
    pick_of_sites,
    summarise,
)
from fastguide.kernels.masked_sites import (
    logits_row,
    note_tokens,
    site_address,
    site_rows,
    sites_address,
)
from fastguide.kernels.philox import uniform_at, word
from fastguide.kernels.triton_config import (
    LARGE_BLOCK_V,
    LARGE_WARPS,
    MAX_REGISTERS,
    SMALL,
    draw_programs,
    large_tiles,
    site_block,
)
from fastguide.kernels.triton_runtime import (
    OPTIONS,
    double,
    double_argument,
    integer,
    integer_argument,
    is_tempered,
)

OP = "masked_posterior"


@triton.jit
def state_words(keys_ptr, row, purpose):
    """Counter words c2, c3 of a state: 56 bits of its key in place of chain and step."""
    key = tl.load(keys_ptr + 2 * row)
    return word(key), word((((key >> 32) & 0xFFFFFF) << 8) | purpose)


@triton.jit(
    do_not_specialize=[
        "length",
        "num_samples",
        "num_tiles",
        "num_logit_rows",
        "mask_token",
        "seed",
        "purpose",
        "vocab_size",
        "temperature_bits",
    ]
)
def _masked_posterior_small_kernel(
    logits_ptr,
    index_ptr,
    x_ptr,
    keys_ptr,
    out_ptr,
    fault_ptr,
    logit_row_stride,
    logit_site_stride,
    logit_token_stride,
    x_row_stride,
    x_site_stride,
    num_logit_rows,
    length,
    vocab_size,
    num_samples,
    num_tiles,
    mask_token: tl.int64,
    seed: tl.int64,
    seed_ptr,
    purpose: tl.int64,
    temperature_bits: tl.int64,
    temperature_ptr,
    V: tl.constexpr,
    TEMPERED: tl.constexpr,
    MODE: tl.constexpr,
    PER_SITE: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) // num_tiles
    tile = tl.program_id(0) - row * num_tiles
    seed = integer_argument(seed, seed_ptr)
    step = row * 0
    u_row = logits_row(index_ptr, row, num_logit_rows, step, fault_ptr, PER_SITE)
    site = tile * BLOCK_L + tl.arange(0, BLOCK_L).to(tl.int64)
    valid = site < length
    x = tl.load(x_ptr + row * x_row_stride + site * x_site_stride, mask=valid, other=0)
    masked = valid & (x == mask_token)
    note_tokens(x, valid & (masked == 0), vocab_size, row, site, step, fault_ptr)
    site_ptr = sites_address(
        logits_ptr,
        index_ptr,
        row,
        u_row,
        site,
        masked,
        logit_row_stride,
        logit_site_stride,
        num_logit_rows,
        length,
        step,
        fault_ptr,
        PER_SITE,
    )
    logit, top = logits_of_sites(
        site_ptr, logit_token_stride, vocab_size, site, masked, row, step, fault_ptr, V
    )
    if MODE:
        best = mode_of_sites(logit, top, V)
        tl.store(out_ptr + row * length + site, tl.where(masked, best, x), mask=valid)
    else:
        temperature = double_argument(temperature_bits, temperature_ptr)
        cdf = tl.cumsum(fast_weight(logit, top[None, :], temperature, TEMPERED), axis=0)
        c2, c3 = state_words(keys_ptr, row, integer_argument(purpose, None))
        for s in range(num_samples):
            u = uniform_at(word(site), word(step + s), c2, c3, seed)
            drawn = pick_of_sites(
                site_ptr,
                logit_token_stride,
                vocab_size,
                masked,
                top,
                cdf,
                temperature,
                u,
                V,
                TEMPERED,
            )
            o_out = (row * num_samples + s) * length + site
            tl.store(out_ptr + o_out, tl.where(masked, drawn, x), mask=valid)


@triton.jit(
    do_not_specialize=[
        "length",
        "num_copies",
        "num_tiles",
        "num_logit_rows",
        "mask_token",
        "vocab_size",
    ]
)
def _masked_list_kernel(
    index_ptr,
    x_ptr,
    out_ptr,
    list_ptr,
    count_ptr,
    fault_ptr,
    x_row_stride,
    x_site_stride,
    num_logit_rows,
    length,
    vocab_size,
    num_copies,
    num_tiles,
    mask_token: tl.int64,
    PER_SITE: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Copies, and the list of row * length + site of every masked site, in any order."""
    row = tl.program_id(0).to(tl.int64) // num_tiles
    tile = tl.program_id(0) - row * num_tiles
    step = row * 0
    logits_row(index_ptr, row, num_logit_rows, step, fault_ptr, PER_SITE)
    site = tile * BLOCK_L + tl.arange(0, BLOCK_L).to(tl.int64)
    valid = site < length
    x = tl.load(x_ptr + row * x_row_stride + site * x_site_stride, mask=valid, other=0)
    masked = valid & (x == mask_token)
    note_tokens(x, valid & (masked == 0), vocab_size, row, site, step, fault_ptr)
    for s in range(num_copies):
        tl.store(out_ptr + (row * num_copies + s) * length + site, x, mask=valid)
    wanted = masked.to(tl.int32)
    place = tl.cumsum(wanted, axis=0) - 1
    count = tl.sum(wanted, axis=0)
    if count > 0:
        begin = tl.atomic_add(count_ptr, count)
        tl.store(list_ptr + begin + place, row * length + site, mask=masked)


@triton.jit(
    do_not_specialize=[
        "length",
        "num_samples",
        "num_logit_rows",
        "seed",
        "purpose",
        "vocab_size",
        "temperature_bits",
    ]
)
def _masked_predict_kernel(
    logits_ptr,
    index_ptr,
    keys_ptr,
    out_ptr,
    list_ptr,
    count_ptr,
    fault_ptr,
    logit_row_stride,
    logit_site_stride,
    logit_token_stride,
    num_logit_rows,
    length,
    vocab_size,
    num_samples,
    seed: tl.int64,
    seed_ptr,
    purpose: tl.int64,
    temperature_bits: tl.int64,
    temperature_ptr,
    TEMPERED: tl.constexpr,
    MODE: tl.constexpr,
    PER_SITE: tl.constexpr,
    NUM_TILES: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The tokens of the listed sites."""
    seed = integer_argument(seed, seed_ptr)
    purpose = integer_argument(purpose, None)
    temperature = double_argument(temperature_bits, temperature_ptr)
    for i in range(tl.program_id(0).to(tl.int64), tl.load(count_ptr), tl.num_programs(0)):
        entry = tl.load(list_ptr + i)
        row = entry // length
        site = entry - row * length
        step = row * 0
        u_row = logits_row(index_ptr, row, num_logit_rows, step, fault_ptr, PER_SITE)
        site_ptr = site_address(
            logits_ptr,
            index_ptr,
            row,
            u_row,
            site,
            logit_row_stride,
            logit_site_stride,
            num_logit_rows,
            length,
            step,
            fault_ptr,
            PER_SITE,
        )
        if MODE:
            best = first_maximum(
                site_ptr, logit_token_stride, vocab_size, row, site, step, fault_ptr, BLOCK_V
            )
            tl.store(out_ptr + entry, best)
        else:
            top, ends = summarise(
                site_ptr,
                logit_token_stride,
                vocab_size,
                temperature,
                row,
                site,
                step,
                fault_ptr,
                TEMPERED,
                NUM_TILES,
                TILE,
                BLOCK_V,
            )
            c2, c3 = state_words(keys_ptr, row, purpose)
            for s in range(num_samples):
                u = uniform_at(word(site), word(step + s), c2, c3, seed)
                token = pick_by_blocks(
                    site_ptr,
                    logit_token_stride,
                    vocab_size,
                    top,
                    ends,
                    temperature,
                    u,
                    TEMPERED,
                    NUM_TILES * TILE,
                    BLOCK_V,
                )
                tl.store(out_ptr + (row * num_samples + s) * length + site, token)


def launch_masked_posterior(
    logits: torch.Tensor,
    x: torch.Tensor,
    mask_token: int,
    index: torch.Tensor | None,
    num_samples: int,
    keys: torch.Tensor | None,
    seed: int | torch.Tensor,
    temperature: float | torch.Tensor,
    purpose: int,
    out: torch.Tensor,
) -> device_faults.Fault | None:
    """logits [U, L, V] or [S, V], x [R, L] -> out [R, L] (num_samples = 0) or [R, S, L]."""
    if not out.numel():
        return None
    num_rows, length = x.shape
    vocab_size = logits.shape[-1]
    rows, strides = site_rows(logits)
    fault = device_faults.record(OP, x.device)
    mode = num_samples == 0
    tempered = not mode and is_tempered(temperature)
    block_l = site_block(length, vocab_size)
    num_tiles = triton.cdiv(length, block_l)
    if vocab_size <= SMALL:
        _masked_posterior_small_kernel[(num_rows * num_tiles,)](
            rows,
            index,
            x,
            keys,
            out,
            fault,
            *strides,
            *x.stride(),
            logits.shape[0],
            length,
            vocab_size,
            num_samples,
            num_tiles,
            mask_token,
            *integer(seed),
            purpose,
            *double(temperature),
            V=triton.next_power_of_2(vocab_size),
            TEMPERED=tempered,
            MODE=mode,
            PER_SITE=logits.dim() == 2,
            BLOCK_L=block_l,
            num_warps=4,
            maxnreg=MAX_REGISTERS,
            **OPTIONS,
        )
        return device_faults.outcome(x.device)

    listed = torch.empty(num_rows * length, dtype=torch.int64, device=x.device)
    count = torch.zeros(1, dtype=torch.int64, device=x.device)
    _masked_list_kernel[(num_rows * num_tiles,)](
        index,
        x,
        out,
        listed,
        count,
        fault,
        *x.stride(),
        logits.shape[0],
        length,
        vocab_size,
        max(num_samples, 1),
        num_tiles,
        mask_token,
        PER_SITE=logits.dim() == 2,
        BLOCK_L=block_l,
        num_warps=4,
        **OPTIONS,
    )
    num_programs = draw_programs(x.device, num_rows * length)
    tile, num_tiles, _ = large_tiles(vocab_size)
    _masked_predict_kernel[(num_programs,)](
        rows,
        index,
        keys,
        out,
        listed,
        count,
        fault,
        *strides,
        logits.shape[0],
        length,
        vocab_size,
        num_samples,
        *integer(seed),
        purpose,
        *double(temperature),
        TEMPERED=tempered,
        MODE=mode,
        PER_SITE=logits.dim() == 2,
        NUM_TILES=triton.next_power_of_2(num_tiles),
        TILE=tile,
        BLOCK_V=LARGE_BLOCK_V,
        num_warps=LARGE_WARPS,
        maxnreg=MAX_REGISTERS,
        **OPTIONS,
    )
    return device_faults.outcome(x.device)
