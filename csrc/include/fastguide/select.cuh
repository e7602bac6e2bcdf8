// The choice among the candidates of one row.
#pragma once

#include "categorical.cuh"
#include "math.cuh"
#include "philox.cuh"

namespace fastguide {

struct Choice {
  i64 index;
  double lme;  // nats; alpha = 0: the largest value
  double ess;
};

// log_w [K] holds log-weights without NaN or +inf and is overwritten; u in [0, 1). A row whose
// weights are all zero picks uniformly.
FG_HD Choice choose(double* log_w, i64 num_candidates, bool greedy, double u) {
  const double infinity = bits_double(0x7FF0000000000000ull);
  double top = -infinity;
  i64 best = 0;
  for (i64 k = 0; k < num_candidates; ++k) {
    best = log_w[k] > top ? k : best;
    top = log_w[k] > top ? log_w[k] : top;
  }
  if (top == -infinity) {
    const i64 index = static_cast<i64>(u * static_cast<double>(num_candidates));
    return {index < num_candidates ? index : num_candidates - 1, -infinity, 0.0};
  }
  if (greedy) return {best, top, 1.0};
  double squares = 0.0;
  for (i64 k = 0; k < num_candidates; ++k) log_w[k] = exp_double(log_w[k] - top);
  for (i64 k = 0; k < num_candidates; ++k) squares += log_w[k] * log_w[k];
  const i64 last = cumulate(log_w, num_candidates);
  const double total = log_w[num_candidates - 1];
  return {pick(log_w, num_candidates, last, u),
          top + log_double(total / static_cast<double>(num_candidates)), total * total / squares};
}

}  // namespace fastguide
