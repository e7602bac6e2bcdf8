// Body of masked_ppo, compiled once per instruction set (levels.h).
#include "site_softmax.h"

namespace fastguide {
namespace FG_NAMESPACE {

// What sites [N, L, 3] hold of a site.
struct SiteTerms {
  double normaliser, normaliser_ref, kl;
};

// Terms of one site of a large vocabulary; ref is null without a reference.
template <class S>
FG_LANE SiteTerms large_site_terms(const MaskedPpoArgs<S>& args, const S* site, const S* ref) {
  using T = Wide<S>;
  T z[TOKEN_BLOCK], z_ref[TOKEN_BLOCK], e[TOKEN_BLOCK], e_ref[TOKEN_BLOCK];
  const T scale = static_cast<T>(1.0 / args.temperature);
  if (ref == nullptr)
    return {log_normaliser(site_sum(site, args.logits.token_stride, args.vocab_size, scale)), 0.0,
            0.0};
  const i64 stride = args.logits.token_stride, ref_stride = args.logits_ref.token_stride;
  SiteStrands<T> own, other;
  double moments[STRANDS];
  start_strands(first_top(site, stride, args.vocab_size, scale, z), &own);
  start_strands(first_top(ref, ref_stride, args.vocab_size, scale, z), &other);
  do {
    start_strands(own.pivot, &own);
    start_strands(other.pivot, &other);
    for (i64 i = 0; i < STRANDS; ++i) moments[i] = 0.0;
    for (i64 first = 0; first < args.vocab_size; first += TOKEN_BLOCK) {
      const i64 count = block_count(first, args.vocab_size);
      load_block(site, stride, first, count, scale, z);
      load_block(ref, ref_stride, first, count, scale, z_ref);
      add_block(z, e, &own);
      add_block(z_ref, e_ref, &other);
      // A token of no weight adds nothing, whatever its logits.
      for (i64 i = 0; i < TOKEN_BLOCK; ++i) z[i] = e[i] > T(0) ? e[i] * (z[i] - z_ref[i]) : T(0);
      add_values(z, moments);
    }
  } while (!pivot_serves(&own) || !pivot_serves(&other));
  const LogitSum sum = strands_sum(own), sum_ref = strands_sum(other);
  const double normaliser = log_normaliser(sum), normaliser_ref = log_normaliser(sum_ref);
  return {normaliser, normaliser_ref,
          softmax_kl(sum, sum_of_strands(moments), normaliser, normaliser_ref)};
}

// Room for sites of a small vocabulary: [V, SITES] each.
struct SmallSites {
  std::vector<double> z, e, z_ref;

  explicit SmallSites(i64 vocab_size)
      : z(vocab_size < LARGE_VOCABULARY ? static_cast<size_t>(vocab_size * SITES) : 0),
        e(z.size()),
        z_ref(z.size()) {}
};

// Terms of sites [count] of one row of a small vocabulary; ref is null without a reference.
template <class S>
FG_LANE void small_site_terms(const MaskedPpoArgs<S>& args, const S* row, const S* ref,
                              const i64* sites, i64 count, SmallSites& room, SiteTerms* out) {
  const i64 vocab_size = args.vocab_size;
  double *z = room.z.data(), *e = room.e.data(), *z_ref = room.z_ref.data();
  SiteSums sums, sums_ref;
  double normaliser[SITES], normaliser_ref[SITES] = {}, kl[SITES] = {};
  load_sites(args.logits, row, sites, count, vocab_size, args.temperature, z);
  if (ref != nullptr) {
    load_sites(args.logits_ref, ref, sites, count, vocab_size, args.temperature, z_ref);
    weigh_sites(z_ref, vocab_size, e, &sums_ref);
    log_normalisers(sums_ref, normaliser_ref);
  }
  weigh_sites(z, vocab_size, e, &sums);
  log_normalisers(sums, normaliser);
  if (ref != nullptr) site_kls(e, z, z_ref, vocab_size, sums, normaliser, normaliser_ref, kl);
  for (i64 j = 0; j < count; ++j) out[sites[j]] = {normaliser[j], normaliser_ref[j], kl[j]};
}

template <class S>
FG_TARGET Fault masked_ppo_rows(const MaskedPpoArgs<S>& args, const PpoInputs& in,
                                const PpoOutputs& out, double* site_terms, i64 begin, i64 end) {
  const i64 vocab_size = args.vocab_size, length = args.length;
  SmallSites room(vocab_size);
  std::vector<i64> sites(static_cast<size_t>(length));
  Fault fault;
  for (i64 n = begin; n < end; ++n) {
    const i64* next = args.x_next + n * length;
    const i64 count = list_sites(args.x + n * length, next, n, length, vocab_size,
                                 args.mask_token, true, sites.data(), &fault);
    if (count < 0) return fault;
    SiteTerms* terms = reinterpret_cast<SiteTerms*>(site_terms) + n * length;
    for (i64 l = 0; l < length; ++l) terms[l] = {0.0, 0.0, 0.0};
    const S* row = args.logits.data + n * args.logits.row_stride;
    const S* ref = args.logits_ref.data;
    if (ref != nullptr) ref += n * args.logits_ref.row_stride;
    if (vocab_size >= LARGE_VOCABULARY) {
      for (i64 j = 0; j < count; ++j) {
        const i64 l = sites[static_cast<size_t>(j)];
        terms[l] = large_site_terms(
            args, row + l * args.logits.site_stride,
            ref == nullptr ? nullptr : ref + l * args.logits_ref.site_stride);
      }
    } else {
      for (i64 first = 0; first < count; first += SITES)
        small_site_terms(args, row, ref, sites.data() + first,
                         count - first < SITES ? count - first : SITES, room, terms);
    }
    double log_prob = 0.0, kl = 0.0;
    for (i64 j = 0; j < count; ++j) {
      const i64 l = sites[static_cast<size_t>(j)];
      kl += terms[l].kl;
      if (next[l] == args.mask_token) continue;
      const S logit = row[l * args.logits.site_stride + next[l] * args.logits.token_stride];
      log_prob += static_cast<double>(widened(logit)) / args.temperature - terms[l].normaliser;
    }
    write_ppo_terms(in, n, log_prob, ref == nullptr ? 0.0 : args.rho[n] * kl, out);
  }
  return fault;
}

// The pull on one site: that of its token's log-probability and of its KL, over the temperature.
struct SitePull {
  double token, kl;
};

// out [V] of a site of a large vocabulary, without what the token itself gets.
template <class S>
FG_LANE void pull_site(const MaskedPpoArgs<S>& args, const S* site, const S* ref, SiteTerms terms,
                       SitePull pull, S* out) {
  using T = Wide<S>;
  const T scale = static_cast<T>(1.0 / args.temperature);
  const T shift = static_cast<T>(terms.normaliser);
  const double rest = exp_double(static_cast<double>(shift) - terms.normaliser);
  const T token = static_cast<T>(pull.token * rest), kl = static_cast<T>(pull.kl * rest);
  // log p / q - KL = z - z_ref - level.
  const T level = static_cast<T>(terms.normaliser - terms.normaliser_ref + terms.kl);
  const i64 stride = args.logits.token_stride, ref_stride = args.logits_ref.token_stride;
  T z[TOKEN_BLOCK], z_ref[TOKEN_BLOCK], p[TOKEN_BLOCK], room[TOKEN_BLOCK];
  for (i64 first = 0; first < args.vocab_size; first += TOKEN_BLOCK) {
    const i64 count = block_count(first, args.vocab_size);
    load_block(site, stride, first, count, scale, z);
    exp_shifted(z, TOKEN_BLOCK, shift, p);
    T* pulled = place_of_block(out + first, room);
    if (ref == nullptr) {
      for (i64 i = 0; i < count; ++i) pulled[i] = -token * p[i];
    } else {
      load_block(ref, ref_stride, first, count, scale, z_ref);
      for (i64 i = 0; i < count; ++i) {
        const T slope = kl * (z[i] - z_ref[i] - level) - token;
        pulled[i] = p[i] > T(0) || p[i] != p[i] ? p[i] * slope : T(0);
      }
    }
    round_block(pulled, count, out + first);
  }
}

// What a revealed site's own token gets. In float64 from the start: near p = 1 what is left is the
// rounding of the rest.
template <class S>
FG_LANE double pull_token(const MaskedPpoArgs<S>& args, const S* site, const S* ref, i64 token,
                          SiteTerms terms, SitePull pull) {
  const double z =
      static_cast<double>(widened(site[token * args.logits.token_stride])) / args.temperature;
  const double p = exp_double(z - terms.normaliser);
  double slope = 0.0;
  if (ref != nullptr && p > 0.0) {
    const double z_ref =
        static_cast<double>(widened(ref[token * args.logits_ref.token_stride])) / args.temperature;
    slope = p * (z - z_ref - (terms.normaliser - terms.normaliser_ref) - terms.kl);
  }
  return pull.token * (1.0 - p) + pull.kl * slope;
}

// What the sites of one row have in common.
template <class S>
struct PulledRow {
  const S *logits, *logits_ref;  // the latter null without a reference
  const i64* next;               // [L]
  const SiteTerms* terms;        // [L]
  SitePull pull;
  S* out;                        // [L, V]
};

template <class S>
FG_LANE void pull_small_sites(const MaskedPpoArgs<S>& args, const PulledRow<S>& row,
                              const i64* sites, i64 count, SmallSites& room) {
  const i64 vocab_size = args.vocab_size;
  double *z = room.z.data(), *z_ref = room.z_ref.data(), *g = room.e.data();
  double normaliser[SITES], level[SITES], token[SITES];
  load_sites(args.logits, row.logits, sites, count, vocab_size, args.temperature, z);
  for (i64 j = 0; j < SITES; ++j) {
    const i64 l = sites[j < count ? j : 0];
    const SiteTerms terms = row.terms[l];
    normaliser[j] = terms.normaliser;
    level[j] = terms.normaliser - terms.normaliser_ref + terms.kl;
    token[j] = row.next[l] == args.mask_token ? 0.0 : row.pull.token;
  }
  for (i64 v = 0; v < vocab_size; ++v)
    for (i64 j = 0; j < SITES; ++j)
      g[v * SITES + j] = exp_double(z[v * SITES + j] - normaliser[j]);
  if (row.logits_ref == nullptr) {
    for (i64 v = 0; v < vocab_size; ++v)
      for (i64 j = 0; j < SITES; ++j) g[v * SITES + j] *= -token[j];
  } else {
    load_sites(args.logits_ref, row.logits_ref, sites, count, vocab_size, args.temperature, z_ref);
    for (i64 v = 0; v < vocab_size; ++v)
      for (i64 j = 0; j < SITES; ++j) {
        const i64 i = v * SITES + j;
        const double slope = row.pull.kl * (z[i] - z_ref[i] - level[j]) - token[j];
        g[i] = pick_double((g[i] > 0.0) | (g[i] != g[i]), g[i] * slope, 0.0);
      }
  }
  for (i64 j = 0; j < count; ++j) {
    const i64 next = row.next[sites[j]];
    if (next != args.mask_token && next >= 0 && next < vocab_size)
      g[next * SITES + j] += row.pull.token;
    S* out = row.out + sites[j] * vocab_size;
    for (i64 v = 0; v < vocab_size; ++v) out[v] = rounded<S>(g[v * SITES + j]);
  }
}

template <class S>
FG_LANE void pull_large_site(const MaskedPpoArgs<S>& args, const PulledRow<S>& row, i64 l) {
  const S* site = row.logits + l * args.logits.site_stride;
  const S* ref = row.logits_ref;
  if (ref != nullptr) ref += l * args.logits_ref.site_stride;
  const i64 next = row.next[l];
  const bool revealed = next != args.mask_token && next >= 0 && next < args.vocab_size;
  const SitePull pull = {revealed ? row.pull.token : 0.0, row.pull.kl};
  S* out = row.out + l * args.vocab_size;
  pull_site(args, site, ref, row.terms[l], pull, out);
  if (revealed)
    out[next] = rounded<S>(pull_token(args, site, ref, next, row.terms[l], pull));
}

template <class S>
FG_TARGET void masked_ppo_pull(const MaskedPpoArgs<S>& args, const double* site_terms,
                               const PpoPulls& pulls, S* d_logits, i64 begin, i64 end) {
  const i64 vocab_size = args.vocab_size, length = args.length;
  SmallSites room(vocab_size);
  for (i64 n = begin; n < end; ++n) {
    const S* ref = args.logits_ref.data;
    const PulledRow<S> row = {args.logits.data + n * args.logits.row_stride,
                              ref == nullptr ? nullptr : ref + n * args.logits_ref.row_stride,
                              args.x_next + n * length,
                              reinterpret_cast<const SiteTerms*>(site_terms) + n * length,
                              {pull_on_log_prob(pulls, n) / args.temperature,
                               pull_on_kl(pulls, n) * args.rho[n] / args.temperature},
                              d_logits + n * length * vocab_size};
    i64 sites[SITES], count = 0;
    for (i64 l = 0; l < length; ++l) {
      const bool revealed = row.next[l] != args.mask_token;
      if (args.x[n * length + l] != args.mask_token || (!revealed && ref == nullptr)) {
        std::memset(row.out + l * vocab_size, 0, static_cast<size_t>(vocab_size) * sizeof(S));
      } else if (vocab_size >= LARGE_VOCABULARY) {
        pull_large_site(args, row, l);
      } else {
        sites[count++] = l;
      }
      if (count == SITES || (l + 1 == length && count > 0)) {
        pull_small_sites(args, row, sites, count, room);
        count = 0;
      }
    }
  }
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
