// Two normals in float32 from a pair of words: the scalar form, for device code and plain loops.
#pragma once

#include "portability.cuh"

#ifndef __CUDACC_RTC__
#include <cmath>
#endif

namespace fastguide {
namespace single {

FG_HD u32 float_bits(float x) {
#ifdef __CUDA_ARCH__
  return static_cast<u32>(__float_as_int(x));
#else
  u32 bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

FG_HD float bits_float(u32 bits) {
#ifdef __CUDA_ARCH__
  return __int_as_float(static_cast<int>(bits));
#else
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

// a b + c, rounded once.
FG_HD float fused_single(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return std::fma(a, b, c);
#else
  // Without the instruction: the product is exact in double, and rounding the sum twice matters only
  // where double lands half way between two floats (or below the normal floats).
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double addend = static_cast<double>(c);
  const double sum = product + addend;
  const u64 bits = double_bits(sum);
  if ((bits & 0x1FFFFFFF) != 0x10000000 && (bits & 0x7FFFFFFFFFFFFFFF) >= 0x3810000000000000)
    return static_cast<float>(sum);
  // There the sum is rounded to odd, which makes the second rounding harmless (Boldo, Melquiond,
  // "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
  const double part = sum - product;
  const double error = (product - (sum - part)) + (addend - part);
  if (!(error != 0.0) || (bits & 1) != 0) return static_cast<float>(sum);
  // The neighbour on the side of the error: away from zero where both have one sign.
  return static_cast<float>(bits_double((double_bits(error) ^ bits) >> 63 ? bits - 1 : bits + 1));
#endif
}

struct Floats {
  float v;
};
struct Words {
  u32 v;
};

FG_HD Floats splat(float x) { return {x}; }
FG_HD Words words(u32 x) { return {x}; }
FG_HD Floats operator+(Floats a, Floats b) { return {a.v + b.v}; }
FG_HD Floats operator-(Floats a, Floats b) { return {a.v - b.v}; }
FG_HD Floats operator*(Floats a, Floats b) { return {a.v * b.v}; }
FG_HD Floats fused(Floats a, Floats b, Floats c) { return {fused_single(a.v, b.v, c.v)}; }
// c - a b and a b - c, rounded once.
FG_HD Floats minus_product(Floats c, Floats a, Floats b) {
  return {fused_single(-a.v, b.v, c.v)};
}
FG_HD Floats product_minus(Floats a, Floats b, Floats c) {
  return {fused_single(a.v, b.v, -c.v)};
}
FG_HD Floats square_root(Floats a) {
#ifdef __CUDA_ARCH__
  return {__fsqrt_rn(a.v)};
#else
  return {std::sqrt(a.v)};
#endif
}
FG_HD Words operator+(Words a, Words b) { return {a.v + b.v}; }
FG_HD Words operator-(Words a, Words b) { return {a.v - b.v}; }
FG_HD Words operator&(Words a, Words b) { return {a.v & b.v}; }
FG_HD Words operator|(Words a, Words b) { return {a.v | b.v}; }
FG_HD Words operator^(Words a, Words b) { return {a.v ^ b.v}; }
template <int N>
FG_HD Words shift_left(Words a) {
  return {a.v << N};
}
template <int N>
FG_HD Words shift_right(Words a) {
  return {a.v >> N};
}
// Of the words as signed numbers.
FG_HD Floats to_floats(Words a) { return {static_cast<float>(static_cast<i32>(a.v))}; }
// As to_floats where the top bit of `condition` is set, else 0.
FG_HD Floats to_floats_where(Words condition, Words a) {
  return {condition.v >> 31 ? to_floats(a).v : 0.0f};
}
FG_HD Words bits_of(Floats a) { return {float_bits(a.v)}; }
FG_HD Floats floats_of(Words a) { return {bits_float(a.v)}; }
// `yes` where the top bit of `condition` is set.
FG_HD Floats pick(Words condition, Floats yes, Floats no) { return condition.v >> 31 ? yes : no; }
// The sign of x turned where the top bit of `sign` is set.
FG_HD Floats flip_sign(Floats x, Words sign) {
  return {bits_float(float_bits(x.v) ^ (sign.v & 0x80000000u))};
}

#define FG_SINGLE FG_HD
#include "normal_single_formula.cuh"
#undef FG_SINGLE

}  // namespace single
}  // namespace fastguide
