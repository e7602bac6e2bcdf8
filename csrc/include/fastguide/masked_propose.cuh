// The pieces of a masked proposal that every backend shares.
#pragma once

#include "categorical.cuh"
#include "fault.cuh"
#include "masked_keys.cuh"
#include "math.cuh"
#include "philox.cuh"

namespace fastguide {

// Largest of logits [V]; a fault code if one is NaN or +inf, or if all are -inf.
template <class T>
FG_HD i32 largest_logit(const T* logits, i64 stride, i64 vocab_size, double* largest) {
  const T infinity = static_cast<T>(bits_double(0x7FF0000000000000ull));
  T top = -infinity;
  bool bad = false;
  for (i64 v = 0; v < vocab_size; ++v) {
    const T logit = logits[v * stride];
    bad |= !(logit < infinity);
    top = logit > top ? logit : top;
  }
  *largest = static_cast<double>(top);
  if (bad) return kLogitFault;
  return top == -infinity ? kNoTokenFault : kNoFault;
}

}  // namespace fastguide
