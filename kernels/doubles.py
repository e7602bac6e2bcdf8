"""exp, log, cos and sin in float64 from + - * / alone.

The same operations in the same order as csrc/include/fastguide/math.cuh, so that with contraction
off the bits agree with the C++ kernels on every device.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROUND = tl.constexpr(6755399441055744.0)  # 1.5 * 2**52: leaves the nearest integer in the low bits
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_LN2_HIGH = tl.constexpr(float.fromhex("0x1.62e42fee00000p-1"))
_LN2_LOW = tl.constexpr(float.fromhex("0x1.a39ef35793c76p-33"))
_SQRT_HALF_BITS = tl.constexpr(0x3FE6A09E667F3BCD)
_EXPONENT = tl.constexpr(-(2**52))  # 0xFFF0000000000000
_TWO_52 = tl.constexpr(2.0**52)
_TWO_52_2048 = tl.constexpr(2.0**52 + 2048.0)
_BIAS_52 = tl.constexpr(0x4330000000000000)
_TWO_52_29 = tl.constexpr(2.0**52 + 2.0**29)
_TWO_PI_2_32 = tl.constexpr(float.fromhex("0x1.921fb54442d18p-30"))
_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def bits_of(x):
    """float64 -> its bit pattern, int64."""
    return x.to(tl.int64, bitcast=True)


@triton.jit
def from_bits(bits):
    """int64 bit pattern -> float64."""
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def exp_double(x):
    """exp(x) of float64 below +inf: under 1 ulp of error, 1 at 0, exactly 0 at -inf."""
    x = tl.where(x < -746.0, -746.0, x)
    x = tl.where(x > 710.0, 710.0, x)
    k = (x * _LOG2_E + ROUND) - ROUND
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = (p * r) * r + r + 1.0
    k1 = (k * 0.5 + ROUND) - ROUND
    k2 = k - k1
    scale1 = from_bits((bits_of(k1 + ROUND) + 1023) << 52)
    scale2 = from_bits((bits_of(k2 + ROUND) + 1023) << 52)
    return p * scale1 * scale2


@triton.jit
def fused(x, y, constant: tl.constexpr):
    """x y + constant in one rounding, float64. Triton 3.6 takes a bare literal to float32."""
    return tl.fma(x, y, tl.full([], constant, tl.float64))


@triton.jit
def exp_fused(x):
    """exp(x) of float64 up to 700 with fused operations, to 2**-40; at least exp(-700).

    Half the instructions of `exp_double`, for sums that only need to be close.
    """
    x = tl.where(x > -700.0, x, -700.0)
    shifted = fused(x, tl.full([], _LOG2_E, tl.float64), ROUND)
    r = tl.fma(ROUND - shifted, tl.full([], _LN2, tl.float64), x)
    # The polynomial of degree 8 whose largest relative error over |r| <= ln(2) / 2 is least.
    p = fused(r, tl.full([], 2.4727216017297605e-05, tl.float64), 0.00019915422084164746)
    p = fused(p, r, 0.001388917864497171)
    p = fused(p, r, 0.008333267031810487)
    p = fused(p, r, 0.04166666422004531)
    p = fused(p, r, 0.1666666688544805)
    p = fused(p, r, 0.5000000000618229)
    p = fused(p, r, 0.9999999999806229)
    p = fused(p, r, 0.9999999999997623)
    # The low bits of `shifted` are the power of two, which goes to the exponent.
    return from_bits(bits_of(p) + (bits_of(shifted) << 52))


@triton.jit
def log_double(x):
    """log(x) of a positive normal float64, under 1 ulp of error away from x = 1."""
    bits = bits_of(x)
    shifted = bits - _SQRT_HALF_BITS
    # A logical shift: the difference is negative below sqrt(1/2).
    exponent = (shifted >> 52) & 0xFFF
    k = from_bits((exponent ^ 0x800) | _BIAS_52) - _TWO_52_2048
    m = from_bits(bits - (shifted & _EXPONENT))
    f = m - 1.0
    s = f / (m + 1.0)
    z = s * s
    p = z * (2.0 / 23.0) + 2.0 / 21.0
    p = p * z + 2.0 / 19.0
    p = p * z + 2.0 / 17.0
    p = p * z + 2.0 / 15.0
    p = p * z + 2.0 / 13.0
    p = p * z + 2.0 / 11.0
    p = p * z + 2.0 / 9.0
    p = p * z + 2.0 / 7.0
    p = p * z + 2.0 / 5.0
    p = p * z + 2.0 / 3.0
    return k * _LN2_HIGH + (f - (s * (f - p * z) - k * _LN2_LOW))


@triton.jit
def radius_squared(w):
    """Squared Box-Muller radius of a uint32 word: -2 ln((w + 1/2) 2**-32)."""
    return -2.0 * log_double((w.to(tl.float64) + 0.5) * 2.3283064365386963e-10)


@triton.jit
def turn(w):
    """cos and sin of 2 pi w 2**-32, w uint32; the angle is reduced to [-pi/4, pi/4] in integers."""
    shifted = w.to(tl.int64) + 0x20000000
    angle = (from_bits((shifted & 0x3FFFFFFF) | _BIAS_52) - _TWO_52_29) * _TWO_PI_2_32
    z = angle * angle
    s = z * (1.0 / 355687428096000.0) - 1.0 / 1307674368000.0
    s = s * z + 1.0 / 6227020800.0
    s = s * z - 1.0 / 39916800.0
    s = s * z + 1.0 / 362880.0
    s = s * z - 1.0 / 5040.0
    s = s * z + 1.0 / 120.0
    s = s * z - 1.0 / 6.0
    sin = angle + angle * (z * s)
    c = z * (1.0 / 20922789888000.0) - 1.0 / 87178291200.0
    c = c * z + 1.0 / 479001600.0
    c = c * z - 1.0 / 3628800.0
    c = c * z + 1.0 / 40320.0
    c = c * z - 1.0 / 720.0
    c = c * z + 1.0 / 24.0
    c = c * z - 0.5
    cos = 1.0 + c * z
    # Quarter turns: swap after an odd number of them, then flip the signs.
    odd = ((shifted >> 30) & 1) != 0
    half = ((shifted >> 31) & 1) != 0
    first = tl.where(odd, -sin, cos)
    second = tl.where(odd, cos, sin)
    return tl.where(half, -first, first), tl.where(half, -second, second)


@triton.jit
def normal_pair(w_a, w_b):
    """Box-Muller: r cos(theta), r sin(theta), float64, of two uint32 words."""
    radius = tl.sqrt(radius_squared(w_a))
    cos, sin = turn(w_b)
    return radius * cos, radius * sin
