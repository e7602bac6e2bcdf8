"""masked_propose over large vocabularies on a GPU: three launches around a list of sites.

The first clears what the others add to; the second makes copies and lists the sites that some
candidate reveals; the third, of a fixed grid, works through that list. Neither the host nor a graph
needs to know how long it is. The vocabulary of a site is divided among programs, so that a few
sites fill a GPU too; the one that ends last draws.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastguide.kernels.categorical import join_tiles, pick_by_blocks, sum_tile
from fastguide.kernels.masked_sites import (
    REVEAL,
    TOKEN,
    logits_row,
    note_tokens,
    reveal_threshold,
    site_address,
    site_rows,
)
from fastguide.kernels.philox import philox, uniform_at, word, zobrist
from fastguide.kernels.triton_config import (
    LARGE_BLOCK_V,
    LARGE_WARPS,
    MAX_REGISTERS,
    draw_programs,
    large_tiles,
    site_block,
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


@triton.jit(do_not_specialize=["length", "num_candidates"])
def _masked_begin_kernel(
    keys_ptr,
    new_keys_ptr,
    changed_ptr,
    count_ptr,
    length,
    num_candidates,
    BLOCK: tl.constexpr,
):
    """Keys of the parent for every candidate; zeros in changed, the list's length and arrivals."""
    n = tl.program_id(0).to(tl.int64)
    low = tl.load(keys_ptr + 2 * n)
    high = tl.load(keys_ptr + 2 * n + 1)
    for start in range(0, num_candidates, BLOCK):
        k = start + tl.arange(0, BLOCK)
        o_k = n * num_candidates + k
        valid = k < num_candidates
        tl.store(new_keys_ptr + 2 * o_k, low, mask=valid)
        tl.store(new_keys_ptr + 2 * o_k + 1, high, mask=valid)
        tl.store(changed_ptr + o_k, 0, mask=valid)
    for start in range(0, length, BLOCK):
        site = start + tl.arange(0, BLOCK)
        tl.store(count_ptr + 1 + n * length + site, 0, mask=site < length)
    if n == 0:
        tl.store(count_ptr, 0)


@triton.jit(
    do_not_specialize=[
        "length",
        "num_candidates",
        "num_tiles",
        "num_logit_rows",
        "mask_token",
        "seed",
        "step",
        "threshold",
        "vocab_size",
    ]
)
def _masked_reveal_kernel(
    index_ptr,
    x_ptr,
    chains_ptr,
    first_ptr,
    tokens_ptr,
    changed_ptr,
    list_ptr,
    count_ptr,
    fault_ptr,
    x_row_stride,
    x_site_stride,
    num_logit_rows,
    length,
    vocab_size,
    num_candidates,
    num_tiles,
    mask_token: tl.int64,
    seed: tl.int64,
    seed_ptr,
    step: tl.int64,
    step_ptr,
    threshold: tl.int64,
    rho_ptr,
    PER_SITE: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Copies, counts, and the list of n * length + site that some candidate reveals."""
    n = tl.program_id(0).to(tl.int64) // num_tiles
    tile = tl.program_id(0) - n * num_tiles
    seed = integer_argument(seed, seed_ptr)
    step = integer_argument(step, step_ptr)
    threshold = reveal_threshold(threshold, rho_ptr)
    chain, first = chain_and_first(chains_ptr, first_ptr, n, num_candidates, step, fault_ptr)
    logits_row(index_ptr, n, num_logit_rows, step, fault_ptr, PER_SITE)
    site = tile * BLOCK_L + tl.arange(0, BLOCK_L).to(tl.int64)
    valid = site < length
    x = tl.load(x_ptr + n * x_row_stride + site * x_site_stride, mask=valid, other=0)
    masked = valid & (x == mask_token)
    note_tokens(x, valid & (masked == 0), vocab_size, n, site, step, fault_ptr)

    wanted = tl.zeros([BLOCK_L], tl.int32)
    for i in range((num_candidates + 6) // 4):
        quad = first // 4 + i
        words = philox(word(site), word(quad), word(chain), word((step << 8) | REVEAL), seed)
        for j in tl.static_range(4):
            k = quad * 4 + j - first
            if (k >= 0) & (k < num_candidates):
                reveals = (masked & (words[j].to(tl.int64) < threshold)).to(tl.int32)
                wanted |= reveals
                tl.atomic_add(changed_ptr + n * num_candidates + k, tl.sum(reveals, axis=0))
                o_token = (n * num_candidates + k) * length + site
                tl.store(tokens_ptr + o_token, x, mask=valid)
    place = tl.cumsum(wanted, axis=0) - 1
    count = tl.sum(wanted, axis=0)
    if count > 0:
        begin = tl.atomic_add(count_ptr, count)
        tl.store(list_ptr + begin + place, n * length + site, mask=wanted != 0)


@triton.jit(
    do_not_specialize=[
        "length",
        "num_candidates",
        "num_logit_rows",
        "num_tiles",
        "mask_token",
        "seed",
        "step",
        "threshold",
        "vocab_size",
        "temperature_bits",
    ]
)
def _masked_draw_kernel(
    logits_ptr,
    index_ptr,
    chains_ptr,
    first_ptr,
    tokens_ptr,
    new_keys_ptr,
    list_ptr,
    count_ptr,
    parts_ptr,
    fault_ptr,
    logit_row_stride,
    logit_site_stride,
    logit_token_stride,
    num_logit_rows,
    length,
    vocab_size,
    num_candidates,
    num_tiles,
    mask_token: tl.int64,
    seed: tl.int64,
    seed_ptr,
    step: tl.int64,
    step_ptr,
    threshold: tl.int64,
    rho_ptr,
    temperature_bits: tl.int64,
    temperature_ptr,
    TEMPERED: tl.constexpr,
    PER_SITE: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    MOST_TILES: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The tokens of the listed sites: one read of a site's logits, whatever reveals it.

    count_ptr: the length of the list, then the parts of each entry that are done.
    parts_ptr: [entries, MOST_TILES, 1 + TILE] float64, what sum_tile gave for each tile.
    """
    seed = integer_argument(seed, seed_ptr)
    step = integer_argument(step, step_ptr)
    temperature = double_argument(temperature_bits, temperature_ptr)
    threshold = reveal_threshold(threshold, rho_ptr)
    slots = tl.arange(0, BLOCK_K).to(tl.int64)
    t = tl.arange(0, MOST_TILES)
    o_block = 1 + tl.arange(0, TILE)
    count = tl.load(count_ptr)
    share = tl.cdiv(num_tiles, NUM_PARTS)
    # First parts first: the short last ones then even out the end of the launch.
    for i in range(tl.program_id(0).to(tl.int64), count * NUM_PARTS, tl.num_programs(0)):
        part = i // count
        slot = i - part * count
        entry = tl.load(list_ptr + slot)
        n = entry // length
        site = entry - n * length
        u_row = logits_row(index_ptr, n, num_logit_rows, step, fault_ptr, PER_SITE)
        site_ptr = site_address(
            logits_ptr,
            index_ptr,
            n,
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
        entry_ptr = parts_ptr + slot * (MOST_TILES * (1 + TILE))
        for tile in range(part * share, tl.minimum((part + 1) * share, num_tiles)):
            top, sums = sum_tile(
                site_ptr, logit_token_stride, vocab_size, tile, temperature, TEMPERED, TILE, BLOCK_V
            )
            tl.store(entry_ptr + tile * (1 + TILE), top)
            tl.store(entry_ptr + tile * (1 + TILE) + o_block, sums)
        # What any thread stored is seen by the program that counts the last part.
        tl.debug_barrier()
        if tl.atomic_add(count_ptr + 1 + slot, 1) == NUM_PARTS - 1:
            m_t = t < num_tiles
            tile_ptr = entry_ptr + t * (1 + TILE)
            tops = tl.load(tile_ptr, mask=m_t, other=-float("inf"), cache_modifier=".cg")
            sums = tl.load(
                tile_ptr[:, None] + o_block[None, :],
                mask=m_t[:, None],
                other=0.0,
                cache_modifier=".cg",
            )
            top, ends = join_tiles(
                tops, sums, temperature, n, site, step, fault_ptr, TEMPERED, MOST_TILES * TILE
            )
            chain, first = chain_and_first(
                chains_ptr, first_ptr, n, num_candidates, step, fault_ptr
            )
            mask_low, mask_high = zobrist(site, mask_token.to(tl.int64))
            for begin in range(0, num_candidates, BLOCK_K):
                # One lane per candidate finds out who reveals; then one draw after another.
                ids = first + begin + slots
                words = philox(
                    word(site), word(ids // 4), word(chain), word((step << 8) | REVEAL), seed
                )
                lower = tl.where(ids % 2 == 0, words[0], words[1])
                upper = tl.where(ids % 2 == 0, words[2], words[3])
                mine = tl.where(ids % 4 < 2, lower, upper).to(tl.int64)
                reveals = (begin + slots < num_candidates) & (mine < threshold)
                bits = tl.sum(reveals.to(tl.int64) << slots, axis=0)
                for s in range(tl.minimum(BLOCK_K, num_candidates - begin)):
                    if ((bits >> s) & 1) != 0:
                        k = begin + s
                        u = uniform_at(
                            word(site),
                            word(first + k),
                            word(chain),
                            word((step << 8) | TOKEN),
                            seed,
                        )
                        token = pick_by_blocks(
                            site_ptr,
                            logit_token_stride,
                            vocab_size,
                            top,
                            ends,
                            temperature,
                            u,
                            TEMPERED,
                            MOST_TILES * TILE,
                            BLOCK_V,
                        )
                        low, high = zobrist(site, token)
                        o_k = n * num_candidates + k
                        tl.store(tokens_ptr + o_k * length + site, token)
                        tl.atomic_xor(new_keys_ptr + 2 * o_k, low ^ mask_low)
                        tl.atomic_xor(new_keys_ptr + 2 * o_k + 1, high ^ mask_high)


def launch_large(
    logits: torch.Tensor,
    x: torch.Tensor,
    keys: torch.Tensor,
    mask_token: int,
    threshold: tuple[int, torch.Tensor | None],
    seed: int | torch.Tensor,
    chains: torch.Tensor,
    step: int | torch.Tensor,
    index: torch.Tensor | None,
    temperature: float | torch.Tensor,
    first_candidate: torch.Tensor | None,
    tokens: torch.Tensor,
    new_keys: torch.Tensor,
    changed: torch.Tensor,
    fault: torch.Tensor,
) -> None:
    """As `launch_masked_propose`; threshold: (floor(rho 2**32), None), or (0, rho) on device."""
    num_rows, num_candidates, length = tokens.shape
    vocab_size = logits.shape[-1]
    listed = torch.empty(num_rows * length, dtype=torch.int64, device=x.device)
    count = torch.empty(1 + num_rows * length, dtype=torch.int64, device=x.device)
    _masked_begin_kernel[(num_rows,)](
        keys,
        new_keys,
        changed,
        count,
        length,
        num_candidates,
        BLOCK=128,
        num_warps=4,
        **OPTIONS,
    )
    if not length:
        return
    block_l = site_block(length, vocab_size)
    num_tiles = triton.cdiv(length, block_l)
    _masked_reveal_kernel[(num_rows * num_tiles,)](
        index,
        x,
        chains,
        first_candidate,
        tokens,
        changed,
        listed,
        count,
        fault,
        *x.stride(),
        logits.shape[0],
        length,
        vocab_size,
        num_candidates,
        num_tiles,
        mask_token,
        *integer(seed),
        *integer(step),
        *threshold,
        PER_SITE=logits.dim() == 2,
        BLOCK_L=block_l,
        num_warps=4,
        **OPTIONS,
    )
    tile, num_tiles, num_parts = large_tiles(vocab_size)
    most_tiles = triton.next_power_of_2(num_tiles)
    parts = torch.empty(
        (num_rows * length, most_tiles, 1 + tile), dtype=torch.float64, device=x.device
    )
    num_programs = draw_programs(x.device, num_rows * length * num_parts)
    rows, strides = site_rows(logits)
    _masked_draw_kernel[(num_programs,)](
        rows,
        index,
        chains,
        first_candidate,
        tokens,
        new_keys,
        listed,
        count,
        parts,
        fault,
        *strides,
        logits.shape[0],
        length,
        vocab_size,
        num_candidates,
        num_tiles,
        mask_token,
        *integer(seed),
        *integer(step),
        *threshold,
        *double(temperature),
        TEMPERED=is_tempered(temperature),
        PER_SITE=logits.dim() == 2,
        NUM_PARTS=num_parts,
        MOST_TILES=most_tiles,
        TILE=tile,
        BLOCK_V=LARGE_BLOCK_V,
        BLOCK_K=32,
        num_warps=LARGE_WARPS,
        maxnreg=MAX_REGISTERS,
        **OPTIONS,
    )
