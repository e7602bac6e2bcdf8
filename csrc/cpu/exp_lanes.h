// exp_single of a register of lanes, once per instruction set (after levels.h).
#include "fastguide/exp_single.cuh"

#if FG_LEVEL > 0

namespace fastguide {
namespace FG_NAMESPACE {

#if FG_LEVEL == 2

constexpr i64 SINGLES = 16;

FG_LANE __m512 repeated(float x) { return _mm512_set1_ps(x); }
FG_LANE __m512 loaded(const float* p) { return _mm512_loadu_ps(p); }
FG_LANE void stored(__m512 a, float* p) { _mm512_storeu_ps(p, a); }
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
FG_LANE void stored(__m256 a, float* p) { _mm256_storeu_ps(p, a); }
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
