"""Box-Muller normals in float32: half the instructions of the float64 formula, within 2 ulp of it.

The same operations in the same order as csrc/include/fastguide/normal_single_formula.cuh, where
the derivation and the error bound stand.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bits_of_single(x):
    """float32 -> its bit pattern, uint32."""
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def single_of_bits(bits):
    """uint32 bit pattern -> float32."""
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def signed_single(word):
    """uint32 words as signed numbers, rounded to float32."""
    return word.to(tl.int32, bitcast=True).to(tl.float32)


@triton.jit
def radius_single(word):
    """Box-Muller radius sqrt(-2 ln((w + 1/2) 2**-32)) and what rounding took from it."""
    # As a signed number w gives -2u below one half and 2 - 2u above it.
    v = tl.fma(signed_single(word), -4.656612873077393e-10, -2.3283064365386963e-10)
    bits = bits_of_single(v)
    lower = (bits >> 31) != 0
    # u = 2**-k (1 - t / 2) with t in [0, 1]: both terms of -2 ln u are positive and never cancel.
    t = tl.where(lower, 2.0 - single_of_bits((bits & 0x7FFFFF) | 0x3F800000), v)
    k = tl.where(lower, signed_single(383 - (bits >> 23)), 0.0)
    p = tl.fma(t, 0.0034100080374628305, -0.009696400724351406)
    p = tl.fma(p, t, 0.015442761592566967)
    p = tl.fma(p, t, -0.00930230226367712)
    p = tl.fma(p, t, 0.010657546110451221)
    p = tl.fma(p, t, 0.010980689898133278)
    p = tl.fma(p, t, 0.03148605674505234)
    p = tl.fma(p, t, 0.08331553637981415)
    p = tl.fma(p, t, 0.2500004470348358)
    part = tl.fma(t * t, p, t)
    y = tl.fma(k, 1.3862943649291992, part)
    y_low = tl.fma(k, 1.3862943649291992, -y) + part
    # The rounding of the root is taken back with 1 / (2 r), to 4 % from the exponent.
    r = tl.sqrt_rn(y)
    half_inverse = single_of_bits(0x5EB759DF - (bits_of_single(y) >> 1))
    return r, (tl.fma(-r, r, y) + y_low) * half_inverse


@triton.jit
def normal_pair_single(w_a, w_b):
    """Box-Muller: r cos(theta), r sin(theta), float32, of two uint32 words."""
    r, r_low = radius_single(w_a)
    # theta = (quarter turns) pi / 2 + (pi / 4) angle, angle in [-1, 1).
    angle = signed_single(w_b << 2) * 4.656612873077393e-10
    z = angle * angle
    c = tl.fma(z, 3.5303378354001325e-06, -0.0003259400837123394)
    c = tl.fma(c, z, 0.015854327008128166)
    c = tl.fma(c, z, -0.3084251284599304)
    c = tl.fma(c, z, c * tl.fma(angle, angle, -z))
    along = r + tl.fma(r, c, tl.fma(r_low, c, r_low))
    s = tl.fma(z, -3.5975266655441374e-05, 0.002490044105798006)
    s = tl.fma(s, z, -0.08074545115232468)
    s = tl.fma(s, z, -2.1855694143368964e-08)
    product = r * angle
    product_low = tl.fma(r_low, angle, tl.fma(r, angle, -product))
    across = tl.fma(
        product, 0.7853981852531433, tl.fma(product_low, 0.7853981852531433, product * s)
    )
    # Quarter turns: swap after an odd number of them, then flip the signs.
    turns = w_b + 0x20000000
    odd = turns << 1
    swap = (odd >> 31) != 0
    first = tl.where(swap, across, along)
    second = tl.where(swap, along, across)
    first = single_of_bits(bits_of_single(first) ^ ((turns ^ odd) & 0x80000000))
    second = single_of_bits(bits_of_single(second) ^ (turns & 0x80000000))
    return first, second
