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

struct Peak {
  i64 index;  // first on ties
  double top;
};

FG_HD Peak first_peak(const double* log_w, i64 num_candidates) {
  Peak peak = {0, -bits_double(0x7FF0000000000000ull)};
  for (i64 k = 0; k < num_candidates; ++k) {
    const bool higher = log_w[k] > peak.top;
    peak.index = higher ? k : peak.index;
    peak.top = higher ? log_w[k] : peak.top;
  }
  return peak;
}

// Every weight is zero: uniform, with the same draw.
FG_HD Choice choose_any(i64 num_candidates, double u) {
  const i64 index = static_cast<i64>(u * static_cast<double>(num_candidates));
  return {index < num_candidates ? index : num_candidates - 1,
          -bits_double(0x7FF0000000000000ull), 0.0};
}

// weights [K] hold exp(log_w - top), of which one is 1, and are overwritten; u in [0, 1).
FG_HD Choice choose_weighted(double* weights, i64 num_candidates, double top, double u) {
  double squares = 0.0;
  for (i64 k = 0; k < num_candidates; ++k) squares += weights[k] * weights[k];
  const i64 last = cumulate(weights, num_candidates);
  const double total = weights[num_candidates - 1];
  return {pick(weights, num_candidates, last, u),
          top + log_double(total / static_cast<double>(num_candidates)), total * total / squares};
}

}  // namespace fastguide
