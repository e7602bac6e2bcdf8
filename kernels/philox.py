"""Device functions of the random stream: Philox4x32-10 and the draws made from its words.

The same arithmetic as csrc/include/fastguide/philox.cuh. Source: Salmon, Moraes, Dror, Shaw,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import triton
import triton.language as tl

_M0 = tl.constexpr(0xD2511F53)
_M1 = tl.constexpr(0xCD9E8D57)
_W0 = tl.constexpr(0x9E3779B9)
_W1 = tl.constexpr(0xBB67AE85)
_LOW = tl.constexpr(0xFFFFFFFF)
_ZOBRIST_SEED = tl.constexpr(0x6775696466617374)
_ZOBRIST_C3 = tl.constexpr(0x5A4F4252)


@triton.jit
def word(x):
    """Low 32 bits of an integer as a counter word."""
    return (x.to(tl.int64) & _LOW).to(tl.uint32)


@triton.jit
def philox(c0, c1, c2, c3, seed):
    """The four words at counter (c0, c1, c2, c3), uint32 that broadcast; seed: int64 bits."""
    k0 = word(seed)
    k1 = word(seed >> 32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, _M0)
        high1 = tl.umulhi(c2, _M1)
        low0 = tl.mul(c0, _M0, sanitize_overflow=False)
        low1 = tl.mul(c2, _M1, sanitize_overflow=False)
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = tl.add(k0, _W0, sanitize_overflow=False)
        k1 = tl.add(k1, _W1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def uniform53(w0, w1):
    """53-bit uniform in [0, 1), float64: ((w0 | w1 << 32) >> 11) * 2**-53. Every term is exact."""
    return (
        w1.to(tl.float64) * 2.3283064365386963e-10
        + (w0 >> 11).to(tl.float64) * 1.1102230246251565e-16
    )


@triton.jit
def uniform_at(c0, c1, c2, c3, seed):
    """The 53-bit uniform of words 0 and 1 at a counter."""
    words = philox(c0, c1, c2, c3, seed)
    return uniform53(words[0], words[1])


@triton.jit
def zobrist(site, token):
    """Key words of (site, token), both int64 that broadcast: a pair of int64 bit patterns."""
    seed = tl.full([], _ZOBRIST_SEED, tl.int64)
    w0, w1, w2, w3 = philox(word(site), word(token), word(token >> 32), _ZOBRIST_C3, seed)
    low = w0.to(tl.int64) | (w1.to(tl.int64) << 32)
    high = w2.to(tl.int64) | (w3.to(tl.int64) << 32)
    return low, high
