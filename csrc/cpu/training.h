// The CPU kernels of the training ops; see kernels.h. Backward kernels take the gradients in their
// outputs and write those in their inputs.
#pragma once

#include "fastguide/gaussian_ppo.cuh"
#include "halves.h"
#include "kernels.h"

namespace fastguide {

template <class T>
struct Rows {
  const T* data;  // [N, D] with contiguous rows, or null
  i64 row_stride;
};

template <class T>
struct GaussianPpoArgs {
  Rows<T> output, x, x_next, output_ref;
  Numbers a, b, s;
  i64 num_rows, num_elements;
};

template <class T>  // float or double
Fault gaussian_ppo(const GaussianPpoArgs<T>& args, const PpoInputs& in, const PpoOutputs& out,
                   int num_threads);

template <class T>
void gaussian_ppo_backward(const GaussianPpoArgs<T>& args, const PpoPulls& pulls,
                           T* d_output,  // [N, D]
                           int num_threads);

// Logits [N, L, V] of any strides, and the same of a reference or null.
template <class T>
struct SiteLogits {
  const T* data;
  i64 row_stride, site_stride, token_stride;
};

template <class T>  // float, double, Bfloat16 or Half
struct MaskedPpoArgs {
  SiteLogits<T> logits, logits_ref;
  const i64 *x, *x_next;  // [N, L]
  i64 num_rows, length, vocab_size, mask_token;
  Numbers rho;
  double temperature;
};

// sites [N, L, 3]: log normaliser, that of the reference, and KL, of each masked site.
template <class T>
Fault masked_ppo(const MaskedPpoArgs<T>& args, const PpoInputs& in, const PpoOutputs& out,
                 double* sites, int num_threads);

template <class T>
void masked_ppo_backward(const MaskedPpoArgs<T>& args, const double* sites, const PpoPulls& pulls,
                         T* d_logits,  // [N, L, V]
                         int num_threads);

template <class T>  // float, double, Bfloat16 or Half
struct SubsArgs {
  SiteLogits<T> logits;
  const i64 *x, *targets;  // [N, L]
  i64 num_rows, length, vocab_size, mask_token;
};

// normalisers [N, L]: log normaliser of each masked site.
template <class T>
Fault subs_cross_entropy(const SubsArgs<T>& args, double* loss, double* normalisers,
                         int num_threads);

template <class T>
void subs_cross_entropy_backward(const SubsArgs<T>& args, const double* normalisers,
                                 const Numbers& d_loss,
                                 T* d_logits,  // [N, L, V]
                                 int num_threads);

// Logits [R, C] of the tokens from `first` on.
template <class T>  // float, double, Bfloat16 or Half
struct LogitsSlice {
  T* data;  // contiguous
  i64 num_rows, num_tokens, first;
  const i64* targets;  // [R]
};

// Updates the largest logit, the sum of exp(logit - largest) and the logit of the target, [R] each,
// by the slice.
template <class T>
void subs_slice_sums(const LogitsSlice<T>& slice, double* top, double* total, double* chosen,
                     int num_threads);

// Overwrites the logits by scale (softmax - one-hot of the target), with normalisers and scale [R].
template <class T>
void subs_slice_pull(const LogitsSlice<T>& slice, const double* normalisers, const double* scale,
                     int num_threads);

template <class T>
struct RelaxedStepArgs {
  SiteLogits<T> logits, logits_ref;
  const T* x;             // [N, L, V + 1]
  i64 num_rows, length, vocab_size;
  Numbers rho;
  double tau, temperature;
  u64 seed;
  const i64* chains;      // [N]
  u32 c3;                 // step << 8 | purpose
};

template <class T>
Fault gumbel_softmax_step(const RelaxedStepArgs<T>& args, bool straight_through,
                          T* out,      // [N, L, V + 1]
                          double* kl,  // [N]
                          int num_threads);

template <class T>
void gumbel_softmax_step_backward(const RelaxedStepArgs<T>& args,
                                  const T* d_next,  // [N, L, V + 1]
                                  const Numbers& d_kl,
                                  T* d_logits,      // [N, L, V]
                                  T* d_x,           // [N, L, V + 1]
                                  T* d_ref,         // [N, L, V] or null
                                  int num_threads);

}  // namespace fastguide
