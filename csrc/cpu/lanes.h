// Eight Philox blocks side by side. Each 32-bit word has a 64-bit lane of its own; only the low
// half of a lane counts, because the widening multiply ignores the high half. So a round costs two
// multiplies, two shifts and four XORs for eight (AVX-512) or four (AVX2) blocks.
#include <cmath>

#include "fastguide/philox.cuh"

namespace fastguide {
namespace FG_NAMESPACE {

constexpr int LANES = 8;

#if FG_LEVEL == 2

// The zero-masking spellings with a full mask are the plain instructions; the plain spellings make
// GCC 12 warn about uninitialised values inside its own header.
constexpr __mmask8 ALL = 0xFF;

struct Lanes {
  __m512i v;
};

FG_LANE Lanes lanes(u64 word) { return {_mm512_set1_epi64(static_cast<i64>(word))}; }
FG_LANE Lanes load_words(const u32* words) {
  return {_mm512_maskz_cvtepu32_epi64(ALL, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)))};
}
// Whole 64-bit entries: as counter words their high halves do not count.
FG_LANE Lanes load_wide(const i64* entries) { return {_mm512_loadu_si512(entries)}; }
FG_LANE void store_wide(Lanes a, u64* entries) { _mm512_storeu_si512(entries, a.v); }
FG_LANE Lanes high_words(Lanes a) { return {_mm512_maskz_srli_epi64(ALL, a.v, 32)}; }
FG_LANE Lanes operator^(Lanes a, Lanes b) { return {_mm512_xor_si512(a.v, b.v)}; }
// low | high << 32 of the words in each lane.
FG_LANE Lanes join_words(Lanes low, Lanes high) {
  const __m512i top = _mm512_maskz_slli_epi64(ALL, high.v, 32);
  return {_mm512_or_si512(top, _mm512_and_si512(low.v, _mm512_set1_epi64(0xFFFFFFFF)))};
}
FG_LANE Lanes count_from(u64 first) {
  return {_mm512_add_epi64(_mm512_set1_epi64(static_cast<i64>(first)),
                           _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0))};
}
FG_LANE void store_words(Lanes a, u64* words) {
  _mm512_storeu_si512(words, _mm512_and_si512(a.v, _mm512_set1_epi64(0xFFFFFFFF)));
}
// Bit i: the word of lane i is below the threshold, which may be 2^32.
FG_LANE u32 lanes_below(Lanes a, u64 threshold) {
  const __m512i word = _mm512_and_si512(a.v, _mm512_set1_epi64(0xFFFFFFFF));
  return _mm512_cmplt_epu64_mask(word, _mm512_set1_epi64(static_cast<i64>(threshold)));
}
// Bit i of is_mask: x[i] == mask; of is_token: 0 <= x[i] < vocab_size. Reads x[0], ..., x[7].
FG_LANE void classify_tokens(const i64* x, i64 mask, i64 vocab_size, u32* is_mask, u32* is_token) {
  const __m512i v = _mm512_loadu_si512(x);
  *is_mask = _mm512_cmpeq_epi64_mask(v, _mm512_set1_epi64(mask));
  *is_token = _mm512_cmplt_epu64_mask(v, _mm512_set1_epi64(vocab_size));
}
FG_LANE Lanes multiply(Lanes a, Lanes m) { return {_mm512_maskz_mul_epu32(ALL, a.v, m.v)}; }
FG_LANE void square_roots(double* x) {
  _mm512_storeu_pd(x, _mm512_maskz_sqrt_pd(ALL, _mm512_loadu_pd(x)));
}
FG_LANE Lanes mix(Lanes product, Lanes word, Lanes key) {
  const __m512i high = _mm512_maskz_srli_epi64(ALL, product.v, 32);
  return {_mm512_ternarylogic_epi64(high, word.v, key.v, 0x96)};
}

#elif FG_LEVEL == 1

struct Lanes {
  __m256i low, high;
};

FG_LANE Lanes lanes(u64 word) {
  const __m256i v = _mm256_set1_epi64x(static_cast<i64>(word));
  return {v, v};
}
FG_LANE Lanes load_words(const u32* words) {
  const __m128i* p = reinterpret_cast<const __m128i*>(words);
  return {_mm256_cvtepu32_epi64(_mm_loadu_si128(p)), _mm256_cvtepu32_epi64(_mm_loadu_si128(p + 1))};
}
FG_LANE Lanes load_wide(const i64* entries) {
  const __m256i* p = reinterpret_cast<const __m256i*>(entries);
  return {_mm256_loadu_si256(p), _mm256_loadu_si256(p + 1)};
}
FG_LANE void store_wide(Lanes a, u64* entries) {
  __m256i* p = reinterpret_cast<__m256i*>(entries);
  _mm256_storeu_si256(p, a.low);
  _mm256_storeu_si256(p + 1, a.high);
}
FG_LANE Lanes high_words(Lanes a) {
  return {_mm256_srli_epi64(a.low, 32), _mm256_srli_epi64(a.high, 32)};
}
FG_LANE Lanes operator^(Lanes a, Lanes b) {
  return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
}
FG_LANE Lanes join_words(Lanes low, Lanes high) {
  const __m256i word = _mm256_set1_epi64x(0xFFFFFFFF);
  return {_mm256_or_si256(_mm256_slli_epi64(high.low, 32), _mm256_and_si256(low.low, word)),
          _mm256_or_si256(_mm256_slli_epi64(high.high, 32), _mm256_and_si256(low.high, word))};
}
FG_LANE Lanes count_from(u64 first) {
  const __m256i v = _mm256_set1_epi64x(static_cast<i64>(first));
  return {_mm256_add_epi64(v, _mm256_set_epi64x(3, 2, 1, 0)),
          _mm256_add_epi64(v, _mm256_set_epi64x(7, 6, 5, 4))};
}
FG_LANE void store_words(Lanes a, u64* words) {
  const __m256i low = _mm256_set1_epi64x(0xFFFFFFFF);
  __m256i* p = reinterpret_cast<__m256i*>(words);
  _mm256_storeu_si256(p, _mm256_and_si256(a.low, low));
  _mm256_storeu_si256(p + 1, _mm256_and_si256(a.high, low));
}
FG_LANE u32 sign_bits(__m256i low, __m256i high) {
  return static_cast<u32>(_mm256_movemask_pd(_mm256_castsi256_pd(low)) |
                          _mm256_movemask_pd(_mm256_castsi256_pd(high)) << 4);
}
FG_LANE u32 lanes_below(Lanes a, u64 threshold) {
  const __m256i low = _mm256_set1_epi64x(0xFFFFFFFF);
  const __m256i t = _mm256_set1_epi64x(static_cast<i64>(threshold));
  const __m256i x = _mm256_cmpgt_epi64(t, _mm256_and_si256(a.low, low));
  const __m256i y = _mm256_cmpgt_epi64(t, _mm256_and_si256(a.high, low));
  return sign_bits(x, y);
}
FG_LANE void classify_tokens(const i64* x, i64 mask, i64 vocab_size, u32* is_mask, u32* is_token) {
  const __m256i* p = reinterpret_cast<const __m256i*>(x);
  const __m256i low = _mm256_loadu_si256(p), high = _mm256_loadu_si256(p + 1);
  const __m256i m = _mm256_set1_epi64x(mask), v = _mm256_set1_epi64x(vocab_size);
  *is_mask = sign_bits(_mm256_cmpeq_epi64(low, m), _mm256_cmpeq_epi64(high, m));
  *is_token = sign_bits(_mm256_cmpgt_epi64(v, low), _mm256_cmpgt_epi64(v, high)) &
              ~sign_bits(low, high);
}
FG_LANE Lanes multiply(Lanes a, Lanes m) {
  return {_mm256_mul_epu32(a.low, m.low), _mm256_mul_epu32(a.high, m.high)};
}
FG_LANE void square_roots(double* x) {
  _mm256_storeu_pd(x, _mm256_sqrt_pd(_mm256_loadu_pd(x)));
  _mm256_storeu_pd(x + 4, _mm256_sqrt_pd(_mm256_loadu_pd(x + 4)));
}
FG_LANE Lanes mix(Lanes product, Lanes word, Lanes key) {
  return {_mm256_xor_si256(_mm256_srli_epi64(product.low, 32), _mm256_xor_si256(word.low, key.low)),
          _mm256_xor_si256(_mm256_srli_epi64(product.high, 32),
                           _mm256_xor_si256(word.high, key.high))};
}

#else

struct Lanes {
  u64 v[LANES];
};

FG_LANE Lanes lanes(u64 word) {
  Lanes a;
  for (int i = 0; i < LANES; ++i) a.v[i] = word;
  return a;
}
FG_LANE Lanes load_words(const u32* words) {
  Lanes a;
  for (int i = 0; i < LANES; ++i) a.v[i] = words[i];
  return a;
}
FG_LANE Lanes load_wide(const i64* entries) {
  Lanes a;
  for (int i = 0; i < LANES; ++i) a.v[i] = static_cast<u64>(entries[i]);
  return a;
}
FG_LANE void store_wide(const Lanes& a, u64* entries) {
  for (int i = 0; i < LANES; ++i) entries[i] = a.v[i];
}
FG_LANE Lanes high_words(const Lanes& a) {
  Lanes b;
  for (int i = 0; i < LANES; ++i) b.v[i] = a.v[i] >> 32;
  return b;
}
FG_LANE Lanes operator^(const Lanes& a, const Lanes& b) {
  Lanes c;
  for (int i = 0; i < LANES; ++i) c.v[i] = a.v[i] ^ b.v[i];
  return c;
}
FG_LANE Lanes join_words(const Lanes& low, const Lanes& high) {
  Lanes a;
  for (int i = 0; i < LANES; ++i) a.v[i] = (low.v[i] & 0xFFFFFFFFu) | high.v[i] << 32;
  return a;
}
FG_LANE Lanes count_from(u64 first) {
  Lanes a;
  for (int i = 0; i < LANES; ++i) a.v[i] = first + static_cast<u64>(i);
  return a;
}
FG_LANE void store_words(const Lanes& a, u64* words) {
  for (int i = 0; i < LANES; ++i) words[i] = a.v[i] & 0xFFFFFFFFu;
}
FG_LANE u32 lanes_below(const Lanes& a, u64 threshold) {
  u32 bits = 0;
  for (int i = 0; i < LANES; ++i) bits |= static_cast<u32>((a.v[i] & 0xFFFFFFFFu) < threshold) << i;
  return bits;
}
FG_LANE void square_roots(double* x) {
  for (int i = 0; i < LANES; ++i) x[i] = std::sqrt(x[i]);
}

#endif

struct PhiloxLanes {
  Lanes w0, w1, w2, w3;
};

#if FG_LEVEL > 0

FG_LANE PhiloxLanes philox_lanes(Lanes c0, Lanes c1, Lanes c2, Lanes c3, const RoundKeys& schedule) {
  const Lanes m0 = lanes(PHILOX_M0), m1 = lanes(PHILOX_M1);
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    const Lanes p0 = multiply(c0, m0);
    const Lanes p1 = multiply(c2, m1);
    c0 = mix(p1, c1, lanes(schedule.k0[round]));
    c1 = p1;
    c2 = mix(p0, c3, lanes(schedule.k1[round]));
    c3 = p0;
  }
  return {c0, c1, c2, c3};
}

#else

// One block after the other: scalar registers hold a block, where eight at once would spill.
FG_LANE PhiloxLanes philox_lanes(const Lanes& c0, const Lanes& c1, const Lanes& c2, const Lanes& c3,
                                 const RoundKeys& schedule) {
  const PhiloxKey key = {static_cast<u32>(schedule.k0[0]), static_cast<u32>(schedule.k1[0])};
  PhiloxLanes out;
  for (int i = 0; i < LANES; ++i) {
    const PhiloxBlock block = philox(static_cast<u32>(c0.v[i]), static_cast<u32>(c1.v[i]),
                                     static_cast<u32>(c2.v[i]), static_cast<u32>(c3.v[i]), key);
    out.w0.v[i] = block.w0;
    out.w1.v[i] = block.w1;
    out.w2.v[i] = block.w2;
    out.w3.v[i] = block.w3;
  }
  return out;
}

#endif

}  // namespace FG_NAMESPACE
}  // namespace fastguide
