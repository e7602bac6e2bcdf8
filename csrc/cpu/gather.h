// Copies of the rows that were chosen.
#pragma once

#include <cstring>

#include "kernels.h"

namespace fastguide {

// Copies entry k of row n of an item to row `target`; false and a fault if its index is out of range.
inline bool gather(const GatherItem& item, i64 n, i64 num_candidates, i64 k, i64 target,
                   Fault* fault) {
  const char* source = item.source + n * item.row_stride_bytes + k * item.candidate_stride_bytes;
  if (item.index != nullptr) {
    const i64 row = item.index[n * num_candidates + k];
    if (row < 0 || row >= item.num_source_rows) {
      *fault = {kGatherFault, n, k, row};
      return false;
    }
    source = item.source + row * item.row_stride_bytes;
  }
  char* out = item.target + target * item.inner_bytes;
  // A length known to the compiler becomes one move instead of a call.
  switch (item.inner_bytes) {
    case 0: break;
    case 4: std::memcpy(out, source, 4); break;
    case 8: std::memcpy(out, source, 8); break;
    default: std::memcpy(out, source, static_cast<size_t>(item.inner_bytes));
  }
  return true;
}

}  // namespace fastguide
