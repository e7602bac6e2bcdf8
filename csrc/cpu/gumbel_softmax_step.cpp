#include "fastguide/gumbel_softmax_step.cuh"

#include <cstring>
#include <vector>

#include "parallel.h"
#include "training.h"

#define FG_BODY "gumbel_softmax_step.h"
#include "levels.h"

namespace fastguide {

template <class T>
Fault gumbel_softmax_step(const RelaxedStepArgs<T>& args, bool straight_through, T* out, double* kl,
                          int num_threads) {
  const auto rows = FG_PICK(relaxed_rows<T>);
  return parallel_rows(args.num_rows, args.length * (args.vocab_size + 1) * 8, num_threads,
                       [&](i64 begin, i64 end) {
                         return rows(args, straight_through, out, kl, begin, end);
                       });
}

template <class T>
void gumbel_softmax_step_backward(const RelaxedStepArgs<T>& args, const T* d_next,
                                  const Numbers& d_kl, T* d_logits, T* d_x, T* d_ref,
                                  int num_threads) {
  const auto pull = FG_PICK(relaxed_pull<T>);
  parallel_rows(args.num_rows, args.length * (args.vocab_size + 1) * 8, num_threads,
                [&](i64 begin, i64 end) {
                  pull(args, d_next, d_kl, d_logits, d_x, d_ref, begin, end);
                  return Fault();
                });
}

#define FG_INSTANTIATE(T)                                                                        \
  template Fault gumbel_softmax_step<T>(const RelaxedStepArgs<T>&, bool, T*, double*, int);      \
  template void gumbel_softmax_step_backward<T>(const RelaxedStepArgs<T>&, const T*,             \
                                                const Numbers&, T*, T*, T*, int);
FG_INSTANTIATE(float)
FG_INSTANTIATE(double)

}  // namespace fastguide
