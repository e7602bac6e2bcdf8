#include "fastguide/select.cuh"

#include <cstring>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "philox_ids.h"

namespace fastguide {

// Copies what row n chose; false and a fault if the gather index is out of range.
static bool gather(const GatherItem& item, i64 n, i64 num_candidates, i64 k, Fault* fault) {
  const char* source = item.source + n * item.row_stride_bytes + k * item.candidate_stride_bytes;
  if (item.index != nullptr) {
    const i64 row = item.index[n * num_candidates + k];
    if (row < 0 || row >= item.num_source_rows) {
      *fault = {kGatherFault, n, k, row};
      return false;
    }
    source = item.source + row * item.row_stride_bytes;
  }
  if (item.inner_bytes > 0)
    std::memcpy(item.target + n * item.inner_bytes, source, static_cast<size_t>(item.inner_bytes));
  return true;
}

}  // namespace fastguide

#define FG_BODY "select.h"
#include "levels.h"

namespace fastguide {

Fault select(const SelectArgs& args, int num_threads) {
  i64 bytes = 0;
  for (i64 i = 0; i < args.num_items; ++i) bytes += args.items[i].inner_bytes;
  const auto rows = FG_PICK(select_rows);
  return parallel_rows(args.num_rows, args.num_candidates * 8 + bytes / 8, num_threads,
                       [&](i64 begin, i64 end) { return rows(args, begin, end); });
}

}  // namespace fastguide
