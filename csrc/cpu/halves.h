// The 16-bit numbers that logits and their gradients may be stored in. Kernels compute with Wide<S>:
// they read S as they go, and round what they write to the nearest, ties to even.
#pragma once

#include <type_traits>

#include "fastguide/normal_single.cuh"

namespace fastguide {

using u16 = unsigned short;

struct Bfloat16 {
  u16 bits;
};
struct Half {
  u16 bits;
};

template <class S>
struct WideOf {
  using Type = S;
};
template <>
struct WideOf<Bfloat16> {
  using Type = float;
};
template <>
struct WideOf<Half> {
  using Type = float;
};
// What numbers stored as S are computed with.
template <class S>
using Wide = typename WideOf<S>::Type;

FG_HD float widened(float x) { return x; }
FG_HD double widened(double x) { return x; }
FG_HD float widened(Bfloat16 x) { return single::bits_float(static_cast<u32>(x.bits) << 16); }
FG_HD float widened(Half x) {
  const u32 size = x.bits & 0x7FFFu, sign = static_cast<u32>(x.bits & 0x8000u) << 16;
  const u32 far = size >= 0x7C00u ? 0x70000000u : 0x38000000u;  // infinity and NaN stay what they are
  const u32 normal = (size << 13) + far;
  const u32 small = single::float_bits(static_cast<float>(static_cast<i32>(size)) * 0x1p-24f);
  return single::bits_float((size < 0x400u ? small : normal) | sign);
}

FG_HD Bfloat16 to_bfloat16(float x) {
  const u32 bits = single::float_bits(x);
  const u32 nearest = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  return {static_cast<u16>(x == x ? nearest : bits >> 16 | 0x40u)};
}
FG_HD Half to_half(float x) {
  const u32 bits = single::float_bits(x), size = bits & 0x7FFFFFFFu, sign = bits >> 16 & 0x8000u;
  u32 nearest = (size - 0x38000000u + 0xFFFu + (size >> 13 & 1u)) >> 13;
  // Adding 1/2 leaves multiples of 2^-24, the step of the smallest numbers.
  if (size < 0x38800000u)
    nearest = single::float_bits(single::bits_float(size) + 0.5f) - 0x3F000000u;
  if (size >= 0x47800000u) nearest = 0x7C00u;
  if (size > 0x7F800000u) nearest = 0x7E00u | (size >> 13 & 0x3FFu);
  return {static_cast<u16>(nearest | sign)};
}

// x as S; a double goes through float.
template <class S, class T>
FG_HD S rounded(T x) {
  if constexpr (std::is_same_v<S, Bfloat16>)
    return to_bfloat16(static_cast<float>(x));
  else if constexpr (std::is_same_v<S, Half>)
    return to_half(static_cast<float>(x));
  else
    return static_cast<S>(x);
}

}  // namespace fastguide
