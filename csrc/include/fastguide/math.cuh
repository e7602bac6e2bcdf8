// exp, log, cos and sin in double from + - * / alone, without branches: every
// instruction set and backend gives the same bits, and compilers vectorise the loops around them.
#pragma once

#include "portability.cuh"

namespace fastguide {

// yes where `condition`, else no. In integers, because a conditional clamp invites compilers to give
// the clamped case a path of its own, and a loop with two paths is not vectorised.
FG_HD double pick_double(bool condition, double yes, double no) {
  const u64 mask = 0 - static_cast<u64>(condition);
  return bits_double((double_bits(yes) & mask) | (double_bits(no) & ~mask));
}

// exp(x), below 1 ulp of error; 1 at 0, exactly 0 at -inf, NaN at NaN.
FG_HD double exp_double(double x) {
  constexpr double ROUND = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  constexpr double LOG2_E = 0x1.71547652b82fep0;
  constexpr double LN2_HIGH = 0x1.62e42fee00000p-1;  // 33 bits, so k * LN2_HIGH is exact
  constexpr double LN2_LOW = 0x1.a39ef35793c76p-33;
  x = pick_double(x < -746.0, -746.0, x);
  x = pick_double(x > 710.0, 710.0, x);
  const double k = (x * LOG2_E + ROUND) - ROUND;
  const double r = (x - k * LN2_HIGH) - k * LN2_LOW;
  // Taylor polynomial of degree 13: |r| <= ln(2) / 2 leaves 4e-18.
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = (p * r) * r + r + 1.0;
  // 2^k in two factors, so that results below the normal range round once and do not vanish.
  const double k1 = (k * 0.5 + ROUND) - ROUND;
  const double k2 = k - k1;
  const double scale1 = bits_double((double_bits(k1 + ROUND) + 1023) << 52);
  const double scale2 = bits_double((double_bits(k2 + ROUND) + 1023) << 52);
  return p * scale1 * scale2;
}

// log(x) of a positive normal number, below 1 ulp of error away from x = 1.
FG_HD double log_double(double x) {
  constexpr double LN2_HIGH = 0x1.62e42fee00000p-1;
  constexpr double LN2_LOW = 0x1.a39ef35793c76p-33;
  const u64 bits = double_bits(x);
  // Exponent and mantissa so that the mantissa lies in [sqrt(1/2), sqrt(2)).
  const u64 shifted = bits - 0x3FE6A09E667F3BCDull;
  const double k = bits_double(0x4330000000000000ull | ((shifted >> 52) ^ 0x800)) - (0x1p52 + 2048.0);
  const double m = bits_double(bits - (shifted & 0xFFF0000000000000ull));
  // log(m) = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 0.1716: 11 terms leave 3e-18.
  const double f = m - 1.0;
  const double s = f / (m + 1.0);
  const double z = s * s;
  double p = 2.0 / 23.0;
  p = p * z + 2.0 / 21.0;
  p = p * z + 2.0 / 19.0;
  p = p * z + 2.0 / 17.0;
  p = p * z + 2.0 / 15.0;
  p = p * z + 2.0 / 13.0;
  p = p * z + 2.0 / 11.0;
  p = p * z + 2.0 / 9.0;
  p = p * z + 2.0 / 7.0;
  p = p * z + 2.0 / 5.0;
  p = p * z + 2.0 / 3.0;
  // 2 s = f - s f, where f is exact: the leading term carries no rounding of the quotient.
  return k * LN2_HIGH + (f - (s * (f - p * z) - k * LN2_LOW));
}

// Square of the Box-Muller radius of a 32-bit word: -2 ln((word + 1/2) 2^-32).
FG_HD double radius_squared(u64 word) {
  const double w = bits_double(0x4330000000000000ull | word) - 0x1p52;
  return -2.0 * log_double((w + 0.5) * 0x1p-32);
}

struct UnitVector {
  double cos, sin;
};

// cos and sin of 2 pi word 2^-32. The angle is reduced to [-pi/4, pi/4] in integers, which keeps
// both accurate near their zeros.
FG_HD UnitVector turn(u64 word) {
  constexpr double TWO_PI_2_32 = 0x1.921fb54442d18p-30;  // 2 pi 2^-32
  const u64 shifted = word + 0x20000000ull;
  const double angle =
      (bits_double(0x4330000000000000ull | (shifted & 0x3FFFFFFFull)) - (0x1p52 + 0x1p29)) *
      TWO_PI_2_32;
  const double z = angle * angle;
  // Taylor polynomials: |angle| <= pi/4 leaves 1e-18.
  double s = 1.0 / 355687428096000.0;
  s = s * z - 1.0 / 1307674368000.0;
  s = s * z + 1.0 / 6227020800.0;
  s = s * z - 1.0 / 39916800.0;
  s = s * z + 1.0 / 362880.0;
  s = s * z - 1.0 / 5040.0;
  s = s * z + 1.0 / 120.0;
  s = s * z - 1.0 / 6.0;
  const u64 sin = double_bits(angle + angle * (z * s));
  double c = 1.0 / 20922789888000.0;
  c = c * z - 1.0 / 87178291200.0;
  c = c * z + 1.0 / 479001600.0;
  c = c * z - 1.0 / 3628800.0;
  c = c * z + 1.0 / 40320.0;
  c = c * z - 1.0 / 720.0;
  c = c * z + 1.0 / 24.0;
  c = c * z - 0.5;
  const u64 cos = double_bits(1.0 + c * z);
  // Quarter turns: swap after an odd number of them, then flip the signs.
  const u64 odd = 0 - ((shifted >> 30) & 1);
  const u64 swap = (cos ^ sin) & odd;
  const u64 half_turn = ((shifted >> 31) & 1) << 63;
  return {bits_double((cos ^ swap) ^ half_turn ^ (odd << 63)), bits_double((sin ^ swap) ^ half_turn)};
}

}  // namespace fastguide
