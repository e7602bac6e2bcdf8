// Two normals in float32 from a pair of words, written once for every width: the including file
// defines FG_SINGLE, the types Words (32-bit) and Floats, and their primitives. It is included
// once per instruction set, hence no include guard; without FG_SINGLE it is empty.
//
// Only + - * sqrt and fused multiply-adds occur, each correctly rounded, so every width, instruction
// set and backend that uses this file gives the same bits. The worst of 8e9 draws lies 2.36 ulp from
// the exact value, hence 2 ulp from its float32 rounding. Polynomials: minimax fits of relative error
// below 2^-28.

#ifdef FG_SINGLE

// Box-Muller: r cos(theta), r sin(theta) with r = sqrt(-2 ln((w_a + 1/2) 2^-32)) and
// theta = 2 pi w_b 2^-32, as normal_pair in double.
FG_SINGLE void normal_pair_single(Words w_a, Words w_b, Floats* first, Floats* second) {
  // u = (w_a + 1/2) 2^-32. As a signed number w_a gives -2u below one half and 2 - 2u above it, both
  // accurate relative to their distance from 0 and 1.
  const Floats v = fused(to_floats(w_a), splat(-0x1p-31f), splat(-0x1p-32f));
  const Words lower = bits_of(v);
  // u = 2^-k (1 - t / 2) with t in [0, 1]: both terms of -2 ln u are positive and never cancel.
  const Floats mantissa = floats_of((lower & words(0x7FFFFFu)) | words(0x3F800000u));
  const Floats t = pick(lower, splat(2.0f) - mantissa, v);
  const Floats k = to_floats_where(lower, words(256 + 127) - shift_right<23>(lower));
  Floats p = splat(0x1.bef4e2p-9f);
  p = fused(p, t, splat(-0x1.3dbb4ep-7f));
  p = fused(p, t, splat(0x1.fa0746p-7f));
  p = fused(p, t, splat(-0x1.30d15ep-7f));
  p = fused(p, t, splat(0x1.5d39fap-7f));
  p = fused(p, t, splat(0x1.67d0b4p-7f));
  p = fused(p, t, splat(0x1.01ef0cp-5f));
  p = fused(p, t, splat(0x1.5542acp-4f));
  p = fused(p, t, splat(0x1.00001ep-2f));
  const Floats y_part = fused(t * t, p, t);
  const Floats y = fused(k, splat(0x1.62e43p0f), y_part);
  const Floats y_low = product_minus(k, splat(0x1.62e43p0f), y) + y_part;
  // The roundings of y and of its root are taken back: r + r_low, with 1 / (2 r) to 4 % from the
  // exponent.
  const Floats r = square_root(y);
  const Floats half_inverse = floats_of(words(0x5EB759DFu) - shift_right<1>(bits_of(y)));
  const Floats r_low = (minus_product(y, r, r) + y_low) * half_inverse;

  // theta = (quarter turns) pi / 2 + (pi / 4) angle, angle in [-1, 1).
  const Floats angle = to_floats(shift_left<2>(w_b)) * splat(0x1p-31f);
  const Floats z = angle * angle;
  // cos = 1 + c, and r cos = r + (r c + r_low cos).
  Floats c = splat(0x1.d9d57cp-19f);
  c = fused(c, z, splat(-0x1.55c5e0p-12f));
  c = fused(c, z, splat(0x1.03c1dep-6f));
  c = fused(c, z, splat(-0x1.3bd3ccp-2f));
  c = fused(c, z, c * product_minus(angle, angle, z));
  const Floats along = r + fused(r, c, fused(r_low, c, r_low));
  // sin = angle (pi / 4 + s); the product r angle keeps what rounding took from it.
  Floats s = splat(-0x1.2dc84cp-15f);
  s = fused(s, z, splat(0x1.466004p-9f));
  s = fused(s, z, splat(-0x1.4abbbep-4f));
  s = fused(s, z, splat(-0x1.777a5cp-26f));
  const Floats quarter_pi = splat(0x1.921fb6p-1f);
  const Floats product = r * angle;
  const Floats product_low = fused(r_low, angle, product_minus(r, angle, product));
  const Floats across = fused(product, quarter_pi, fused(product_low, quarter_pi, product * s));

  // Quarter turns: swap after an odd number of them, then flip the signs.
  const Words turns = w_b + words(0x20000000u);
  const Words odd = shift_left<1>(turns);
  *first = flip_sign(pick(odd, across, along), turns ^ odd);
  *second = flip_sign(pick(odd, along, across), turns);
}

#endif
