#include "fastguide/unique_rows.cuh"

#include <cstring>
#include <stdexcept>
#include <vector>

#include "kernels.h"

namespace fastguide {
namespace {

struct Rows {
  const char* data;
  i64 stride, size;  // bytes

  bool equal(i64 a, i64 b) const {
    return size == 0 ||
           std::memcmp(data + a * stride, data + b * stride, static_cast<size_t>(size)) == 0;
  }
};

struct Group {
  i64 low, high;  // key
};

// Groups rows by key, in order of first appearance; with `exact`, only rows that are also equal join
// a group. Returns the number of groups.
template <bool exact>
i64 group_rows(const Rows& rows, i64 num_rows, const i64* keys, int bits, i64* first, i64* inverse) {
  const u64 wrap = (1ull << bits) - 1;
  std::vector<u32> table(static_cast<size_t>(wrap) + 1, 0);  // group + 1, or 0 where empty
  std::vector<Group> groups(static_cast<size_t>(num_rows));
  i64 count = 0;
  for (i64 r = 0; r < num_rows; ++r) {
    const i64 low = keys[2 * r], high = keys[2 * r + 1];
    u64 slot = first_slot(static_cast<u64>(low), static_cast<u64>(high), bits);
    for (;; slot = (slot + 1) & wrap) {
      const u32 entry = table[slot];
      if (entry == 0) {
        groups[static_cast<size_t>(count)] = {low, high};
        first[count] = r;
        inverse[r] = count++;
        table[slot] = static_cast<u32>(count);
        break;
      }
      const Group& group = groups[entry - 1];
      if (group.low != low || group.high != high) continue;
      if (exact && !rows.equal(r, first[entry - 1])) continue;
      inverse[r] = entry - 1;
      break;
    }
  }
  return count;
}

}  // namespace

void unique_rows(const void* data, i64 row_stride_bytes, i64 row_bytes, i64 num_rows,
                 const i64* keys, i64* first, i64* inverse, i64* count) {
  if (num_rows >= 0xFFFFFFFFLL) throw std::length_error("unique_rows: at most 2^32 - 2 rows");
  const Rows rows = {static_cast<const char*>(data), row_stride_bytes, row_bytes};
  int bits = 4;
  while ((1LL << bits) < 2 * num_rows) ++bits;
  // Keys first, then one sweep that compares each row with the first of its group: the sweep has no
  // data-dependent branch, so it runs at the speed of memory. Different rows with equal keys, which
  // only a collision of 128 bits or a foreign key brings about, send everything through the exact
  // loop.
  i64 groups = group_rows<false>(rows, num_rows, keys, bits, first, inverse);
  bool confirmed = true;
  for (i64 r = 0; r < num_rows && confirmed; ++r) {
    const i64 opener = first[inverse[r]];
    confirmed = opener == r || rows.equal(r, opener);
  }
  if (!confirmed) groups = group_rows<true>(rows, num_rows, keys, bits, first, inverse);
  for (i64 g = groups; g < num_rows; ++g) first[g] = 0;
  *count = groups;
}

}  // namespace fastguide
