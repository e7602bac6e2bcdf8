// Copies of the rows that were chosen.
#pragma once

#include <cstring>

#include "dispatch.h"
#include "kernels.h"

#if FG_X86
#include <emmintrin.h>
#endif

namespace fastguide {

// Outputs of at least so many bytes leave the caches before anybody reads them: stores past the
// caches then spare the read of every line that is about to be overwritten.
constexpr i64 STREAM_BYTES = 16 << 20;
constexpr i64 STREAM_ROW_BYTES = 2048;

// Which entry of which row.
struct Entry {
  i64 n, k;
};

// Where an entry of an item lies, or null and a fault if its index is out of range.
inline const char* find_entry(const GatherItem& item, i64 num_candidates, Entry entry, Fault* fault) {
  if (item.index == nullptr)
    return item.source + entry.n * item.row_stride_bytes + entry.k * item.candidate_stride_bytes;
  const i64 row = item.index[entry.n * num_candidates + entry.k];
  if (row >= 0 && row < item.num_source_rows) return item.source + row * item.row_stride_bytes;
  *fault = {kGatherFault, entry.n, entry.k, row};
  return nullptr;
}

inline bool streams(const GatherItem& item) {
  return FG_X86 && item.inner_bytes >= STREAM_ROW_BYTES && item.inner_bytes % 16 == 0 &&
         item.num_targets * item.inner_bytes >= STREAM_BYTES &&
         reinterpret_cast<unsigned long long>(item.target) % 16 == 0;
}

#if FG_X86
// One or two blocks of bytes, a multiple of 16. Two at a time keep more reads of memory in flight:
// 33 to 35 GB/s where one after the other reaches 27 (Zen 4, rows of 48 KiB).
template <int COUNT>
inline void stream_blocks(char* const* out, const char* const* source, i64 bytes) {
  const auto copy = [&](i64 begin, i64 end) {
    for (int b = 0; b < COUNT; ++b)
      for (i64 i = begin; i < end; i += 16)
        _mm_stream_si128(reinterpret_cast<__m128i*>(out[b] + i),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(source[b] + i)));
  };
  constexpr i64 LINE = 64;
  i64 i = 0;
  for (; i + LINE <= bytes; i += LINE) copy(i, i + LINE);
  copy(i, bytes);
}

inline void stream_pair(const GatherItem& item, i64 target, const char* first, const char* second) {
  const char* const source[2] = {first, second};
  char* const out[2] = {item.target + target * item.inner_bytes,
                        item.target + (target + 1) * item.inner_bytes};
  second == nullptr ? stream_blocks<1>(out, source, item.inner_bytes)
                    : stream_blocks<2>(out, source, item.inner_bytes);
}
#endif

// Stores past the caches become visible to other threads.
inline void finish_streams() {
#if FG_X86
  _mm_sfence();
#endif
}

// Copies `count` entries of an item to its rows from `target` on; `entry_at(i)` tells which. The fault
// of the first entry whose index is out of range.
template <class EntryAt>
inline Fault gather(const GatherItem& item, i64 num_candidates, i64 count, i64 target,
                    const EntryAt& entry_at) {
  Fault fault;
  i64 i = 0;
#if FG_X86
  if (streams(item)) {
    for (; i < count; i += 2) {
      const char* first = find_entry(item, num_candidates, entry_at(i), &fault);
      if (first == nullptr) return fault;
      const char* second =
          i + 1 < count ? find_entry(item, num_candidates, entry_at(i + 1), &fault) : nullptr;
      if (fault.code != kNoFault) return fault;
      stream_pair(item, target + i, first, second);
    }
    return fault;
  }
#endif
  for (; i < count; ++i) {
    const char* source = find_entry(item, num_candidates, entry_at(i), &fault);
    if (source == nullptr) return fault;
    char* out = item.target + (target + i) * item.inner_bytes;
    // A length known to the compiler becomes one move instead of a call.
    switch (item.inner_bytes) {
      case 0: break;
      case 4: std::memcpy(out, source, 4); break;
      case 8: std::memcpy(out, source, 8); break;
      default: std::memcpy(out, source, static_cast<size_t>(item.inner_bytes));
    }
  }
  return fault;
}

}  // namespace fastguide
