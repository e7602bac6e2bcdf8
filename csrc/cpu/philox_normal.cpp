#include "fastguide/philox_normal.cuh"

#include "kernels.h"
#include "parallel.h"
#include "philox_ids.h"

#define FG_BODY "philox_normal.h"
#include "levels.h"

namespace fastguide {

template <class T>
Fault philox_normal(const PhiloxArgs& args, T* out, int num_threads) {
  const auto rows = FG_PICK(normal_rows<T>);
  return parallel_rows(args.num_chains, args.num_candidates * args.num_elements * 8, num_threads,
                       [&](i64 begin, i64 end) { return rows(args, out, begin, end); });
}

template Fault philox_normal<float>(const PhiloxArgs&, float*, int);
template Fault philox_normal<double>(const PhiloxArgs&, double*, int);

}  // namespace fastguide
