// exp in float32 from + - * alone, without branches: every instruction set gives the same bits, and
// compilers vectorise the loops around it.
#pragma once

#include "normal_single.cuh"

namespace fastguide {

// exp(x) of x below 88, within 2 ulp; 1 at 0, 0 below -87, NaN at NaN.
FG_HD float exp_single(float x) {
  constexpr float ROUND = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  constexpr float LOG2_E = 0x1.715476p0f;
  constexpr float LN2_HIGH = 0x1.62e4p-1f;  // 15 bits, so k * LN2_HIGH is exact
  constexpr float LN2_LOW = 0x1.7f7d1cp-20f;
  const u32 kept = static_cast<u32>(x < -87.0f) - 1u;
  x = single::bits_float(single::float_bits(x) & kept);
  const float shifted = x * LOG2_E + ROUND;
  const float k = shifted - ROUND;
  const float r = (x - k * LN2_HIGH) - k * LN2_LOW;
  // Taylor polynomial of degree 7: |r| <= ln(2) / 2 leaves 5e-9.
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = (p * r) * r + r + 1.0f;
  const float scale = single::bits_float((single::float_bits(shifted) + 127u) << 23);
  return single::bits_float(single::float_bits(p * scale) & kept);
}

}  // namespace fastguide
