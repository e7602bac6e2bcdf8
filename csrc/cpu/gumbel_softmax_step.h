// Body of gumbel_softmax_step, compiled once per instruction set (levels.h).
#include "site_softmax.h"

namespace fastguide {
namespace FG_NAMESPACE {

FG_LANE double log_or_infinity(double x) {
  return x > 0.0 ? log_double(x) : minus_infinity<double>();
}

// Exponential draws of the columns of row n: [L (V + 1)], in a buffer with room for 4 LANES more.
template <class T>
FG_LANE void row_noise(const RelaxedStepArgs<T>& args, i64 n, double* noise) {
  const RoundKeys schedule = round_keys(philox_key(args.seed));
  const Lanes chain = lanes(static_cast<u64>(args.chains[n]));
  const i64 num_elements = args.length * (args.vocab_size + 1);
  for (i64 e = 0; e < num_elements; e += 4 * LANES) {
    const PhiloxLanes block = philox_lanes(count_from(static_cast<u64>(e / 4)), lanes(0), chain,
                                           lanes(args.c3), schedule);
    u64 words[4][LANES];
    store_words(block.w0, words[0]);
    store_words(block.w1, words[1]);
    store_words(block.w2, words[2]);
    store_words(block.w3, words[3]);
    double planes[4][LANES];
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < LANES; ++i) planes[j][i] = exponential_draw(words[j][i]);
    for (int i = 0; i < LANES; ++i)
      for (int j = 0; j < 4; ++j) noise[e + 4 * i + j] = planes[j][i];
  }
}

// SITES sites side by side: [V, SITES], or [V + 1, SITES] of y. p and q are not normalised.
struct RelaxedSites {
  std::vector<double> z, z_ref, p, q, y, x, pull;
  SiteSums sums, sums_ref;
  double normaliser[SITES], normaliser_ref[SITES], kl[SITES];

  explicit RelaxedSites(i64 vocab_size)
      : z(static_cast<size_t>(vocab_size * SITES)),
        z_ref(z.size()),
        p(z.size()),
        q(z.size()),
        y(static_cast<size_t>((vocab_size + 1) * SITES)),
        x(y.size()),
        pull(y.size()) {}
};

// What the sites of row n have in common.
template <class T>
struct RelaxedRow {
  const T *logits, *logits_ref, *x;
  double rho;
  const double* noise;
};

template <class T>
FG_LANE RelaxedRow<T> relaxed_row(const RelaxedStepArgs<T>& args, i64 n, double* noise) {
  row_noise(args, n, noise);
  const T* ref = args.logits_ref.data;
  return {args.logits.data + n * args.logits.row_stride,
          ref == nullptr ? nullptr : ref + n * args.logits_ref.row_stride,
          args.x + n * args.length * (args.vocab_size + 1),
          args.rho[n],
          noise};
}

// Columns of sites become shares of their sums.
FG_LANE void normalise(double* y, i64 columns) {
  double total[SITES];
  for (i64 j = 0; j < SITES; ++j) total[j] = 0.0;
  for (i64 c = 0; c < columns; ++c)
    for (i64 j = 0; j < SITES; ++j) total[j] += y[c * SITES + j];
  for (i64 j = 0; j < SITES; ++j) total[j] = 1.0 / total[j];
  for (i64 c = 0; c < columns; ++c)
    for (i64 j = 0; j < SITES; ++j) y[c * SITES + j] *= total[j];
}

// y: exponential draws E become the softmax of (log q - log E) / tau, without a logarithm where
// 1 / tau is 1 or 2: q / E, or its square. One of the columns is never small.
FG_LANE void race(RelaxedSites& batch, double rho, bool square, i64 vocab_size) {
  double* y = batch.y.data();
  const double* p = batch.p.data();
  const i64 columns = vocab_size + 1;
  double rate[SITES];
  for (i64 j = 0; j < SITES; ++j) rate[j] = rho / batch.sums.total[j];
  for (i64 v = 0; v < vocab_size; ++v)
    for (i64 j = 0; j < SITES; ++j) {
      const i64 i = v * SITES + j;
      y[i] = rate[j] * p[i] / y[i];
    }
  for (i64 i = vocab_size * SITES; i < columns * SITES; ++i) y[i] = (1.0 - rho) / y[i];
  if (square)
    for (i64 i = 0; i < columns * SITES; ++i) y[i] *= y[i];
  normalise(y, columns);
}

FG_LANE void soften(RelaxedSites& batch, double rho, double tau, i64 vocab_size) {
  double* y = batch.y.data();
  const double* z = batch.z.data();
  const i64 columns = vocab_size + 1;
  const double log_rho = log_or_infinity(rho), log_stay = log_or_infinity(1.0 - rho);
  for (i64 i = 0; i < columns * SITES; ++i) y[i] = log_double(y[i]);
  for (i64 v = 0; v < vocab_size; ++v)
    for (i64 j = 0; j < SITES; ++j) {
      const i64 i = v * SITES + j;
      y[i] = (z[i] - batch.normaliser[j] + log_rho - y[i]) / tau;
    }
  for (i64 i = vocab_size * SITES; i < columns * SITES; ++i) y[i] = (log_stay - y[i]) / tau;
  SiteSums sums;
  weigh_sites(y, columns, y, &sums);
  normalise(y, columns);
}

// Fills `batch` for sites [count]; y is normalised, kl is 0 without a reference.
template <class T>
FG_LANE void draw_sites(const RelaxedStepArgs<T>& args, const RelaxedRow<T>& row, const i64* sites,
                        i64 count, RelaxedSites& batch) {
  const i64 vocab_size = args.vocab_size, columns = vocab_size + 1;
  double *z = batch.z.data(), *p = batch.p.data(), *y = batch.y.data();
  load_sites(args.logits, row.logits, sites, count, vocab_size, args.temperature, z);
  weigh_sites(z, vocab_size, p, &batch.sums);
  log_normalisers(batch.sums, batch.normaliser);
  for (i64 j = 0; j < SITES; ++j) batch.normaliser_ref[j] = batch.kl[j] = 0.0;
  if (row.logits_ref != nullptr) {
    double *z_ref = batch.z_ref.data(), *q = batch.q.data();
    load_sites(args.logits_ref, row.logits_ref, sites, count, vocab_size, args.temperature, z_ref);
    weigh_sites(z_ref, vocab_size, q, &batch.sums_ref);
    log_normalisers(batch.sums_ref, batch.normaliser_ref);
    site_kls(p, z, z_ref, vocab_size, batch.sums, batch.normaliser, batch.normaliser_ref, batch.kl);
  }
  const double* noise[SITES];
  for (i64 j = 0; j < SITES; ++j) noise[j] = row.noise + sites[j < count ? j : 0] * columns;
  for (i64 c = 0; c < columns; ++c)
    for (i64 j = 0; j < SITES; ++j) y[c * SITES + j] = noise[j][c];
  if (args.tau == 1.0 || args.tau == 0.5) {
    race(batch, row.rho, args.tau == 0.5, vocab_size);
  } else {
    soften(batch, row.rho, args.tau, vocab_size);
  }
}

template <class T>
FG_LANE void harden(T* out, i64 columns) {
  i64 best = 0;
  for (i64 c = 1; c < columns; ++c) best = out[c] > out[best] ? c : best;
  for (i64 c = 0; c < columns; ++c) out[c] = c == best ? T(1) : T(0);
}

template <class T>
FG_TARGET Fault relaxed_rows(const RelaxedStepArgs<T>& args, bool straight_through, T* out,
                             double* kl, i64 begin, i64 end) {
  const i64 vocab_size = args.vocab_size, columns = vocab_size + 1;
  RelaxedSites batch(vocab_size);
  std::vector<double> noise(static_cast<size_t>(args.length * columns + 4 * LANES));
  std::vector<i64> sites(static_cast<size_t>(args.length));
  for (i64 n = begin; n < end; ++n) {
    if (!fits_counter(args.chains[n])) return {kChainFault, n, -1, args.chains[n]};
    const RelaxedRow<T> row = relaxed_row(args, n, noise.data());
    T* target = out + n * args.length * columns;
    i64 count = 0;
    for (i64 l = 0; l < args.length; ++l)
      if (row.x[l * columns + vocab_size] != T(0)) sites[static_cast<size_t>(count++)] = l;
    // Where nothing is masked the state stays.
    if (args.length > 0)
      std::memcpy(target, row.x, static_cast<size_t>(args.length * columns) * sizeof(T));
    double sum = 0.0;
    for (i64 first = 0; first < count; first += SITES) {
      const i64 some = count - first < SITES ? count - first : SITES;
      const i64* part = sites.data() + first;
      draw_sites(args, row, part, some, batch);
      const T* from[SITES];
      T* to[SITES];
      for (i64 j = 0; j < SITES; ++j) {
        const i64 at = part[j < some ? j : 0] * columns;
        from[j] = row.x + at;
        to[j] = target + at;
      }
      double *x = batch.x.data(), *y = batch.y.data();
      join_sites(from, 1, columns, x);
      const double* share = x + vocab_size * SITES;
      for (i64 c = 0; c < vocab_size; ++c)
        for (i64 j = 0; j < SITES; ++j)
          y[c * SITES + j] = (1.0 - share[j]) * x[c * SITES + j] + share[j] * y[c * SITES + j];
      for (i64 j = 0; j < SITES; ++j) {
        double& last = y[vocab_size * SITES + j];
        last = (1.0 - share[j]) * share[j] + share[j] * last;
      }
      part_sites(y, columns, some, to);
      for (i64 j = 0; j < some; ++j) sum += share[j] * batch.kl[j];
    }
    if (straight_through)
      for (i64 l = 0; l < args.length; ++l) harden(target + l * columns, columns);
    kl[n] = args.rho[n] * sum;
  }
  return {};
}

// Where the gradients of one row go; d_ref is null without a reference.
template <class T>
struct RelaxedPull {
  const T *x, *d_next;
  T *d_logits, *d_x, *d_ref;
  double rate;  // the gradient in kl times rho
};

// Gradients of sites [first, first + count). Overwrites y, p and q by those in log q of the tokens,
// logits and logits of the reference.
template <class T>
FG_LANE void pull_sites(const RelaxedStepArgs<T>& args, RelaxedSites& batch, i64 first, i64 count,
                        const RelaxedPull<T>& row) {
  const i64 vocab_size = args.vocab_size, columns = vocab_size + 1;
  double *y = batch.y.data(), *p = batch.p.data(), *q = batch.q.data();
  const double *z = batch.z.data(), *z_ref = batch.z_ref.data();
  double share[SITES], along[SITES], total[SITES], level[SITES], back[SITES];
  double inverse[SITES], inverse_ref[SITES];
  double *x = batch.x.data(), *pull = batch.pull.data();
  const T *from_x[SITES], *from_next[SITES];
  T *to_x[SITES], *to_logits[SITES], *to_ref[SITES];
  for (i64 j = 0; j < SITES; ++j) {
    const i64 site = first + (j < count ? j : 0);
    from_x[j] = row.x + site * columns;
    from_next[j] = row.d_next + site * columns;
    to_x[j] = row.d_x + site * columns;
    to_logits[j] = row.d_logits + site * vocab_size;
    to_ref[j] = row.d_ref == nullptr ? nullptr : row.d_ref + site * vocab_size;
  }
  join_sites(from_x, 1, columns, x);
  join_sites(from_next, 1, columns, pull);
  double kept[SITES];
  for (i64 j = 0; j < SITES; ++j) {
    share[j] = x[vocab_size * SITES + j];
    kept[j] = 0.0;
    along[j] = total[j] = 0.0;
    level[j] = batch.normaliser[j] - batch.normaliser_ref[j] + batch.kl[j];
    back[j] = row.rate * share[j];
    inverse[j] = 1.0 / batch.sums.total[j];
    if (row.d_ref != nullptr) inverse_ref[j] = 1.0 / batch.sums_ref.total[j];
  }
  for (i64 c = 0; c < columns; ++c)
    for (i64 j = 0; j < SITES; ++j) {
      const i64 i = c * SITES + j;
      along[j] += pull[i] * y[i];
      kept[j] += pull[i] * x[i];
      x[i] = (1.0 - share[j]) * pull[i];
    }
  for (i64 j = 0; j < SITES; ++j) {
    double& last = x[vocab_size * SITES + j];
    last = last + (along[j] - kept[j]) + row.rate * batch.kl[j];
  }
  part_sites(x, columns, count, to_x);
  for (i64 v = 0; v < vocab_size; ++v)
    for (i64 j = 0; j < SITES; ++j) {
      const i64 i = v * SITES + j;
      y[i] *= share[j] / args.tau * (pull[i] - along[j]);
      total[j] += y[i];
    }
  const double over = 1.0 / args.temperature;
  for (i64 v = 0; v < vocab_size; ++v)
    for (i64 j = 0; j < SITES; ++j) {
      const i64 i = v * SITES + j;
      const double share_p = p[i] * inverse[j];
      double slope = -total[j];
      if (row.d_ref != nullptr) {
        slope += back[j] * (z[i] - z_ref[i] - level[j]);
        q[i] = back[j] * (q[i] * inverse_ref[j] - share_p) * over;
      }
      const bool counts = (share_p > 0.0) | (share_p != share_p);
      p[i] = (y[i] + pick_double(counts, share_p * slope, 0.0)) * over;
    }
  part_sites(p, vocab_size, count, to_logits);
  if (row.d_ref != nullptr) part_sites(q, vocab_size, count, to_ref);
}

template <class T>
FG_TARGET void relaxed_pull(const RelaxedStepArgs<T>& args, const T* d_next, const Numbers& d_kl,
                            T* d_logits, T* d_x, T* d_ref, i64 begin, i64 end) {
  const i64 vocab_size = args.vocab_size, columns = vocab_size + 1, length = args.length;
  RelaxedSites batch(vocab_size);
  std::vector<double> noise(static_cast<size_t>(length * columns + 4 * LANES));
  i64 sites[SITES];
  for (i64 n = begin; n < end; ++n) {
    const RelaxedRow<T> row = relaxed_row(args, n, noise.data());
    const RelaxedPull<T> pull = {args.x + n * length * columns,
                                 d_next + n * length * columns,
                                 d_logits + n * length * vocab_size,
                                 d_x + n * length * columns,
                                 d_ref == nullptr ? nullptr : d_ref + n * length * vocab_size,
                                 (d_kl.data == nullptr ? 0.0 : d_kl[n]) * args.rho[n]};
    for (i64 first = 0; first < length; first += SITES) {
      const i64 some = length - first < SITES ? length - first : SITES;
      for (i64 j = 0; j < some; ++j) sites[j] = first + j;
      draw_sites(args, row, sites, some, batch);
      pull_sites(args, batch, first, some, pull);
    }
  }
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
