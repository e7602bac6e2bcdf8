// The CPU kernels: plain loops on raw pointers, run by `num_threads` OpenMP threads. Results do
// not depend on the number of threads or on the instruction set. Strides count elements.
#pragma once

#include "fastguide/fault.cuh"
#include "fastguide/resample.cuh"
#include "fastguide/soft_value.cuh"

namespace fastguide {

struct PhiloxArgs {
  u64 seed;
  const i64* chains;           // [N] global ids
  const i64* first_candidate;  // [N] or null: zeros
  u32 c3;                      // step << 8 | purpose
  i64 num_chains, num_candidates, num_elements;  // N, K, E
};

Fault philox_uniform(const PhiloxArgs& args,
                     double* out,  // [N, K, E]
                     int num_threads);

template <class T>  // float or double
Fault philox_normal(const PhiloxArgs& args,
                    T* out,  // [N, K, E]
                    int num_threads);

template <class T>  // float or double
struct Logits {
  const T* data;                                   // [U, L, V], or [U, V] with an index per site
  i64 row_stride, site_stride, token_stride;
  i64 num_rows, vocab_size;                        // U, V
  const i64* index;                                // [N] row of each state, or null: row n
  double temperature;
  bool per_site;                                   // index is [N, L]: a row for each site
};

struct States {
  const i64* x;  // [N, L]
  i64 row_stride, site_stride;
  i64 num_rows, length;  // N, L
  i64 mask_token;
};

struct ProposeArgs {
  const i64* keys;             // [N, 2]
  double rho;                  // reveal probability
  u64 seed;
  const i64* chains;           // [N]
  const i64* first_candidate;  // [N] or null: zeros
  u32 step;
  i64 num_candidates;          // K
  i64* out_tokens;             // [N, K, L]
  i64* out_keys;               // [N, K, 2]
  i32* out_changed;            // [N, K]
};

template <class T>
Fault masked_propose(const Logits<T>& logits, const States& states, const ProposeArgs& args,
                     int num_threads);

struct PosteriorArgs {
  i64 num_samples;   // S, or 0 for the mode
  const i64* keys;   // [N, 2], read when S > 0
  u64 seed;
  u32 purpose;
  i64* out;          // [N, L] or [N, S, L]
};

template <class T>
Fault masked_posterior(const Logits<T>& logits, const States& states, const PosteriorArgs& args,
                       int num_threads);

void masked_keys(const i64* x, i64 row_stride, i64 site_stride,  // [R, L]
                 i64 num_rows, i64 length,
                 i64* out,  // [R, 2]
                 int num_threads);

void unique_rows(const void* rows,  // [R] rows of row_bytes bytes
                 i64 row_stride_bytes, i64 row_bytes, i64 num_rows,
                 const i64* keys,  // [R, 2]
                 i64* first,       // [R], ascending up to count, then 0
                 i64* inverse,     // [R]
                 i64* count);      // [1]

struct GaussianArgs {
  PhiloxArgs noise;         // N, K, D and the stream
  double a, b, s;           // x' = a x + b output + shift + s z
  i64 x_row_stride, output_row_stride, shift_row_stride;  // rows are contiguous
  i64 num_outputs;          // U
  const i64* index;         // [N] row of output for each chain, or null: row n
  double* out_log_ratio;    // [N, K], or null without a shift
};

template <class T>  // float or double
Fault gaussian_propose(const GaussianArgs& args,
                       const T* x,       // [N, D]
                       const T* output,  // [U, D]
                       const T* shift,   // [N, D] or null
                       T* out,           // [N, K, D]
                       int num_threads);

struct Matrix {
  const void* data;  // [N, K] float or double; null where absent
  i64 row_stride, column_stride;
  bool is_double;
};

struct GatherItem {
  const char* source;  // [N, K, ...], or [U, ...] when index is given
  i64 row_stride_bytes, candidate_stride_bytes;
  i64 inner_bytes;     // of one contiguous item
  const i64* index;    // [N, K] contiguous, or null
  i64 num_source_rows; // U
  char* target;        // [N, ...] contiguous
  i64 num_targets = 0; // rows of target: with inner_bytes, how large it is
};

struct SelectArgs {
  Matrix values, log_ratio;
  i64 num_rows, num_candidates;  // N, K
  double alpha;                  // 0: argmax
  u64 seed;
  const i64* chains;             // [N]
  const i64* particles;          // [N] or null: zeros
  u32 c3;                        // step << 8 | purpose
  const GatherItem* items;
  i64 num_items;
  i64* out_index;                // [N]
  double* out_lme;               // [N]
  double* out_ess;               // [N]
};

Fault select(const SelectArgs& args, int num_threads);

struct ResampleArgs {
  Matrix log_w;                    // [G, N]
  i64 num_groups, num_particles;   // G, N
  ResampleScheme scheme;
  double ess_threshold;            // share of N; negative: every group resamples
  u64 seed;
  const i64* chains;               // [G]
  u32 c3;                          // step << 8 | purpose
  const GatherItem* items;         // candidates are particles: [G, N, ...] -> [G, N, ...]
  i64 num_items;
  i64* out_ancestors;              // [G, N]
  double* out_log_z;               // [G]
  unsigned char* out_resampled;    // [G]
  double* out_ess;                 // [G]
};

Fault resample(const ResampleArgs& args, int num_threads);

template <class T>
void soft_value(const T* values, i64 row_stride, i64 sample_stride,  // [R, S]
                i64 num_rows, i64 num_samples, SoftValueKind kind, double alpha, double tau,
                T* out,  // [R]
                int num_threads);

}  // namespace fastguide
