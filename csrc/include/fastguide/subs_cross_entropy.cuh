// Sums of exponentials of logits that arrive in parts, and what the normaliser makes of them.
#pragma once

#include "exp_single.cuh"
#include "math.cuh"

namespace fastguide {

// total = sum exp(logit - top), top the largest logit so far; -infinity and 0 before the first.
struct LogitSum {
  double top, total;
};

// 1, or what a sum relative to `from` has to be multiplied by to become relative to `to`.
FG_HD double rescaling(double from, double to) {
  return from == to ? 1.0 : exp_double(from - to);
}

// The sums of two disjoint parts of a vocabulary. A part of -inf alone sums to 0 relative to any top.
FG_HD LogitSum joined(LogitSum a, LogitSum b) {
  const double top = b.top > a.top ? b.top : a.top;
  return {top, a.total * rescaling(a.top, top) + b.total * rescaling(b.top, top)};
}

// log of the sum of exponentials; NaN where the softmax is not defined.
FG_HD double log_normaliser(LogitSum sum) {
  return sum.total > 0.0 ? sum.top + log_double(sum.total) : bits_double(0x7FF8000000000000ull);
}

// Exponentials in the dtype of the logits; the sums are float64.
FG_HD float exp_of(float x) { return exp_single(x); }
FG_HD double exp_of(double x) { return exp_double(x); }

}  // namespace fastguide
