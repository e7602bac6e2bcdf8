#include "fastguide/subs_cross_entropy.cuh"

#include <cstring>
#include <vector>

#include "large_pages.h"
#include "parallel.h"
#include "training.h"

#define FG_BODY "subs_cross_entropy.h"
#include "levels.h"

namespace fastguide {

template <class T>
Fault subs_cross_entropy(const SubsArgs<T>& args, double* loss, double* normalisers,
                         int num_threads) {
  const auto rows = FG_PICK(subs_rows<T>);
  return parallel_rows(args.num_rows, args.length * args.vocab_size, num_threads,
                       [&](i64 begin, i64 end) { return rows(args, loss, normalisers, begin, end); });
}

template <class T>
void subs_cross_entropy_backward(const SubsArgs<T>& args, const double* normalisers,
                                 const Numbers& d_loss, T* d_logits, int num_threads) {
  const auto pull = FG_PICK(subs_pull<T>);
  ask_for_large_pages(d_logits, args.num_rows * args.length * args.vocab_size);
  parallel_rows(args.num_rows, args.length * args.vocab_size, num_threads,
                [&](i64 begin, i64 end) {
                  pull(args, normalisers, d_loss, d_logits, begin, end);
                  return Fault();
                });
}

template <class T>
void subs_slice_sums(const LogitsSlice<T>& slice, double* top, double* total, double* chosen,
                     int num_threads) {
  const auto sums = FG_PICK(slice_sums<T>);
  parallel_rows(slice.num_rows, slice.num_tokens, num_threads, [&](i64 begin, i64 end) {
    sums(slice, top, total, chosen, begin, end);
    return Fault();
  });
}

template <class T>
void subs_slice_pull(const LogitsSlice<T>& slice, const double* normalisers, const double* scale,
                     int num_threads) {
  const auto pull = FG_PICK(slice_pull<T>);
  parallel_rows(slice.num_rows, slice.num_tokens, num_threads, [&](i64 begin, i64 end) {
    pull(slice, normalisers, scale, begin, end);
    return Fault();
  });
}

#define FG_INSTANTIATE(T)                                                                       \
  template Fault subs_cross_entropy<T>(const SubsArgs<T>&, double*, double*, int);              \
  template void subs_cross_entropy_backward<T>(const SubsArgs<T>&, const double*,               \
                                               const Numbers&, T*, int);                        \
  template void subs_slice_sums<T>(const LogitsSlice<T>&, double*, double*, double*, int);      \
  template void subs_slice_pull<T>(const LogitsSlice<T>&, const double*, const double*, int);
FG_INSTANTIATE(float)
FG_INSTANTIATE(double)
FG_INSTANTIATE(Bfloat16)
FG_INSTANTIATE(Half)

}  // namespace fastguide
