#include "fastguide/masked_posterior.cuh"

#include <cstring>
#include <vector>

#include "kernels.h"
#include "bit_lists.h"
#include "parallel.h"

#define FG_BODY "masked_posterior.h"
#include "levels.h"

namespace fastguide {

template <class T>
Fault masked_posterior(const Logits<T>& logits, const States& states, const PosteriorArgs& args,
                       int num_threads) {
  const auto rows = FG_PICK(predict_rows<T>);
  const i64 copies = args.num_samples > 0 ? args.num_samples : 1;
  return parallel_rows(states.num_rows, states.length * copies * 8, num_threads,
                       [&](i64 begin, i64 end) { return rows(logits, states, args, begin, end); });
}

template Fault masked_posterior<float>(const Logits<float>&, const States&, const PosteriorArgs&,
                                       int);
template Fault masked_posterior<double>(const Logits<double>&, const States&, const PosteriorArgs&,
                                        int);

}  // namespace fastguide
