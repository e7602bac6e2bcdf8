"""K successors of each masked state on a GPU.

Up to SMALL tokens, one launch does everything: a thread per site, running sums in registers, all
candidates of a chunk from one read. Larger vocabularies: masked_propose_large.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.kernels import device_faults
from fastguide.kernels.categorical import (
    fast_weight,
    logits_of_sites,
    pick_of_sites,
)
from fastguide.kernels.masked_propose_large import launch_large
from fastguide.kernels.masked_sites import (
    REVEAL,
    TOKEN,
    logits_row,
    note_tokens,
    reveal_threshold,
    site_rows,
    sites_address,
)
from fastguide.kernels.philox import philox, uniform_at, word, zobrist
from fastguide.kernels.triton_config import (
    MAX_REGISTERS,
    SMALL,
    propose_tile,
)
from fastguide.kernels.triton_runtime import (
    OPTIONS,
    chain_and_first,
    double,
    double_argument,
    integer,
    integer_argument,
    is_tempered,
)

OP = "masked_propose"


@triton.jit(
    do_not_specialize=[
        "length",
        "num_candidates",
        "num_chunks",
        "num_logit_rows",
        "mask_token",
        "seed",
        "step",
        "threshold",
        "vocab_size",
        "temperature_bits",
    ]
)
def _masked_propose_small_kernel(
    logits_ptr,
    index_ptr,
    x_ptr,
    keys_ptr,
    chains_ptr,
    first_ptr,
    tokens_ptr,
    new_keys_ptr,
    changed_ptr,
    fault_ptr,
    logit_row_stride,
    logit_site_stride,
    logit_token_stride,
    x_row_stride,
    x_site_stride,
    num_logit_rows,
    length,
    vocab_size,
    num_candidates,
    num_chunks,
    mask_token: tl.int64,
    seed: tl.int64,
    seed_ptr,
    step: tl.int64,
    step_ptr,
    threshold: tl.int64,
    rho_ptr,
    temperature_bits: tl.int64,
    temperature_ptr,
    V: tl.constexpr,
    TEMPERED: tl.constexpr,
    PER_SITE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) // num_chunks
    chunk = tl.program_id(0) - n * num_chunks
    seed = integer_argument(seed, seed_ptr)
    step = integer_argument(step, step_ptr)
    temperature = double_argument(temperature_bits, temperature_ptr)
    threshold = reveal_threshold(threshold, rho_ptr)
    chain, first = chain_and_first(chains_ptr, first_ptr, n, num_candidates, step, fault_ptr)
    u_row = logits_row(index_ptr, n, num_logit_rows, step, fault_ptr, PER_SITE)
    # Chunks start at multiples of four, so that a REVEAL block serves four candidates.
    base = (first // 4) * 4 + chunk * CHUNK

    # A bound that the compiler does not know: it would unroll the loops and spill.
    num_quads = tl.minimum(CHUNK // 4, (num_candidates + 6) // 4)
    slots = tl.arange(0, CHUNK)
    change_low = tl.zeros([CHUNK], tl.int64)
    change_high = tl.zeros([CHUNK], tl.int64)
    revealed = tl.zeros([CHUNK], tl.int32)
    for start in range(0, length, BLOCK_L):
        site = start + tl.arange(0, BLOCK_L).to(tl.int64)
        valid = site < length
        x = tl.load(x_ptr + n * x_row_stride + site * x_site_stride, mask=valid, other=0)
        masked = valid & (x == mask_token)
        if chunk == 0:
            note_tokens(x, valid & (masked == 0), vocab_size, n, site, step, fault_ptr)

        # Bit s: candidate base + s reveals the site.
        bits = tl.zeros([BLOCK_L], tl.int32)
        for quad in range(num_quads):
            words = philox(
                word(site), word(base // 4 + quad), word(chain), word((step << 8) | REVEAL), seed
            )
            for w in tl.static_range(4):
                k = base + 4 * quad + w - first
                if (k >= 0) & (k < num_candidates):
                    reveals = masked & (words[w].to(tl.int64) < threshold)
                    bits |= reveals.to(tl.int32) << (4 * quad + w)

        if tl.max((bits != 0).to(tl.int32), axis=0) > 0:
            wanted = bits != 0
            site_ptr = sites_address(
                logits_ptr,
                index_ptr,
                n,
                u_row,
                site,
                wanted,
                logit_row_stride,
                logit_site_stride,
                num_logit_rows,
                length,
                step,
                fault_ptr,
                PER_SITE,
            )
            logit, top = logits_of_sites(
                site_ptr, logit_token_stride, vocab_size, site, wanted, n, step, fault_ptr, V
            )
            cdf = tl.cumsum(fast_weight(logit, top[None, :], temperature, TEMPERED), axis=0)
            mask_low, mask_high = zobrist(site, mask_token.to(tl.int64))
            for s in range(4 * num_quads):
                k = base + s - first
                if (k >= 0) & (k < num_candidates):
                    reveals = ((bits >> s) & 1) != 0
                    token = x
                    if tl.max(reveals.to(tl.int32), axis=0) > 0:
                        u = uniform_at(
                            word(site), word(base + s), word(chain), word((step << 8) | TOKEN), seed
                        )
                        drawn = pick_of_sites(
                            site_ptr,
                            logit_token_stride,
                            vocab_size,
                            reveals,
                            top,
                            cdf,
                            temperature,
                            u,
                            V,
                            TEMPERED,
                        )
                        token = tl.where(reveals, drawn, x)
                        low, high = zobrist(site, drawn)
                        low = tl.xor_sum(tl.where(reveals, low ^ mask_low, 0), axis=0)
                        high = tl.xor_sum(tl.where(reveals, high ^ mask_high, 0), axis=0)
                        here = slots == s
                        change_low = tl.where(here, change_low ^ low, change_low)
                        change_high = tl.where(here, change_high ^ high, change_high)
                        revealed += tl.where(here, tl.sum(reveals.to(tl.int32), axis=0), 0)
                    o_token = (n * num_candidates + k) * length + site
                    tl.store(tokens_ptr + o_token, token, mask=valid)
        else:
            for s in range(4 * num_quads):
                k = base + s - first
                if (k >= 0) & (k < num_candidates):
                    o_token = (n * num_candidates + k) * length + site
                    tl.store(tokens_ptr + o_token, x, mask=valid)

    k = base + slots - first
    m_k = (k >= 0) & (k < num_candidates)
    o_k = n * num_candidates + k
    tl.store(new_keys_ptr + 2 * o_k, tl.load(keys_ptr + 2 * n) ^ change_low, mask=m_k)
    tl.store(new_keys_ptr + 2 * o_k + 1, tl.load(keys_ptr + 2 * n + 1) ^ change_high, mask=m_k)
    tl.store(changed_ptr + o_k, revealed, mask=m_k)


def launch_masked_propose(
    logits: torch.Tensor,
    x: torch.Tensor,
    keys: torch.Tensor,
    mask_token: int,
    rho: float | torch.Tensor,
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    step: int | torch.Tensor,
    index: torch.Tensor | None,
    temperature: float | torch.Tensor,
    first_candidate: torch.Tensor | None,
    tokens: torch.Tensor,
    new_keys: torch.Tensor,
    changed: torch.Tensor,
) -> device_faults.Fault | None:
    """logits [U, L, V] or [S, V], x [N, L] -> tokens, keys, changed of [N, K]."""
    num_rows, num_candidates, length = tokens.shape
    vocab_size = logits.shape[-1]
    if not num_rows:
        return None
    fault = device_faults.record(OP, x.device)
    threshold = (0, rho) if isinstance(rho, torch.Tensor) else (int(rho * 2.0**32), None)
    if vocab_size <= SMALL:
        chunk, block_l = propose_tile(num_rows, num_candidates, vocab_size, length)
        # An unaligned first candidate starts its chunk up to three ids early.
        ids = num_candidates if first_candidate is None else num_candidates + 3
        num_chunks = triton.cdiv(ids, chunk)
        rows, strides = site_rows(logits)
        _masked_propose_small_kernel[(num_rows * num_chunks,)](
            rows,
            index,
            x,
            keys,
            chains,
            first_candidate,
            tokens,
            new_keys,
            changed,
            fault,
            *strides,
            *x.stride(),
            logits.shape[0],
            length,
            vocab_size,
            num_candidates,
            num_chunks,
            mask_token,
            *integer(seed),
            *integer(step),
            *threshold,
            *double(temperature),
            V=triton.next_power_of_2(vocab_size),
            TEMPERED=is_tempered(temperature),
            PER_SITE=logits.dim() == 2,
            CHUNK=chunk,
            BLOCK_L=block_l,
            num_warps=4,
            maxnreg=MAX_REGISTERS,
            **OPTIONS,
        )
        return device_faults.outcome(x.device)

    launch_large(
        logits,
        x,
        keys,
        mask_token,
        threshold,
        seed,
        chains,
        step,
        index,
        temperature,
        first_candidate,
        tokens,
        new_keys,
        changed,
        fault,
    )
    return device_faults.outcome(x.device)
