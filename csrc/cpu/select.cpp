#include "fastguide/select.cuh"

#include <vector>

#include "gather.h"
#include "kernels.h"
#include "parallel.h"
#include "philox_ids.h"

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
