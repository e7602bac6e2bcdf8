// Reductions of the inner samples of one row.
#pragma once

#include "math.cuh"

namespace fastguide {

enum SoftValueKind : i32 { kLogMeanExp = 0, kMean = 1, kCvar = 2 };

// alpha log mean exp(values / alpha) of values [S]; alpha = 0: the maximum. NaN gives NaN.
FG_HD double log_mean_exp(const double* values, i64 num_samples, double alpha) {
  const double infinity = bits_double(0x7FF0000000000000ull);
  double top = -infinity;
  bool nan = false;
  for (i64 s = 0; s < num_samples; ++s) {
    nan |= values[s] != values[s];
    top = values[s] > top ? values[s] : top;
  }
  if (nan) return bits_double(0x7FF8000000000000ull);
  if (alpha == 0.0 || top == infinity || top == -infinity) return top;
  double sum = 0.0;
  for (i64 s = 0; s < num_samples; ++s) sum += exp_double((values[s] - top) / alpha);
  return top + alpha * log_double(sum / static_cast<double>(num_samples));
}

// Mean of the worst tau share of ascending values [S], the last one in part.
FG_HD double cvar_of_sorted(const double* values, i64 num_samples, double tau) {
  const double share = tau * static_cast<double>(num_samples);
  double sum = 0.0;
  for (i64 s = 0; s < num_samples; ++s) {
    const double left = share - static_cast<double>(s);
    if (left <= 0.0) break;
    sum += values[s] * (left < 1.0 ? left : 1.0);
  }
  return sum / share;
}

}  // namespace fastguide
