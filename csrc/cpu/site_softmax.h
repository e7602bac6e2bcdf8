// Softmaxes of single sites, for the training ops; included once per instruction set.
//
// Small vocabularies go SITES sites at a time, side by side in float64. Large ones go block by block,
// in the dtype of the logits, or in float32 if that has 16 bits; their sums are float64 and have an
// order of their own, the same everywhere.
#include "fastguide/masked_ppo.cuh"
#include "token_blocks.h"

namespace fastguide {
namespace FG_NAMESPACE {

// From here on a vocabulary is large.
constexpr i64 LARGE_VOCABULARY = 192;
// Strands that the sums of a large one go in.
constexpr i64 STRANDS = 32;
// Sites of a small vocabulary that go side by side; where there are fewer, the first one fills up.
constexpr i64 SITES = 32;

template <class T>
FG_LANE T largest_strand(const T* tops) {
  T top = tops[0];
  for (i64 i = 1; i < STRANDS; ++i) top = tops[i] > top ? tops[i] : top;
  return top;
}

FG_LANE double sum_of_strands(const double* sums) {
  double sum = 0.0;
  for (i64 i = 0; i < STRANDS; ++i) sum += sums[i];
  return sum;
}

template <class T>
FG_LANE void add_tops(const T* z, T* tops) {
  for (i64 b = 0; b < TOKEN_BLOCK; b += STRANDS)
    for (i64 i = 0; i < STRANDS; ++i) tops[i] = z[b + i] > tops[i] ? z[b + i] : tops[i];
}

template <class T>
FG_LANE void add_values(const T* values, double* sums) {
  for (i64 b = 0; b < TOKEN_BLOCK; b += STRANDS)
    for (i64 i = 0; i < STRANDS; ++i) sums[i] += static_cast<double>(values[b + i]);
}

// A vocabulary is summed relative to a pivot, an early logit, in strands that are joined at its end
// only. Where a later logit lies further above the pivot than exponentials can say, it becomes the
// pivot and the sum begins again.
template <class T>
struct SiteStrands {
  T pivot, tops[STRANDS];
  double sums[STRANDS];
};

template <class T>
FG_LANE void start_strands(T pivot, SiteStrands<T>* site) {
  site->pivot = pivot == minus_infinity<T>() ? T(0) : pivot;
  for (i64 i = 0; i < STRANDS; ++i) {
    site->tops[i] = minus_infinity<T>();
    site->sums[i] = 0.0;
  }
}

// The largest of the first block of a site.
template <class S, class T>
FG_LANE T first_top(const S* site, i64 stride, i64 vocab_size, T scale, T* z) {
  T tops[STRANDS];
  for (i64 i = 0; i < STRANDS; ++i) tops[i] = minus_infinity<T>();
  load_block(site, stride, 0, block_count(0, vocab_size), scale, z);
  add_tops(z, tops);
  return largest_strand(tops);
}

// exp(z - pivot) of a block, added to the strands: 16 terms at a time in the dtype of z.
template <class S>
FG_LANE void add_block(const S* logits, SiteStrands<Wide<S>>* site) {
  using T = Wide<S>;
  T e[TOKEN_BLOCK], some[STRANDS] = {};
  const T* z = widened_block(logits, TOKEN_BLOCK, e);
  add_tops(z, site->tops);
  exp_shifted(z, TOKEN_BLOCK, site->pivot, e);
  for (i64 b = 0; b < TOKEN_BLOCK; b += STRANDS)
    for (i64 i = 0; i < STRANDS; ++i) some[i] += e[b + i];
  for (i64 i = 0; i < STRANDS; ++i) site->sums[i] += static_cast<double>(some[i]);
}

#if FG_LEVEL > 0

template <class S>
FG_LANE void add_singles(const S* z, SiteStrands<float>* site) {
  constexpr i64 PARTS = STRANDS / SINGLES;
  const auto pivot = repeated(site->pivot);
  std::remove_const_t<decltype(pivot)> tops[PARTS], some[PARTS];
  for (i64 k = 0; k < PARTS; ++k) {
    tops[k] = loaded(site->tops + k * SINGLES);
    some[k] = repeated(0.0f);
  }
  for (i64 b = 0; b < TOKEN_BLOCK; b += STRANDS)
    for (i64 k = 0; k < PARTS; ++k) {
      const auto x = loaded(z + b + k * SINGLES);
      tops[k] = larger(x, tops[k]);
      some[k] = plus(some[k], exp_lanes(minus(x, pivot)));
    }
  float sums[STRANDS];
  for (i64 k = 0; k < PARTS; ++k) {
    stored(tops[k], site->tops + k * SINGLES);
    stored(some[k], sums + k * SINGLES);
  }
  for (i64 i = 0; i < STRANDS; ++i) site->sums[i] += static_cast<double>(sums[i]);
}
FG_LANE void add_block(const float* z, SiteStrands<float>* site) { add_singles(z, site); }
FG_LANE void add_block(const Bfloat16* z, SiteStrands<float>* site) { add_singles(z, site); }
FG_LANE void add_block(const Half* z, SiteStrands<float>* site) { add_singles(z, site); }

#endif

// As above, and keeps e = exp(z - pivot).
template <class T>
FG_LANE void add_block(const T* z, T* e, SiteStrands<T>* site) {
  add_tops(z, site->tops);
  exp_shifted(z, TOKEN_BLOCK, site->pivot, e);
  add_values(e, site->sums);
}

// False if the pivot was too low; it is raised then.
template <class T>
FG_LANE bool pivot_serves(SiteStrands<T>* site) {
  const T top = largest_strand(site->tops);
  if (!(top - site->pivot > T(60))) return true;
  start_strands(top, site);
  return false;
}

template <class T>
FG_LANE LogitSum strands_sum(const SiteStrands<T>& site) {
  return {static_cast<double>(site.pivot), sum_of_strands(site.sums)};
}

// The sum of a site's vocabulary.
template <class S, class T>
FG_LANE LogitSum site_sum(const S* logits, i64 stride, i64 vocab_size, T scale) {
  T z[TOKEN_BLOCK];
  SiteStrands<T> site;
  start_strands(first_top(logits, stride, vocab_size, scale, z), &site);
  do {
    for (i64 first = 0; first < vocab_size; first += TOKEN_BLOCK) {
      const i64 count = block_count(first, vocab_size);
      // Logits that need nothing done to them stay where they are.
      const bool ready = stride == 1 && scale == T(1) && count == TOKEN_BLOCK;
      if (ready) {
        add_block(logits + first, &site);
      } else {
        load_block(logits, stride, first, count, scale, z);
        add_block(z, &site);
      }
    }
  } while (!pivot_serves(&site));
  return strands_sum(site);
}

// target [V] = factor softmax(logits), given the log normaliser.
template <class S>
FG_LANE void write_softmax(const S* site, i64 stride, i64 vocab_size, double normaliser,
                           double factor, S* target) {
  using T = Wide<S>;
  // The normaliser as two numbers: one to subtract from logits without rounding it, and the rest.
  const T shift = static_cast<T>(normaliser);
  const T rest = static_cast<T>(factor * exp_double(static_cast<double>(shift) - normaliser));
  if (stride == 1) {
    scaled_exp_shifted(site, vocab_size, shift, rest, target);
    return;
  }
  T z[TOKEN_BLOCK];
  for (i64 first = 0; first < vocab_size; first += TOKEN_BLOCK) {
    const i64 count = block_count(first, vocab_size);
    for (i64 i = 0; i < count; ++i) z[i] = widened(site[(first + i) * stride]);
    scaled_exp_shifted(z, count, shift, rest, target + first);
  }
}

#if FG_LEVEL > 0

// Columns [4] of four sites each way; returns how many columns went in fours.
template <class S>
FG_LANE i64 join_fours(const S* const* from, i64 columns, double* z) {
  const i64 whole = columns / 4 * 4;
  for (i64 c = 0; c < whole; c += 4)
    for (i64 j = 0; j < SITES; j += 4) {
      __m128 r0 = four(from[j] + c), r1 = four(from[j + 1] + c);
      __m128 r2 = four(from[j + 2] + c), r3 = four(from[j + 3] + c);
      _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
      _mm256_storeu_pd(z + c * SITES + j, _mm256_cvtps_pd(r0));
      _mm256_storeu_pd(z + (c + 1) * SITES + j, _mm256_cvtps_pd(r1));
      _mm256_storeu_pd(z + (c + 2) * SITES + j, _mm256_cvtps_pd(r2));
      _mm256_storeu_pd(z + (c + 3) * SITES + j, _mm256_cvtps_pd(r3));
    }
  return whole;
}
FG_LANE void part_fours(const double* z, i64 c, float* const* to) {
  __m128 r0 = _mm256_cvtpd_ps(_mm256_loadu_pd(z + c * SITES));
  __m128 r1 = _mm256_cvtpd_ps(_mm256_loadu_pd(z + (c + 1) * SITES));
  __m128 r2 = _mm256_cvtpd_ps(_mm256_loadu_pd(z + (c + 2) * SITES));
  __m128 r3 = _mm256_cvtpd_ps(_mm256_loadu_pd(z + (c + 3) * SITES));
  _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
  _mm_storeu_ps(to[0] + c, r0);
  _mm_storeu_ps(to[1] + c, r1);
  _mm_storeu_ps(to[2] + c, r2);
  _mm_storeu_ps(to[3] + c, r3);
}

#else

template <class S>
FG_LANE i64 join_fours(const S* const*, i64, double*) {
  return 0;
}
FG_LANE void part_fours(const double* z, i64 c, float* const* to) {
  for (i64 i = 0; i < 4; ++i)
    for (i64 j = 0; j < 4; ++j) to[j][c + i] = static_cast<float>(z[(c + i) * SITES + j]);
}

#endif

FG_LANE i64 join_fours(const double* const*, i64, double*) { return 0; }
FG_LANE void part_fours(const double* z, i64 c, double* const* to) {
  for (i64 i = 0; i < 4; ++i)
    for (i64 j = 0; j < 4; ++j) to[j][c + i] = z[(c + i) * SITES + j];
}

// z [columns, SITES] of the columns of sites from[SITES].
template <class S>
FG_LANE void join_sites(const S* const* from, i64 stride, i64 columns, double* z) {
  for (i64 c = stride == 1 ? join_fours(from, columns, z) : 0; c < columns; ++c)
    for (i64 j = 0; j < SITES; ++j)
      z[c * SITES + j] = static_cast<double>(widened(from[j][c * stride]));
}

// The columns of sites to[count] of z [columns, SITES].
template <class T>
FG_LANE void part_sites(const double* z, i64 columns, i64 count, T* const* to) {
  const i64 fours = columns / 4 * 4;
  i64 j = 0;
  for (; j + 4 <= count; j += 4) {
    for (i64 c = 0; c < fours; c += 4) part_fours(z + j, c, to + j);
    for (i64 c = fours; c < columns; ++c)
      for (i64 i = j; i < j + 4; ++i) to[i][c] = static_cast<T>(z[c * SITES + i]);
  }
  for (; j < count; ++j)
    for (i64 c = 0; c < columns; ++c) to[j][c] = static_cast<T>(z[c * SITES + j]);
}

// z [V, SITES]: logits of sites [count], 0 < count <= SITES, divided by the temperature.
template <class S>
FG_LANE void load_sites(const SiteLogits<S>& logits, const S* row, const i64* sites, i64 count,
                        i64 vocab_size, double temperature, double* z) {
  const S* from[SITES];
  for (i64 j = 0; j < SITES; ++j) from[j] = row + sites[j < count ? j : 0] * logits.site_stride;
  join_sites(from, logits.token_stride, vocab_size, z);
  if (temperature != 1.0)
    for (i64 i = 0; i < vocab_size * SITES; ++i) z[i] /= temperature;
}

// Of SITES sites each: the largest logit, or 0 where all are -inf, and the sum of exp(z - pivot).
struct SiteSums {
  double pivot[SITES], total[SITES];
};

// e [V, SITES] = exp(z - pivot), which may take the place of z.
FG_LANE void weigh_sites(const double* z, i64 vocab_size, double* e, SiteSums* sums) {
  double top[SITES], total[SITES];
  for (i64 j = 0; j < SITES; ++j) top[j] = minus_infinity<double>();
  for (i64 v = 0; v < vocab_size; ++v)
    for (i64 j = 0; j < SITES; ++j)
      top[j] = z[v * SITES + j] > top[j] ? z[v * SITES + j] : top[j];
  for (i64 j = 0; j < SITES; ++j) {
    top[j] = pick_double(top[j] == minus_infinity<double>(), 0.0, top[j]);
    total[j] = 0.0;
  }
  for (i64 v = 0; v < vocab_size; ++v)
    for (i64 j = 0; j < SITES; ++j) e[v * SITES + j] = exp_double(z[v * SITES + j] - top[j]);
  for (i64 v = 0; v < vocab_size; ++v)
    for (i64 j = 0; j < SITES; ++j) total[j] += e[v * SITES + j];
  for (i64 j = 0; j < SITES; ++j) {
    sums->pivot[j] = top[j];
    sums->total[j] = total[j];
  }
}

// As log_normaliser, of SITES sites.
FG_LANE void log_normalisers(const SiteSums& sums, double* out) {
  const double nan = bits_double(0x7FF8000000000000ull);
  for (i64 j = 0; j < SITES; ++j)
    out[j] = pick_double(sums.total[j] > 0.0, sums.pivot[j] + log_double(sums.total[j]), nan);
}

// KL of SITES sites from e and z of the policy, z of the reference, and both normalisers.
FG_LANE void site_kls(const double* e, const double* z, const double* z_ref, i64 vocab_size,
                      const SiteSums& sums, const double* normaliser, const double* normaliser_ref,
                      double* kl) {
  double moment[SITES];
  for (i64 j = 0; j < SITES; ++j) moment[j] = 0.0;
  // A token of no weight adds nothing, whatever its logits.
  for (i64 v = 0; v < vocab_size; ++v)
    for (i64 j = 0; j < SITES; ++j) {
      const i64 i = v * SITES + j;
      moment[j] += pick_double(e[i] > 0.0, e[i] * (z[i] - z_ref[i]), 0.0);
    }
  for (i64 j = 0; j < SITES; ++j)
    kl[j] = moment[j] / sums.total[j] - (normaliser[j] - normaliser_ref[j]);
}

// Lists the sites of row [L] that hold the mask; returns how many, or -1 and a fault where an entry
// is neither the mask nor in [0, V). `next` [L], where x is masked: the same.
FG_LANE i64 list_sites(const i64* x, const i64* next, i64 n, i64 length, i64 vocab_size, i64 mask,
                       bool mask_allowed, i64* sites, Fault* fault) {
  i64 count = 0;
  for (i64 l = 0; l < length; ++l) {
    const bool masked = x[l] == mask;
    if (!masked && (x[l] < 0 || x[l] >= vocab_size)) {
      *fault = {kTokenFault, n, l, x[l]};
      return -1;
    }
    if (!masked) continue;
    if (!(mask_allowed && next[l] == mask) && (next[l] < 0 || next[l] >= vocab_size)) {
      *fault = {kTokenFault, n, l, next[l]};
      return -1;
    }
    sites[count++] = l;
  }
  return count;
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
