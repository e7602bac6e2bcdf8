"""Device functions of inverse-CDF draws: first v with cumsum_v > u * total, sums taken in order.

Small vocabularies keep the running sums of a site in the registers of one thread. Large ones sum
blocks in parallel and take the draw from the block that holds it. Sums are taken in whatever order
is fast; where the target comes so close to a step of the CDF that the order could matter, the site
is summed again in order, so every path gives the token of sequential sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastguide.kernels.doubles import exp_double, exp_fused
from fastguide.kernels.triton_runtime import (
    LOGIT_FAULT,
    NO_TOKEN_FAULT,
    note_fault,
    note_first_fault,
    tie_margin,
)


@triton.jit
def exact_weight(logit, top, temperature, TEMPERED: tl.constexpr):
    """exp((logit - top) / temperature) as every backend has it, float64; 0 at -inf, NaN, +inf."""
    INFINITY: tl.constexpr = float("inf")
    scaled = tl.where(logit < INFINITY, logit, -INFINITY).to(tl.float64) - top
    if TEMPERED:
        scaled = scaled / temperature
    return exp_double(scaled)


@triton.jit
def fast_weight(logit, pivot, temperature, TEMPERED: tl.constexpr):
    """exp((logit - pivot) / temperature) to within `tie_margin`, and not less than exp(-700).

    A forbidden token so weighs exp(-700), which no sum of order 1 notices.   logit: below +inf.
    """
    scaled = logit.to(tl.float64) - pivot
    if TEMPERED:
        scaled = scaled * (1.0 / temperature)
    return exp_fused(scaled)


@triton.jit
def logits_of_sites(
    logits_ptr, token_stride, vocab_size, sites, wanted, row, step, fault_ptr, V: tl.constexpr
):
    """Logits [V, B] of the sites [B] that are wanted, -inf elsewhere; the largest of each, float64.

    logits_ptr: [B] pointers to the sites' first logits.   V: power of two from vocab_size on. A
    wanted site without any token to draw is noted; its largest counts as 0.
    """
    INFINITY: tl.constexpr = float("inf")
    v = tl.arange(0, V).to(tl.int64)[:, None]
    mask = wanted[None, :] & (v < vocab_size)
    logit = tl.load(logits_ptr[None, :] + v * token_stride, mask=mask, other=-INFINITY)
    ok = logit < INFINITY
    bad = tl.max((ok == 0).to(tl.int32), axis=0) > 0
    logit = tl.where(ok, logit, -INFINITY)
    top = tl.max(logit, axis=0)
    none = wanted & (bad == 0) & (top == -INFINITY)
    note_first_fault(fault_ptr, bad, row, sites, sites * 0, step, LOGIT_FAULT)
    note_first_fault(fault_ptr, none, row, sites, sites * 0, step, NO_TOKEN_FAULT)
    return logit, tl.where(top == -INFINITY, 0.0, top).to(tl.float64)


@triton.jit
def mode_of_sites(logit, top, V: tl.constexpr):
    """First place of the largest of logits [V, B]."""
    v = tl.arange(0, V).to(tl.int64)[:, None]
    return tl.min(tl.where(logit.to(tl.float64) == top[None, :], v, V), axis=0)


@triton.jit
def sites_in_order(
    logits_ptr, token_stride, vocab_size, wanted, top, temperature, u, TEMPERED: tl.constexpr
):
    """The token of each site [B] by sequential sums."""
    total = u * 0.0
    last = wanted.to(tl.int64) * 0
    at = logits_ptr
    for v in range(vocab_size):
        weight = exact_weight(tl.load(at, mask=wanted, other=0.0), top, temperature, TEMPERED)
        total += weight
        last = tl.where(weight > 0.0, v, last)
        at += token_stride
    target = u * total
    total = u * 0.0
    token = last * 0
    at = logits_ptr
    for _ in range(vocab_size):
        total += exact_weight(tl.load(at, mask=wanted, other=0.0), top, temperature, TEMPERED)
        token += (total <= target).to(tl.int64)
        at += token_stride
    return tl.minimum(token, last)


@triton.jit
def pick_of_sites(
    logits_ptr,
    token_stride,
    vocab_size,
    wanted,
    top,
    cdf,
    temperature,
    u,
    V: tl.constexpr,
    TEMPERED: tl.constexpr,
):
    """The token of each wanted site [B] for uniforms u [B]; cdf [V, B]: sums of the weights."""
    inside = tl.arange(0, V)[:, None] < vocab_size
    total = tl.max(cdf, axis=0)
    margin = total * tie_margin(vocab_size)
    gap = cdf - (u * total)[None, :]
    token = tl.sum((inside & (gap <= 0.0)).to(tl.int64), axis=0)
    close = tl.max((inside & (tl.abs(gap) <= margin[None, :])).to(tl.int32), axis=0)
    if tl.max(tl.where(wanted, close, 0), axis=0) > 0:
        token = sites_in_order(
            logits_ptr, token_stride, vocab_size, wanted, top, temperature, u, TEMPERED
        )
    return token


@triton.jit
def note_site(fault_ptr, bad, top, row, site, step):
    """Note a site where some logit is NaN or +inf, or whose largest is -inf."""
    INFINITY: tl.constexpr = float("inf")
    if bad:
        note_fault(fault_ptr, row, site + 1, site * 0, step, LOGIT_FAULT)
    else:
        if top == -INFINITY:
            note_fault(fault_ptr, row, site + 1, site * 0, step, NO_TOKEN_FAULT)


@triton.jit
def larger(a, b):
    """The larger of two numbers, NaN if any is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sum_tile(
    site_ptr,
    token_stride,
    vocab_size,
    tile,
    temperature,
    TEMPERED: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One read of TILE blocks of logits: the largest, float64, and the weight of each block
    relative to it [TILE]. The largest is NaN if any logit is."""
    INFINITY: tl.constexpr = float("inf")
    block = tl.full([], TILE, tl.int64) * tile + tl.arange(0, TILE)
    v = block[:, None] * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    at = site_ptr + v * token_stride
    if (tile + 1) * TILE * BLOCK_V <= vocab_size:
        logit = tl.load(at)
    else:
        logit = tl.load(at, mask=v < vocab_size, other=-INFINITY)
    # First along the axis of which a thread has all.
    top = tl.reduce(tl.reduce(logit, 0, larger), 0, larger).to(tl.float64)
    sums = tl.zeros([TILE], tl.float64)
    if top < INFINITY:
        pivot = tl.where(top == -INFINITY, 0.0, top)
        sums = tl.sum(fast_weight(logit, pivot, temperature, TEMPERED), axis=1)
    return top, sums


@triton.jit
def join_tiles(
    tops,
    sums,
    temperature,
    row,
    site,
    step,
    fault_ptr,
    TEMPERED: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """What `sum_tile` gave for the tiles of a site, [tiles] and [tiles, TILE]: the largest logit
    and the CDF at the end of each block [BLOCKS], float64.

    A site without any token to draw is noted.
    """
    INFINITY: tl.constexpr = float("inf")
    top = tl.reduce(tops, 0, larger)
    note_site(fault_ptr, (top < INFINITY) == 0, top, row, site, step)
    top = tl.where(tl.abs(top) < INFINITY, top, 0.0)
    tops = tl.where(tops < INFINITY, tops, -INFINITY)
    share = fast_weight(tops, top, temperature, TEMPERED)
    return top, tl.cumsum(tl.reshape(sums * share[:, None], [BLOCKS]), axis=0)


@triton.jit
def summarise(
    site_ptr,
    token_stride,
    vocab_size,
    temperature,
    row,
    site,
    step,
    fault_ptr,
    TEMPERED: tl.constexpr,
    NUM_TILES: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """`join_tiles` of a site that one program reads alone."""
    slots = tl.arange(0, NUM_TILES)
    tops = tl.full([NUM_TILES], -float("inf"), tl.float64)
    sums = tl.zeros([NUM_TILES, TILE], tl.float64)
    for tile in range(tl.cdiv(vocab_size, TILE * BLOCK_V)):
        top, b_sums = sum_tile(
            site_ptr, token_stride, vocab_size, tile, temperature, TEMPERED, TILE, BLOCK_V
        )
        here = slots == tile
        tops = tl.where(here, top, tops)
        sums = tl.where(here[:, None], b_sums[None, :], sums)
    return join_tiles(
        tops, sums, temperature, row, site, step, fault_ptr, TEMPERED, NUM_TILES * TILE
    )


@triton.jit
def first_maximum(
    site_ptr, token_stride, vocab_size, row, site, step, fault_ptr, BLOCK_V: tl.constexpr
):
    """First place of the largest logit of a site; a site without any token to draw is noted."""
    INFINITY: tl.constexpr = float("inf")
    lanes = tl.arange(0, BLOCK_V).to(tl.int64)
    tops = tl.full([BLOCK_V], -INFINITY, site_ptr.dtype.element_ty)
    best = lanes * 0
    bad = tl.zeros([BLOCK_V], tl.int32)
    for block in range(tl.cdiv(vocab_size, BLOCK_V)):
        v = block * BLOCK_V + lanes
        logit = tl.load(site_ptr + v * token_stride, mask=v < vocab_size, other=-INFINITY)
        ok = logit < INFINITY
        bad = tl.where(ok, bad, 1)
        better = ok & (logit > tops)
        best = tl.where(better, v, best)
        tops = tl.where(better, logit, tops)
    top = tl.max(tops, axis=0)
    note_site(fault_ptr, tl.max(bad, axis=0) > 0, top.to(tl.float64), row, site, step)
    return tl.min(tl.where(tops == top, best, 0x7FFFFFFFFFFFFFFF), axis=0)


@triton.jit
def pick_in_order(site_ptr, token_stride, vocab_size, top, temperature, u, TEMPERED: tl.constexpr):
    """The token of a site by sequential sums, without blocks."""
    total = top * 0.0
    last = tl.zeros([], tl.int64)
    at = site_ptr
    for v in range(vocab_size):
        weight = exact_weight(tl.load(at), top, temperature, TEMPERED)
        total += weight
        last = tl.where(weight > 0.0, v, last).to(tl.int64)
        at += token_stride
    target = u * total
    total = top * 0.0
    token = tl.zeros([], tl.int64)
    at = site_ptr
    for _ in range(vocab_size):
        total += exact_weight(tl.load(at), top, temperature, TEMPERED)
        token += (total <= target).to(tl.int64)
        at += token_stride
    return tl.minimum(token, last)


@triton.jit
def pick_by_blocks(
    site_ptr,
    token_stride,
    vocab_size,
    top,
    ends,
    temperature,
    u,
    TEMPERED: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The token of a site for a uniform u: reads the one block of logits that holds the target."""
    INFINITY: tl.constexpr = float("inf")
    slots = tl.arange(0, NUM_BLOCKS)
    total = tl.max(ends, axis=0)
    target = u * total
    margin = total * tie_margin(vocab_size)
    block = tl.sum((ends <= target).to(tl.int32), axis=0)
    block = tl.minimum(block, tl.cdiv(vocab_size, BLOCK_V) - 1)
    start = tl.sum(tl.where(slots == block - 1, ends, 0.0), axis=0)
    v = block * BLOCK_V + tl.arange(0, BLOCK_V).to(tl.int64)
    valid = v < vocab_size
    logit = tl.load(site_ptr + v * token_stride, mask=valid, other=-INFINITY)
    logit = tl.where(logit < INFINITY, logit, -INFINITY)
    weight = fast_weight(logit, top, temperature, TEMPERED)
    gap = (tl.cumsum(weight, axis=0) + start) - target
    token = block.to(tl.int64) * BLOCK_V + tl.sum((valid & (gap <= 0.0)).to(tl.int64), axis=0)
    close = tl.max((valid & (tl.abs(gap) <= margin)).to(tl.int32), axis=0)
    close = tl.maximum(close, tl.max((tl.abs(ends - target) <= margin).to(tl.int32), axis=0))
    # A site that was noted weighs nothing; its token does not matter.
    if (close > 0) & (total > 0.0):
        token = pick_in_order(site_ptr, token_stride, vocab_size, top, temperature, u, TEMPERED)
    return token
