#include "fastguide/masked_ppo.cuh"

#include <cstring>
#include <vector>

#include "large_pages.h"
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
void masked_ppo_backward(const MaskedPpoArgs<T>& args, const double* sites, const PpoPulls& pulls,
                         T* d_logits, int num_threads) {
  const auto pull = FG_PICK(masked_ppo_pull<T>);
  ask_for_large_pages(d_logits, args.num_rows * args.length * args.vocab_size);
  parallel_rows(args.num_rows, args.length * args.vocab_size, num_threads,
                [&](i64 begin, i64 end) {
                  pull(args, sites, pulls, d_logits, begin, end);
                  return Fault();
                });
}

#define FG_INSTANTIATE(T)                                                                       \
  template Fault masked_ppo<T>(const MaskedPpoArgs<T>&, const PpoInputs&, const PpoOutputs&,    \
                               double*, int);                                                   \
  template void masked_ppo_backward<T>(const MaskedPpoArgs<T>&, const double*, const PpoPulls&, \
                                       T*, int);
FG_INSTANTIATE(float)
FG_INSTANTIATE(double)
FG_INSTANTIATE(Bfloat16)
FG_INSTANTIATE(Half)

}  // namespace fastguide
