// Float32 lanes and their normals, once per instruction set (after levels.h and lanes.h). A register
// of words holds the words of Philox blocks in 64-bit lanes, of which the low halves count, or pairs
// of words in 32-bit lanes, two pairs per block in the order of the stream. Every type has REGISTERS
// of them, so that one chain of dependent instructions fills the gaps of the other.
namespace fastguide {
namespace FG_NAMESPACE {

#if FG_LEVEL == 2

constexpr int REGISTERS = 2, REGISTER_BLOCKS = 8;
constexpr __mmask16 ALL_SINGLES = 0xFFFF;

using WordRegister = __m512i;
using FloatRegister = __m512;

FG_LANE __m512i repeat_wide(u64 word) { return _mm512_set1_epi64(static_cast<i64>(word)); }
FG_LANE __m512i count_wide(u64 first) { return count_from(first).v; }
FG_LANE __m512i multiply_wide(__m512i a, __m512i m) { return _mm512_maskz_mul_epu32(ALL, a, m); }
FG_LANE __m512i high_wide(__m512i a) { return _mm512_maskz_srli_epi64(ALL, a, 32); }
FG_LANE __m512i xor2(__m512i a, __m512i b) { return _mm512_xor_si512(a, b); }
FG_LANE __m512i xor3(__m512i a, __m512i b, __m512i c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
// Even words from the low (high) halves of a, odd words from those of b.
FG_LANE __m512i interleave_low(__m512i a, __m512i b) {
  return _mm512_mask_shuffle_epi32(a, 0xAAAA, b, _MM_PERM_CCAA);
}
FG_LANE __m512i interleave_high(__m512i a, __m512i b) {
  return _mm512_mask_shuffle_epi32(b, 0x5555, a, _MM_PERM_DDBB);
}
FG_LANE __m512i repeat_word(u32 x) { return _mm512_set1_epi32(static_cast<i32>(x)); }
FG_LANE __m512i add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
FG_LANE __m512i subtract(__m512i a, __m512i b) { return _mm512_sub_epi32(a, b); }
FG_LANE __m512i bits_and(__m512i a, __m512i b) { return _mm512_and_si512(a, b); }
FG_LANE __m512i bits_or(__m512i a, __m512i b) { return _mm512_or_si512(a, b); }
template <int N>
FG_LANE __m512i left(__m512i a) {
  return _mm512_maskz_slli_epi32(ALL_SINGLES, a, N);
}
template <int N>
FG_LANE __m512i right(__m512i a) {
  return _mm512_maskz_srli_epi32(ALL_SINGLES, a, N);
}
FG_LANE __m512 repeat_float(float x) { return _mm512_set1_ps(x); }
FG_LANE __m512 load_floats(const float* p) { return _mm512_loadu_ps(p); }
FG_LANE void store_floats(__m512 a, float* p) { _mm512_storeu_ps(p, a); }
FG_LANE __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
FG_LANE __m512 subtract(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
FG_LANE __m512 multiply(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
FG_LANE __m512 fuse(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
FG_LANE __m512 fuse_minus(__m512 c, __m512 a, __m512 b) { return _mm512_fnmadd_ps(a, b, c); }
FG_LANE __m512 fuse_subtract(__m512 a, __m512 b, __m512 c) { return _mm512_fmsub_ps(a, b, c); }
FG_LANE __m512 root(__m512 a) { return _mm512_maskz_sqrt_ps(ALL_SINGLES, a); }
FG_LANE __m512 convert(__m512i a) { return _mm512_maskz_cvtepi32_ps(ALL_SINGLES, a); }
FG_LANE __m512 convert_where(__m512i condition, __m512i a) {
  return _mm512_maskz_cvtepi32_ps(_mm512_movepi32_mask(condition), a);
}
FG_LANE __m512i as_words(__m512 a) { return _mm512_castps_si512(a); }
FG_LANE __m512 as_floats(__m512i a) { return _mm512_castsi512_ps(a); }
FG_LANE __m512 choose_by_sign(__m512i condition, __m512 yes, __m512 no) {
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(condition), no, yes);
}
FG_LANE __m512 turn_sign(__m512 x, __m512i sign) {
  return as_floats(_mm512_ternarylogic_epi32(as_words(x), sign, repeat_word(0x80000000u), 0x78));
}
// first[0], second[0], first[1], ...: the lower and the upper half of them.
FG_LANE __m512 lower_pairs(__m512 first, __m512 second) {
  return _mm512_permutex2var_ps(
      first, _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0), second);
}
FG_LANE __m512 upper_pairs(__m512 first, __m512 second) {
  return _mm512_permutex2var_ps(
      first, _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8), second);
}

#elif FG_LEVEL == 1

constexpr int REGISTERS = 2, REGISTER_BLOCKS = 4;

using WordRegister = __m256i;
using FloatRegister = __m256;

FG_LANE __m256i repeat_wide(u64 word) { return _mm256_set1_epi64x(static_cast<i64>(word)); }
FG_LANE __m256i count_wide(u64 first) { return count_from(first).low; }
FG_LANE __m256i multiply_wide(__m256i a, __m256i m) { return _mm256_mul_epu32(a, m); }
FG_LANE __m256i high_wide(__m256i a) { return _mm256_srli_epi64(a, 32); }
FG_LANE __m256i xor2(__m256i a, __m256i b) { return _mm256_xor_si256(a, b); }
FG_LANE __m256i xor3(__m256i a, __m256i b, __m256i c) { return xor2(a, xor2(b, c)); }
FG_LANE __m256i interleave_low(__m256i a, __m256i b) {
  return _mm256_blend_epi32(a, _mm256_shuffle_epi32(b, 0xA0), 0xAA);
}
FG_LANE __m256i interleave_high(__m256i a, __m256i b) {
  return _mm256_blend_epi32(b, _mm256_shuffle_epi32(a, 0xF5), 0x55);
}
FG_LANE __m256i repeat_word(u32 x) { return _mm256_set1_epi32(static_cast<i32>(x)); }
FG_LANE __m256i add(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
FG_LANE __m256i subtract(__m256i a, __m256i b) { return _mm256_sub_epi32(a, b); }
FG_LANE __m256i bits_and(__m256i a, __m256i b) { return _mm256_and_si256(a, b); }
FG_LANE __m256i bits_or(__m256i a, __m256i b) { return _mm256_or_si256(a, b); }
template <int N>
FG_LANE __m256i left(__m256i a) {
  return _mm256_slli_epi32(a, N);
}
template <int N>
FG_LANE __m256i right(__m256i a) {
  return _mm256_srli_epi32(a, N);
}
FG_LANE __m256 repeat_float(float x) { return _mm256_set1_ps(x); }
FG_LANE __m256 load_floats(const float* p) { return _mm256_loadu_ps(p); }
FG_LANE void store_floats(__m256 a, float* p) { _mm256_storeu_ps(p, a); }
FG_LANE __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
FG_LANE __m256 subtract(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
FG_LANE __m256 multiply(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
FG_LANE __m256 fuse(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
FG_LANE __m256 fuse_minus(__m256 c, __m256 a, __m256 b) { return _mm256_fnmadd_ps(a, b, c); }
FG_LANE __m256 fuse_subtract(__m256 a, __m256 b, __m256 c) { return _mm256_fmsub_ps(a, b, c); }
FG_LANE __m256 root(__m256 a) { return _mm256_sqrt_ps(a); }
FG_LANE __m256 convert(__m256i a) { return _mm256_cvtepi32_ps(a); }
FG_LANE __m256 convert_where(__m256i condition, __m256i a) {
  return _mm256_blendv_ps(_mm256_setzero_ps(), _mm256_cvtepi32_ps(a),
                          _mm256_castsi256_ps(condition));
}
FG_LANE __m256i as_words(__m256 a) { return _mm256_castps_si256(a); }
FG_LANE __m256 as_floats(__m256i a) { return _mm256_castsi256_ps(a); }
FG_LANE __m256 choose_by_sign(__m256i condition, __m256 yes, __m256 no) {
  return _mm256_blendv_ps(no, yes, as_floats(condition));
}
FG_LANE __m256 turn_sign(__m256 x, __m256i sign) {
  return as_floats(xor2(as_words(x), bits_and(sign, repeat_word(0x80000000u))));
}
FG_LANE __m256 lower_pairs(__m256 first, __m256 second) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(first, second),
                                _mm256_unpackhi_ps(first, second), 0x20);
}
FG_LANE __m256 upper_pairs(__m256 first, __m256 second) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(first, second),
                                _mm256_unpackhi_ps(first, second), 0x31);
}

#endif

#if FG_LEVEL > 0

struct Words {
  WordRegister v[REGISTERS];
};
struct Floats {
  FloatRegister v[REGISTERS];
};

#define FG_EACH(RESULT, EXPRESSION)                            \
  RESULT r;                                                    \
  for (int i = 0; i < REGISTERS; ++i) r.v[i] = EXPRESSION;     \
  return r

FG_LANE Words operator+(Words a, Words b) { FG_EACH(Words, add(a.v[i], b.v[i])); }
FG_LANE Words operator-(Words a, Words b) { FG_EACH(Words, subtract(a.v[i], b.v[i])); }
FG_LANE Words operator&(Words a, Words b) { FG_EACH(Words, bits_and(a.v[i], b.v[i])); }
FG_LANE Words operator|(Words a, Words b) { FG_EACH(Words, bits_or(a.v[i], b.v[i])); }
FG_LANE Words operator^(Words a, Words b) { FG_EACH(Words, xor2(a.v[i], b.v[i])); }
FG_LANE Words words(u32 x) { FG_EACH(Words, repeat_word(x)); }
template <int N>
FG_LANE Words shift_left(Words a) {
  FG_EACH(Words, left<N>(a.v[i]));
}
template <int N>
FG_LANE Words shift_right(Words a) {
  FG_EACH(Words, right<N>(a.v[i]));
}
FG_LANE Floats operator+(Floats a, Floats b) { FG_EACH(Floats, add(a.v[i], b.v[i])); }
FG_LANE Floats operator-(Floats a, Floats b) { FG_EACH(Floats, subtract(a.v[i], b.v[i])); }
FG_LANE Floats operator*(Floats a, Floats b) { FG_EACH(Floats, multiply(a.v[i], b.v[i])); }
FG_LANE Floats fused(Floats a, Floats b, Floats c) {
  FG_EACH(Floats, fuse(a.v[i], b.v[i], c.v[i]));
}
FG_LANE Floats minus_product(Floats c, Floats a, Floats b) {
  FG_EACH(Floats, fuse_minus(c.v[i], a.v[i], b.v[i]));
}
FG_LANE Floats product_minus(Floats a, Floats b, Floats c) {
  FG_EACH(Floats, fuse_subtract(a.v[i], b.v[i], c.v[i]));
}
FG_LANE Floats splat(float x) { FG_EACH(Floats, repeat_float(x)); }
FG_LANE Floats square_root(Floats a) { FG_EACH(Floats, root(a.v[i])); }
FG_LANE Floats to_floats(Words a) { FG_EACH(Floats, convert(a.v[i])); }
FG_LANE Floats to_floats_where(Words condition, Words a) {
  FG_EACH(Floats, convert_where(condition.v[i], a.v[i]));
}
FG_LANE Words bits_of(Floats a) { FG_EACH(Words, as_words(a.v[i])); }
FG_LANE Floats floats_of(Words a) { FG_EACH(Floats, as_floats(a.v[i])); }
FG_LANE Floats pick(Words condition, Floats yes, Floats no) {
  FG_EACH(Floats, choose_by_sign(condition.v[i], yes.v[i], no.v[i]));
}
FG_LANE Floats flip_sign(Floats x, Words sign) { FG_EACH(Floats, turn_sign(x.v[i], sign.v[i])); }

// Wide lanes.
FG_LANE Words repeat_blocks(u64 word) { FG_EACH(Words, repeat_wide(word)); }
FG_LANE Words count_blocks(u64 first) { FG_EACH(Words, count_wide(first + i * REGISTER_BLOCKS)); }
FG_LANE Words multiply_blocks(Words a, u32 m) { FG_EACH(Words, multiply_wide(a.v[i], repeat_wide(m))); }
FG_LANE Words high(Words a) { FG_EACH(Words, high_wide(a.v[i])); }
FG_LANE Words mix_blocks(Words product, Words word, u64 key) {
  FG_EACH(Words, xor3(high_wide(product.v[i]), word.v[i], repeat_wide(key)));
}

#undef FG_EACH

#define FG_SINGLE FG_LANE
#include "fastguide/normal_single_formula.cuh"
#undef FG_SINGLE

// Normals in the order of the stream: FLOATS to a register.
constexpr int STEP_BLOCKS = REGISTERS * REGISTER_BLOCKS, STEP = 4 * STEP_BLOCKS;
constexpr int FLOATS = 2 * REGISTER_BLOCKS, NORMAL_REGISTERS = STEP / FLOATS;

struct Normals {
  FloatRegister v[NORMAL_REGISTERS];
};

// What the first rounds of Philox make of the counter words that all candidates of a chain share.
// Candidate c1 meets a product only in round 2, and there as a number, not as lanes: two of the ten
// rounds, and half of the third, are done once for all candidates.
struct SharedRounds {
  Words c1, c2, c3, c2_round2;  // with the keys of their rounds
};

FG_LANE SharedRounds shared_rounds(u64 first_block, u32 chain, u32 c3, const RoundKeys& keys) {
  const Words p0 = multiply_blocks(count_blocks(first_block), PHILOX_M0);
  const Words p1 = multiply_blocks(mix_blocks(p0, repeat_blocks(c3), keys.k1[0]), PHILOX_M1);
  const u32 c1_round2 = PHILOX_M1 * chain;
  const Words q0 =
      multiply_blocks(mix_blocks(p1, repeat_blocks(c1_round2), keys.k0[1]), PHILOX_M0);
  return {p1 ^ repeat_blocks(keys.k0[2]), high(q0) ^ repeat_blocks(keys.k1[2]), q0,
          p0 ^ repeat_blocks(keys.k1[1])};
}

// The normals of STEP_BLOCKS blocks for one candidate.
FG_LANE Normals candidate_normals(const SharedRounds& shared, u32 candidate, u32 chain,
                                  const RoundKeys& keys) {
  const u32 chain_high = static_cast<u32>(static_cast<u64>(PHILOX_M1) * chain >> 32);
  const u64 product = static_cast<u64>(PHILOX_M0) *
                      (chain_high ^ candidate ^ static_cast<u32>(keys.k0[0]));
  Words p0, p1 = multiply_blocks(shared.c2_round2 ^ repeat_blocks(product >> 32), PHILOX_M1);
  Words c0 = high(p1) ^ shared.c1;
  Words c1 = p1;
  Words c2 = shared.c2 ^ repeat_blocks(product & 0xFFFFFFFFu);
  Words c3 = shared.c3;
  constexpr int LAST = PHILOX_ROUNDS - 1;
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 6
#endif
  for (int round = 3; round < LAST; ++round) {
    p0 = multiply_blocks(c0, PHILOX_M0);
    p1 = multiply_blocks(c2, PHILOX_M1);
    c0 = mix_blocks(p1, c1, keys.k0[round]);
    c1 = p1;
    c2 = mix_blocks(p0, c3, keys.k1[round]);
    c3 = p0;
  }
  p0 = multiply_blocks(c0, PHILOX_M0);
  p1 = multiply_blocks(c2, PHILOX_M1);
  // The last round puts the pairs (w0, w1) and (w2, w3) of a block side by side.
  const WordRegister key = repeat_wide(keys.k0[LAST] | keys.k1[LAST] << 32);
  Words w_a, w_b;
  for (int i = 0; i < REGISTERS; ++i) {
    w_a.v[i] = xor3(interleave_high(p1.v[i], p0.v[i]), interleave_low(c1.v[i], c3.v[i]), key);
    w_b.v[i] = interleave_low(p1.v[i], p0.v[i]);
  }
  Floats first, second;
  normal_pair_single(w_a, w_b, &first, &second);
  Normals z;
  for (int i = 0; i < REGISTERS; ++i) {
    z.v[2 * i] = lower_pairs(first.v[i], second.v[i]);
    z.v[2 * i + 1] = upper_pairs(first.v[i], second.v[i]);
  }
  return z;
}

#else

constexpr int STEP_BLOCKS = 8, STEP = 4 * STEP_BLOCKS;
constexpr int FLOATS = 1, NORMAL_REGISTERS = STEP;

using FloatRegister = float;

FG_LANE float repeat_float(float x) { return x; }
FG_LANE float load_floats(const float* p) { return *p; }
FG_LANE void store_floats(float a, float* p) { *p = a; }
FG_LANE float fuse(float a, float b, float c) { return single::fused_single(a, b, c); }

struct Normals {
  float v[NORMAL_REGISTERS];
};

struct SharedRounds {
  u32 first_block, c3;
};

FG_LANE SharedRounds shared_rounds(u64 first_block, u32, u32 c3, const RoundKeys&) {
  return {static_cast<u32>(first_block), c3};
}

FG_LANE Normals candidate_normals(const SharedRounds& shared, u32 candidate, u32 chain,
                                  const RoundKeys& keys) {
  const PhiloxKey key = {static_cast<u32>(keys.k0[0]), static_cast<u32>(keys.k1[0])};
  u32 w_a[2 * STEP_BLOCKS], w_b[2 * STEP_BLOCKS];
  for (int i = 0; i < STEP_BLOCKS; ++i) {
    const PhiloxBlock block =
        philox(shared.first_block + static_cast<u32>(i), candidate, chain, shared.c3, key);
    w_a[2 * i] = block.w0;
    w_b[2 * i] = block.w1;
    w_a[2 * i + 1] = block.w2;
    w_b[2 * i + 1] = block.w3;
  }
  float first[2 * STEP_BLOCKS], second[2 * STEP_BLOCKS];
  for (int i = 0; i < 2 * STEP_BLOCKS; ++i) {
    single::Floats a, b;
    single::normal_pair_single({w_a[i]}, {w_b[i]}, &a, &b);
    first[i] = a.v;
    second[i] = b.v;
  }
  Normals z;
  for (int i = 0; i < 2 * STEP_BLOCKS; ++i) {
    z.v[2 * i] = first[i];
    z.v[2 * i + 1] = second[i];
  }
  return z;
}

#endif

}  // namespace FG_NAMESPACE
}  // namespace fastguide
