#include "fastguide/masked_ppo.cuh"

#include <cstring>
#include <vector>

#include "parallel.h"
#include "training.h"

#define FG_BODY "masked_ppo.h"
#include "levels.h"

namespace fastguide {

template <class T>
Fault masked_ppo(const MaskedPpoArgs<T>& args, const PpoInputs& in, const PpoOutputs& out,
                 double* sites, int num_threads) {
  const auto rows = FG_PICK(masked_ppo_rows<T>);
  return parallel_rows(args.num_rows, args.length * args.vocab_size, num_threads,
                       [&](i64 begin, i64 end) { return rows(args, in, out, sites, begin, end); });
}

template <class T>
void masked_ppo_backward(const MaskedPpoArgs<T>& args, const double* sites,
                         const double* d_log_prob, const double* d_kl, T* d_logits,
                         int num_threads) {
  const auto pull = FG_PICK(masked_ppo_pull<T>);
  parallel_rows(args.num_rows, args.length * args.vocab_size, num_threads,
                [&](i64 begin, i64 end) {
                  pull(args, sites, d_log_prob, d_kl, d_logits, begin, end);
                  return Fault();
                });
}

#define FG_INSTANTIATE(T)                                                                     \
  template Fault masked_ppo<T>(const MaskedPpoArgs<T>&, const PpoInputs&, const PpoOutputs&,  \
                               double*, int);                                                 \
  template void masked_ppo_backward<T>(const MaskedPpoArgs<T>&, const double*, const double*, \
                                       const double*, T*, int);
FG_INSTANTIATE(float)
FG_INSTANTIATE(double)

}  // namespace fastguide
