// The pieces of a masked prediction that every backend shares.
#pragma once

#include "fault.cuh"
#include "masked_propose.cuh"

namespace fastguide {

// Counter words c2, c3 of a state: 56 bits of its key in place of chain and step, so that equal
// states get equal draws.
struct StateCounter {
  u32 c2, c3;
};

FG_HD StateCounter state_counter(u64 key_low, u32 purpose) {
  return {static_cast<u32>(key_low), static_cast<u32>(((key_low >> 32) & 0xFFFFFFu) << 8) | purpose};
}

// First maximum of logits [V]; a fault code as in `largest_logit`.
template <class T>
FG_HD i32 first_maximum(const T* logits, i64 stride, i64 vocab_size, i64* token) {
  const T infinity = static_cast<T>(bits_double(0x7FF0000000000000ull));
  T top = -infinity;
  i64 best = 0;
  bool bad = false;
  for (i64 v = 0; v < vocab_size; ++v) {
    const T logit = logits[v * stride];
    bad |= !(logit < infinity);
    best = logit > top ? v : best;
    top = logit > top ? logit : top;
  }
  *token = best;
  if (bad) return kLogitFault;
  return top == -infinity ? kNoTokenFault : kNoFault;
}

}  // namespace fastguide
