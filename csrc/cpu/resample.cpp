#include "fastguide/resample.cuh"

#include <vector>

#include "gather.h"
#include "kernels.h"
#include "parallel.h"
#include "philox_ids.h"

#define FG_BODY "resample.h"
#include "levels.h"

namespace fastguide {

Fault resample(const ResampleArgs& args, int num_threads) {
  i64 bytes = 0;
  for (i64 i = 0; i < args.num_items; ++i) bytes += args.items[i].inner_bytes;
  const auto groups = FG_PICK(resample_groups);
  return parallel_rows(
      args.num_groups, args.num_particles * (8 + bytes / 8), num_threads, [&](i64 begin, i64 end) {
        // Kept from call to call: fresh pages would cost more than the passes over them.
        static thread_local std::vector<double> scratch;
        const size_t size = 3 * static_cast<size_t>(args.num_particles);
        if (scratch.size() < size) scratch.resize(size);
        return groups(args, scratch.data(), begin, end);
      });
}

}  // namespace fastguide
