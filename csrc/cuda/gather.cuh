// Copies of what a chosen row takes along, by a group of neighbouring threads.
#pragma once

#include "device.cuh"

namespace fastguide {

struct GatherItem {
  const char* source;  // [N, K, ...], or [U, ...] when index is given
  i64 row_stride_bytes, candidate_stride_bytes;
  i64 inner_bytes;      // of one contiguous item
  const i64* index;     // [N, K] contiguous, or null
  i64 num_source_rows;  // U
  char* target;         // [N, ...] contiguous
  i64 word_bytes;       // 16, 8, 4 or 1: divides every address and stride above
};

constexpr u32 MAX_GATHER_ITEMS = 16;

struct alignas(16) Word16 {
  u64 low, high;
};

template <class Word>
__device__ void copy_words(const char* source, char* target, i64 bytes, i64 thread, i64 threads) {
  const Word* from = reinterpret_cast<const Word*>(source);
  Word* to = reinterpret_cast<Word*>(target);
  const i64 words = bytes / static_cast<i64>(sizeof(Word));
  // Four loads in flight per thread: copies are bound by latency otherwise.
  i64 w = thread;
  for (; w + 3 * threads < words; w += 4 * threads) {
    const Word a = from[w], b = from[w + threads], c = from[w + 2 * threads],
               d = from[w + 3 * threads];
    to[w] = a;
    to[w + threads] = b;
    to[w + 2 * threads] = c;
    to[w + 3 * threads] = d;
  }
  for (; w < words; w += threads) to[w] = from[w];
}

// Thread `thread` of `threads` copies its share of entry (n, k) of the item to row `out`. A gather
// index out of range is reported and nothing is copied.
__device__ inline void gather(const GatherItem& item, i64 num_candidates, i64 n, i64 k, i64 out,
                              i64 thread, i64 threads, FaultRecord* fault, i64 step) {
  const char* source = item.source + n * item.row_stride_bytes + k * item.candidate_stride_bytes;
  if (item.index != nullptr) {
    const i64 row = item.index[n * num_candidates + k];
    if (row < 0 || row >= item.num_source_rows) {
      if (thread == 0) report(fault, kGatherFault, n, k, row, step);
      return;
    }
    source = item.source + row * item.row_stride_bytes;
  }
  char* target = item.target + out * item.inner_bytes;
  switch (item.word_bytes) {
    case 16: return copy_words<Word16>(source, target, item.inner_bytes, thread, threads);
    case 8: return copy_words<u64>(source, target, item.inner_bytes, thread, threads);
    case 4: return copy_words<u32>(source, target, item.inner_bytes, thread, threads);
    default: return copy_words<char>(source, target, item.inner_bytes, thread, threads);
  }
}

}  // namespace fastguide
