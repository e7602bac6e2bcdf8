"""Device functions of softmaxes of many sites at once, in the dtype of their logits.

Logits of 16 bits are read into float32, and their gradient is rounded where it is stored.
A program takes BLOCK_S sites of one row, and walks their vocabulary in blocks of BLOCK_V tokens.
Sums over blocks are float64; within a block of float32 logits they are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastguide.kernels.doubles import exp_double, log_double
from fastguide.kernels.triton_runtime import interpreting

_INFINITY = tl.constexpr(float("inf"))


def tile_of_sites(length: int, vocab_size: int, most: int = 1024) -> tuple[int, int]:
    """(sites, tokens) that a program holds at once: `most` logits, or one block of one site."""
    most = 128 if interpreting() else most
    tokens = min(triton.next_power_of_2(vocab_size), most)
    return min(triton.next_power_of_2(max(length, 1)), max(most // tokens, 1)), tokens


@triton.jit
def exp_of(x):
    """exp in the dtype of x."""
    return exp_double(x) if x.dtype == tl.float64 else tl.exp(x)


@triton.jit
def wide(x):
    """x in the dtype that logits of its dtype are computed with."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def load_logits(base, token_stride, start, vocab_size, m_site, inverse, BLOCK_V: tl.constexpr):
    """Logits [BLOCK_S, BLOCK_V] over the temperature, -inf where there is no site or token."""
    v = start + tl.arange(0, BLOCK_V).to(tl.int64)
    mask = m_site[:, None] & (v < vocab_size)[None, :]
    z = wide(tl.load(base[:, None] + v[None, :] * token_stride, mask=mask, other=-_INFINITY))
    return z * inverse.to(z.dtype)


@triton.jit
def rescaled(top, new):
    """exp(top - new) in float64, 0 where nothing has been summed yet."""
    return tl.where(top == -_INFINITY, 0.0, exp_of(top - new).to(tl.float64))


@triton.jit
def finite_pivot(top):
    """What to subtract before exponentials: the largest logit, or 0 where all are -inf."""
    return tl.where(top == -_INFINITY, 0.0, top)


@triton.jit
def log_normaliser(top, total):
    """log sum exp from the largest logit and the float64 sum relative to it; NaN if undefined."""
    fine = total > 0.0
    safe = tl.where(fine & (total < _INFINITY), total, 1.0)
    result = finite_pivot(top).to(tl.float64) + log_double(safe)
    return tl.where(fine & (total < _INFINITY), result, float("nan"))


@triton.jit
def load_site(ptr, offset, mask):
    """int64 entries at sites [BLOCK_S], 0 where there is no site."""
    return tl.load(ptr + offset, mask=mask, other=0)


@triton.jit
def is_token(token, vocab_size):
    """An entry is a token of the vocabulary."""
    return (token >= 0) & (token < vocab_size)
