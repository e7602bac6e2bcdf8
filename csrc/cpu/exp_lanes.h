// exp_single of a register of lanes, and what such a register is read from and rounded to; once per instruction set (after levels.h).
#include "fastguide/exp_single.cuh"
#include "halves.h"

#if FG_LEVEL > 0

namespace fastguide {
namespace FG_NAMESPACE {

#if FG_LEVEL == 2

constexpr i64 SINGLES = 16;

FG_LANE __m512 repeated(float x) { return _mm512_set1_ps(x); }
FG_LANE __m512 loaded(const float* p) { return _mm512_loadu_ps(p); }
FG_LANE __m512 loaded(const Bfloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m512i words = _mm512_maskz_cvtepu16_epi32(0xFFFF, bits);
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xFFFF, words, 16));
}
FG_LANE __m512 loaded(const Half* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_maskz_cvtph_ps(0xFFFF, bits);
}
FG_LANE void stored(__m512 a, float* p) { _mm512_storeu_ps(p, a); }
FG_LANE void stored(__m512 a, Bfloat16* p) {
  const __m512i bits = _mm512_castps_si512(a), top = _mm512_maskz_srli_epi32(0xFFFF, bits, 16);
  const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m512i nearest = _mm512_mask_or_epi32(_mm512_maskz_srli_epi32(0xFFFF, up, 16), nan, top,
                                               _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xFFFF, nearest));
}
FG_LANE void stored(__m512 a, Half* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xFFFF, a, _MM_FROUND_TO_NEAREST_INT));
}
FG_LANE __m512 plus(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
FG_LANE __m512 minus(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
FG_LANE __m512 times(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
// The second where either is NaN.
FG_LANE __m512 larger(__m512 a, __m512 b) { return _mm512_maskz_max_ps(0xFFFF, a, b); }
// 2^(k / 8) of the integers k in the low bits of `shifted`.
FG_LANE __m512 power_of_eighths(__m512 shifted) {
  const float powers[] = {FG_EIGHTH_POWERS};
  const __m512i k = _mm512_castps_si512(shifted);
  const __m512i whole = _mm512_maskz_slli_epi32(0xFFFF, _mm512_and_si512(k, _mm512_set1_epi32(~7)), 20);
  const __m512 part = _mm512_maskz_permutexvar_ps(0xFFFF, k, _mm512_loadu_ps(powers));
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(part), whole));
}
// a + b, 0 where x is below the least.
FG_LANE __m512 plus_above(__m512 x, __m512 least, __m512 a, __m512 b) {
  return _mm512_maskz_add_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), a, b);
}

#else

constexpr i64 SINGLES = 8;

FG_LANE __m256 repeated(float x) { return _mm256_set1_ps(x); }
FG_LANE __m256 loaded(const float* p) { return _mm256_loadu_ps(p); }
FG_LANE __m256 loaded(const Bfloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
FG_LANE __m256 loaded(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
FG_LANE void stored(__m256 a, float* p) { _mm256_storeu_ps(p, a); }
FG_LANE void stored(__m256 a, Bfloat16* p) {
  const __m256i bits = _mm256_castps_si256(a), top = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
  const __m256i nearest = _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), quiet, nan);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi32(_mm256_castsi256_si128(nearest),
                                    _mm256_extracti128_si256(nearest, 1)));
}
FG_LANE void stored(__m256 a, Half* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
FG_LANE __m256 plus(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
FG_LANE __m256 minus(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
FG_LANE __m256 times(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
FG_LANE __m256 larger(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
FG_LANE __m256 power_of_eighths(__m256 shifted) {
  const float powers[] = {FG_EIGHTH_POWERS};
  const __m256i k = _mm256_castps_si256(shifted);
  const __m256i whole = _mm256_slli_epi32(_mm256_and_si256(k, _mm256_set1_epi32(~7)), 20);
  const __m256 part = _mm256_permutevar8x32_ps(_mm256_loadu_ps(powers), k);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(part), whole));
}
FG_LANE __m256 plus_above(__m256 x, __m256 least, __m256 a, __m256 b) {
  return _mm256_and_ps(_mm256_cmp_ps(x, least, _CMP_NLT_UQ), _mm256_add_ps(a, b));
}

#endif

FG_LANE __m128 four(const float* p) { return _mm_loadu_ps(p); }
FG_LANE __m128 four(const Bfloat16* p) {
  const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
}
FG_LANE __m128 four(const Half* p) {
  return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

template <class Lanes>
FG_LANE Lanes exp_lanes(Lanes x) {
  using namespace exp_parts;
  const Lanes shifted = plus(times(x, repeated(EIGHTS)), repeated(ROUND));
  const Lanes k = minus(shifted, repeated(ROUND));
  const Lanes r =
      minus(minus(x, times(k, repeated(STEP_HIGH))), times(k, repeated(STEP_LOW)));
  const Lanes square = plus(times(r, repeated(CUBE)), repeated(SQUARE));
  const Lanes q = plus(times(times(square, r), r), r);
  const Lanes scale = power_of_eighths(shifted);
  return plus_above(x, repeated(LEAST), times(scale, q), scale);
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide

#endif
