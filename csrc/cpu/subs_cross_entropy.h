// Body of subs_cross_entropy, compiled once per instruction set (levels.h).
#include "site_softmax.h"

namespace fastguide {
namespace FG_NAMESPACE {

// Log normalisers of sites [count] of a small vocabulary; z has room for [V, SITES].
template <class S>
FG_LANE void small_normalisers(const SubsArgs<S>& args, const S* row, const i64* sites, i64 count,
                               double* z, double* normalisers) {
  SiteSums sums;
  double found[SITES];
  for (i64 first = 0; first < count; first += SITES) {
    const i64 some = count - first < SITES ? count - first : SITES;
    load_sites(args.logits, row, sites + first, some, args.vocab_size, 1.0, z);
    weigh_sites(z, args.vocab_size, z, &sums);
    log_normalisers(sums, found);
    for (i64 j = 0; j < some; ++j) normalisers[sites[first + j]] = found[j];
  }
}

template <class S>
FG_TARGET Fault subs_rows(const SubsArgs<S>& args, double* loss, double* normalisers, i64 begin,
                          i64 end) {
  const i64 vocab_size = args.vocab_size;
  const bool large = vocab_size >= LARGE_VOCABULARY;
  std::vector<double> z(large ? 0 : static_cast<size_t>(vocab_size * SITES));
  std::vector<i64> sites(static_cast<size_t>(args.length));
  Fault fault;
  for (i64 n = begin; n < end; ++n) {
    const i64* targets = args.targets + n * args.length;
    const S* row = args.logits.data + n * args.logits.row_stride;
    double* out = normalisers + n * args.length;
    const i64 count = list_sites(args.x + n * args.length, targets, n, args.length, vocab_size,
                                 args.mask_token, false, sites.data(), &fault);
    if (count < 0) return fault;
    for (i64 l = 0; l < args.length; ++l) out[l] = 0.0;
    if (large) {
      for (i64 j = 0; j < count; ++j)
        out[sites[static_cast<size_t>(j)]] =
            log_normaliser(site_sum(row + sites[static_cast<size_t>(j)] * args.logits.site_stride,
                                    args.logits.token_stride, vocab_size, Wide<S>(1)));
    } else {
      small_normalisers(args, row, sites.data(), count, z.data(), out);
    }
    double sum = 0.0;
    for (i64 j = 0; j < count; ++j) {
      const i64 l = sites[static_cast<size_t>(j)];
      const S logit = row[l * args.logits.site_stride + targets[l] * args.logits.token_stride];
      sum += out[l] - static_cast<double>(widened(logit));
    }
    loss[n] = sum;
  }
  return fault;
}

// d_logits of sites [count] of row n; z has room for [V, SITES].
template <class S>
FG_LANE void small_subs_pull(const SubsArgs<S>& args, i64 n, const i64* sites, i64 count,
                             const double* normalisers, double d_loss, double* z, S* d_logits) {
  const i64 vocab_size = args.vocab_size;
  load_sites(args.logits, args.logits.data + n * args.logits.row_stride, sites, count, vocab_size,
             1.0, z);
  double normaliser[SITES];
  for (i64 j = 0; j < SITES; ++j) normaliser[j] = normalisers[sites[j < count ? j : 0]];
  for (i64 v = 0; v < vocab_size; ++v)
    for (i64 j = 0; j < SITES; ++j)
      z[v * SITES + j] = d_loss * exp_double(z[v * SITES + j] - normaliser[j]);
  for (i64 j = 0; j < count; ++j) {
    S* out = d_logits + sites[j] * vocab_size;
    for (i64 v = 0; v < vocab_size; ++v) out[v] = rounded<S>(z[v * SITES + j]);
    const i64 target = args.targets[n * args.length + sites[j]];
    out[target] = rounded<S>(z[target * SITES + j] - d_loss);
  }
}

template <class S>
FG_LANE void large_subs_pull(const SubsArgs<S>& args, i64 n, i64 l, double normaliser,
                             double d_loss, S* out) {
  const i64 stride = args.logits.token_stride, target = args.targets[n * args.length + l];
  const S* site = args.logits.data + n * args.logits.row_stride + l * args.logits.site_stride;
  write_softmax(site, stride, args.vocab_size, normaliser, d_loss, out);
  const double p = exp_double(static_cast<double>(widened(site[target * stride])) - normaliser);
  out[target] = rounded<S>(d_loss * (p - 1.0));
}

template <class S>
FG_TARGET void subs_pull(const SubsArgs<S>& args, const double* normalisers, const Numbers& d_loss,
                         S* d_logits, i64 begin, i64 end) {
  const i64 vocab_size = args.vocab_size, length = args.length;
  const bool large = vocab_size >= LARGE_VOCABULARY;
  std::vector<double> z(large ? 0 : static_cast<size_t>(vocab_size * SITES));
  for (i64 n = begin; n < end; ++n) {
    S* out = d_logits + n * length * vocab_size;
    i64 sites[SITES], count = 0;
    for (i64 l = 0; l < length; ++l) {
      const i64 target = args.targets[n * length + l];
      const bool masked = args.x[n * length + l] == args.mask_token;
      if (!masked || target < 0 || target >= vocab_size) {
        std::memset(out + l * vocab_size, 0, static_cast<size_t>(vocab_size) * sizeof(S));
      } else if (large) {
        large_subs_pull(args, n, l, normalisers[n * length + l], d_loss[n], out + l * vocab_size);
      } else {
        sites[count++] = l;
      }
      if (count == SITES || (l + 1 == length && count > 0)) {
        small_subs_pull(args, n, sites, count, normalisers + n * length, d_loss[n], z.data(), out);
        count = 0;
      }
    }
  }
}

template <class S>
FG_TARGET void slice_sums(const LogitsSlice<S>& slice, double* top, double* total, double* chosen,
                          i64 begin, i64 end) {
  for (i64 r = begin; r < end; ++r) {
    const S* row = slice.data + r * slice.num_tokens;
    const LogitSum sum =
        joined({top[r], total[r]}, site_sum(row, 1, slice.num_tokens, Wide<S>(1)));
    top[r] = sum.top;
    total[r] = sum.total;
    const i64 at = slice.targets[r] - slice.first;
    if (at >= 0 && at < slice.num_tokens) chosen[r] = static_cast<double>(widened(row[at]));
  }
}

template <class S>
FG_TARGET void slice_pull(const LogitsSlice<S>& slice, const double* normalisers,
                          const double* scale, i64 begin, i64 end) {
  for (i64 r = begin; r < end; ++r) {
    S* row = slice.data + r * slice.num_tokens;
    const i64 at = slice.targets[r] - slice.first;
    const bool here = at >= 0 && at < slice.num_tokens;
    const double p = here ? exp_double(static_cast<double>(widened(row[at])) - normalisers[r]) : 0.0;
    write_softmax<S>(row, 1, slice.num_tokens, normalisers[r], scale[r], row);
    if (here) row[at] = rounded<S>(scale[r] * (p - 1.0));
  }
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
