// exp in float32 from + - * and a small table, without branches: every instruction set gives the
// same bits.
#pragma once

#include "normal_single.cuh"

namespace fastguide {

// exp(x) = 2^e 2^(j / 8) exp(r) with 8 e + j the integer k nearest to 8 x / ln 2.
namespace exp_parts {

constexpr float ROUND = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
constexpr float EIGHTS = 0x1.715476p3f;  // 8 / ln 2
constexpr float STEP_HIGH = 0x1.62ep-4f;  // ln 2 / 8 in 12 bits, so k * STEP_HIGH is exact
constexpr float STEP_LOW = 0x1.0bfbe8p-18f;
// exp(r) = 1 + r + SQUARE r^2 + CUBE r^3 with the least relative error for |r| <= ln 2 / 16: 3e-8.
constexpr float SQUARE = 0x1.000878p-1f, CUBE = 0x1.555658p-3f;
constexpr float LEAST = -87.0f;

}  // namespace exp_parts

// 2^(j / 8), twice: registers of sixteen lanes look it up by four bits.
#define FG_EIGHTH_POWERS                                                                      \
  0x1p0f, 0x1.172b84p0f, 0x1.306fe0p0f, 0x1.4bfdaep0f, 0x1.6a09e6p0f, 0x1.8ace54p0f,          \
      0x1.ae89fap0f, 0x1.d5818ep0f, 0x1p0f, 0x1.172b84p0f, 0x1.306fe0p0f, 0x1.4bfdaep0f,      \
      0x1.6a09e6p0f, 0x1.8ace54p0f, 0x1.ae89fap0f, 0x1.d5818ep0f

// What is left of x besides k: exp(r) - 1, and a float whose low bits hold k.
struct ExpParts {
  float rest, shifted;
};

FG_HD ExpParts split_exp(float x) {
  using namespace exp_parts;
  const float shifted = x * EIGHTS + ROUND;
  const float k = shifted - ROUND;
  const float r = (x - k * STEP_HIGH) - k * STEP_LOW;
  return {((r * CUBE + SQUARE) * r) * r + r, shifted};
}

FG_HD float power_of_eighths(float shifted) {
  constexpr float POWERS[] = {FG_EIGHTH_POWERS};
  const u32 k = single::float_bits(shifted);
  return single::bits_float(single::float_bits(POWERS[k & 7]) + ((k & ~7u) << 20));
}

FG_HD float joined_exp(float x, float rest, float scale) {
  const u32 kept = static_cast<u32>(x < exp_parts::LEAST) - 1u;
  return single::bits_float(single::float_bits(scale * rest + scale) & kept);
}

// exp(x) of x below 88, within 1.4 ulp; 1 at 0, 0 below -87, NaN at NaN.
FG_HD float exp_single(float x) {
  const ExpParts parts = split_exp(x);
  return joined_exp(x, parts.rest, power_of_eighths(parts.shifted));
}

}  // namespace fastguide
