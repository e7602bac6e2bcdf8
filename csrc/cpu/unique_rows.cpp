#include "fastguide/unique_rows.cuh"

#include <cstring>
#include <stdexcept>
#include <vector>

#include "kernels.h"

namespace fastguide {

void unique_rows(const void* rows, i64 row_stride_bytes, i64 row_bytes, i64 num_rows,
                 const i64* keys, i64* first, i64* inverse, i64* count) {
  if (num_rows >= 0xFFFFFFFFLL) throw std::length_error("unique_rows: at most 2^32 - 2 rows");
  int bits = 4;
  while ((1LL << bits) < 2 * num_rows) ++bits;
  const u64 wrap = (1ull << bits) - 1;
  std::vector<u32> table(static_cast<size_t>(wrap) + 1, 0);  // group + 1, or 0 where empty

  const char* base = static_cast<const char*>(rows);
  i64 groups = 0;
  for (i64 r = 0; r < num_rows; ++r) {
    const i64 low = keys[2 * r], high = keys[2 * r + 1];
    u64 slot = first_slot(static_cast<u64>(low), static_cast<u64>(high), bits);
    for (;; slot = (slot + 1) & wrap) {
      const u32 entry = table[slot];
      if (entry == 0) {
        first[groups] = r;
        inverse[r] = groups++;
        table[slot] = static_cast<u32>(groups);
        break;
      }
      const i64 other = first[entry - 1];
      if (keys[2 * other] == low && keys[2 * other + 1] == high &&
          std::memcmp(base + r * row_stride_bytes, base + other * row_stride_bytes,
                      static_cast<size_t>(row_bytes)) == 0) {
        inverse[r] = entry - 1;
        break;
      }
    }
  }
  for (i64 g = groups; g < num_rows; ++g) first[g] = 0;
  *count = groups;
}

}  // namespace fastguide
