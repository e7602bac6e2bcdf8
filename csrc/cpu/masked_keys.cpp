#include "fastguide/masked_keys.cuh"

#include "kernels.h"
#include "parallel.h"

#define FG_BODY "masked_keys.h"
#include "levels.h"

namespace fastguide {

void masked_keys(const i64* x, i64 row_stride, i64 site_stride, i64 num_rows, i64 length, i64* out,
                 int num_threads) {
  const auto rows = FG_PICK(key_rows);
  parallel_rows(num_rows, length * 8, num_threads, [&](i64 begin, i64 end) {
    return rows(x, row_stride, site_stride, length, out, begin, end);
  });
}

}  // namespace fastguide
