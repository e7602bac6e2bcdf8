// Inverse-CDF draws from unnormalised weights, safe at both ends of the CDF.
#pragma once

#include "portability.cuh"

namespace fastguide {

// Turn weights [n] >= 0 into their running sums in place; returns the last index of a positive
// weight (0 if there is none).
FG_HD i64 cumulate(double* weights, i64 n) {
  double sum = 0.0;
  i64 last = 0;
  for (i64 i = 0; i < n; ++i) {
    last = weights[i] > 0.0 ? i : last;
    sum += weights[i];
    weights[i] = sum;
  }
  return last;
}

// First i with cdf[i] > u * cdf[n - 1], clamped to `last`. The sums do not decrease, so counting
// what lies at or below the target and halving find the same index.
FG_HD i64 pick(const double* cdf, i64 n, i64 last, double u) {
  constexpr i64 FEW = 16;
  const double target = u * cdf[n - 1];
  i64 low = 0, count = n;
  while (count > FEW) {
    const i64 half = count / 2;
    const bool right = cdf[low + half] <= target;
    low = right ? low + half + 1 : low;
    count = right ? count - half - 1 : half;
  }
  i64 below = 0;
  for (i64 i = 0; i < count; ++i) below += cdf[low + i] <= target;
  low += below;
  return low < last ? low : last;
}

}  // namespace fastguide
