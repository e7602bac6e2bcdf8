#include "fastguide/philox_uniform.cuh"

#include <cstring>

#include "kernels.h"
#include "parallel.h"
#include "philox_ids.h"

#define FG_BODY "philox_uniform.h"
#include "levels.h"

namespace fastguide {

Fault philox_uniform(const PhiloxArgs& args, double* out, int num_threads) {
  const auto rows = FG_PICK(uniform_rows);
  return parallel_rows(args.num_chains, args.num_candidates * args.num_elements, num_threads,
                       [&](i64 begin, i64 end) { return rows(args, out, begin, end); });
}

}  // namespace fastguide
