#include "fastguide/gaussian_propose.cuh"

#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "philox_ids.h"

namespace fastguide {

// Lanes of the sums for the log-ratio: as many as the widest loop takes elements at a time.
constexpr i64 SUM_LANES = 64;
// Elements of one unit of work, a multiple of SUM_LANES.
constexpr i64 TILE = 4096;

// Elements [begin, end) of chain n.
template <class T>
struct GaussianTile {
  i64 n, begin, end;
  const T* x;       // [D], of the chain
  const T* output;  // [D]
  const T* shift;   // [D] or null
  T* out;           // [K, D]
  double* sums;     // [K + 1, SUM_LANES] for the log-ratio: of h z per candidate, then of h h
};

}  // namespace fastguide

#define FG_BODY "gaussian_propose.h"
#include "levels.h"

namespace fastguide {

static Fault check_rows(const GaussianArgs& args) {
  Fault fault;
  for (i64 n = 0; n < args.noise.num_chains; ++n) {
    const i64 row = args.index == nullptr ? n : args.index[n];
    if (row < 0 || row >= args.num_outputs) return {kIndexFault, n, -1, row};
    if (!check_ids(args.noise, n, &fault)) return fault;
  }
  return fault;
}

static double sum_of_lanes(const double* lanes) {
  double sum = 0.0;
  for (i64 i = 0; i < SUM_LANES; ++i) sum += lanes[i];
  return sum;
}

template <class T>
Fault gaussian_propose(const GaussianArgs& args, const T* x, const T* output, const T* shift,
                       T* out, int num_threads) {
  const Fault fault = check_rows(args);
  if (fault.code != kNoFault) return fault;
  const i64 num_elements = args.noise.num_elements, num_candidates = args.noise.num_candidates;
  const i64 num_tiles = (num_elements + TILE - 1) / TILE;
  const i64 num_sums = args.out_log_ratio == nullptr ? 0 : num_candidates + 1;
  // One partial sum per tile, added in order below: the split over threads does not show.
  std::vector<double> partial(static_cast<size_t>(args.noise.num_chains * num_tiles * num_sums));
  const auto run = FG_PICK(gaussian_tile<T>);
  const auto body = [&](i64 begin, i64 end) {
    std::vector<double> sums(static_cast<size_t>(num_sums * SUM_LANES));
    for (i64 unit = begin; unit < end; ++unit) {
      const i64 n = unit / num_tiles, first = unit % num_tiles * TILE;
      const i64 row = args.index == nullptr ? n : args.index[n];
      sums.assign(sums.size(), 0.0);
      run(args, {n, first, first + TILE < num_elements ? first + TILE : num_elements,
                 x + n * args.x_row_stride, output + row * args.output_row_stride,
                 shift == nullptr ? nullptr : shift + n * args.shift_row_stride,
                 out + n * num_candidates * num_elements, sums.data()});
      for (i64 k = 0; k < num_sums; ++k)
        partial[static_cast<size_t>(unit * num_sums + k)] = sum_of_lanes(&sums[k * SUM_LANES]);
    }
    return Fault();
  };
  parallel_rows(args.noise.num_chains * num_tiles, TILE * num_candidates, num_threads, body);
  if (num_sums == 0) return fault;
  for (i64 n = 0; n < args.noise.num_chains; ++n) {
    const double* sums = partial.data() + n * num_tiles * num_sums;
    double squares = 0.0;
    for (i64 tile = 0; tile < num_tiles; ++tile) squares += sums[tile * num_sums + num_candidates];
    for (i64 k = 0; k < num_candidates; ++k) {
      double products = 0.0;
      for (i64 tile = 0; tile < num_tiles; ++tile) products += sums[tile * num_sums + k];
      args.out_log_ratio[n * num_candidates + k] = -products - 0.5 * squares;
    }
  }
  return fault;
}

template Fault gaussian_propose<float>(const GaussianArgs&, const float*, const float*,
                                       const float*, float*, int);
template Fault gaussian_propose<double>(const GaussianArgs&, const double*, const double*,
                                        const double*, double*, int);

}  // namespace fastguide
