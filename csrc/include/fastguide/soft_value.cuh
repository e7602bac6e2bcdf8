// Reductions of the inner samples of one row.
#pragma once

#include "math.cuh"

namespace fastguide {

enum SoftValueKind : i32 { kLogMeanExp = 0, kMean = 1, kCvar = 2 };

// Largest of values [S]: what log-mean-exp subtracts first. NaN if one is NaN.
FG_HD double largest_value(const double* values, i64 num_samples) {
  double top = -bits_double(0x7FF0000000000000ull);
  bool nan = false;
  for (i64 s = 0; s < num_samples; ++s) {
    nan |= values[s] != values[s];
    top = values[s] > top ? values[s] : top;
  }
  return nan ? bits_double(0x7FF8000000000000ull) : top;
}

// log-mean-exp is top + alpha log(sum exp((v - top) / alpha) / S), unless alpha or top says more.
FG_HD bool is_its_maximum(double top, double alpha) {
  const double infinity = bits_double(0x7FF0000000000000ull);
  return alpha == 0.0 || top == infinity || top == -infinity || top != top;
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
