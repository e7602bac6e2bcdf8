// One candidate per row, and the gather that follows, in one launch. A warp chooses; sums run in the
// order of the candidates, so the choice has the bits of choose() in fastguide/select.cuh.
#include "fastguide/math.cuh"
#include "fastguide/philox.cuh"
#include "gather.cuh"

namespace fastguide {

struct SelectArgs {
  const void* values;     // [N, K] float or double
  const void* log_ratio;  // [N, K] float or double, or null
  i64 value_row_stride, value_stride, ratio_row_stride, ratio_stride;
  i64 num_rows, num_candidates;  // N, K
  const double* alpha_at;        // null: alpha
  double alpha;                  // 0: argmax
  const u64* seed_at;            // null: seed
  u64 seed;
  const i64* counter_at;  // null: counter
  i64 counter;            // step << 8 | purpose
  const i64* chains;     // [N]
  const i64* particles;  // [N] or null: zeros
  i64* out_index;        // [N]
  double* out_lme;       // [N]
  double* out_ess;       // [N]
  FaultRecord* fault;
  i32 values_double, ratio_double;
  i32 num_items;
  GatherItem items[MAX_GATHER_ITEMS];
};

__device__ inline double load_float(const void* data, i64 at, i32 is_double) {
  return is_double != 0 ? static_cast<const double*>(data)[at]
                        : static_cast<double>(static_cast<const float*>(data)[at]);
}

// The log-weight of candidate k; -inf past the end.
__device__ inline double log_weight(const SelectArgs& args, double alpha, i64 n, i64 k) {
  if (k >= args.num_candidates) return bits_double(0xFFF0000000000000ull);
  double x = load_float(args.values, n * args.value_row_stride + k * args.value_stride,
                        args.values_double);
  if (alpha > 0.0) x /= alpha;
  if (args.log_ratio != nullptr)
    x += load_float(args.log_ratio, n * args.ratio_row_stride + k * args.ratio_stride,
                    args.ratio_double);
  return x;
}

// Adds the values of the lanes to `sum` in their order; every lane gets the final sum and returns
// the one up to itself.
__device__ inline double add_in_order(const Lanes<WARP>& lanes, double x, i64 count, double* sum) {
  double own = 0.0;
#pragma unroll 4
  for (u32 lane = 0; lane < WARP && lane < count; ++lane) {
    *sum += lanes.from(x, lane);
    own = lane == lanes.rank ? *sum : own;
  }
  return own;
}

// The chosen candidate of row n, known to every lane; -1 after a fault. `writes`: this warp also
// stores index, lme and ess.
__device__ inline i64 choose_by_warp(const SelectArgs& args, i64 n, bool writes) {
  const Lanes<WARP> lanes;
  const double infinity = bits_double(0x7FF0000000000000ull);
  const i64 num_candidates = args.num_candidates;
  const double alpha = scalar(args.alpha_at, args.alpha);
  const i64 counter = scalar(args.counter_at, args.counter), step = counter >> 8;
  const i64 chain = args.chains[n];
  const i64 particle = args.particles == nullptr ? 0 : args.particles[n];
  i32 code = kNoFault;
  i64 bad = 0;
  if (!(alpha >= 0.0 && alpha < infinity) || (alpha == 0.0 && args.log_ratio != nullptr) ||
      !fits_step(counter)) {
    code = kScalarFault;
    bad = step;
  } else if (!fits_counter(chain)) {
    code = kChainFault;
    bad = chain;
  } else if (!fits_counter(particle)) {
    code = kCandidateFault;
    bad = particle;
  }
  if (code != kNoFault) {
    if (writes && lanes.rank == 0) report(args.fault, code, n, -1, bad, step);
    return -1;
  }

  double top = -infinity;
  i64 best = 0;
  for (i64 begin = 0; begin < num_candidates; begin += WARP) {
    const double x = log_weight(args, alpha, n, begin + lanes.rank);
    const u32 wrong = lanes.ballot(!(x < infinity));
    if (wrong != 0) {
      if (writes && lanes.rank == 0)
        report(args.fault, kValueFault, n, begin + __ffs(static_cast<int>(wrong)) - 1, 0,
               step);
      return -1;
    }
    double high = x;
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) {
      const double other = lanes.across(high, distance);
      high = other > high ? other : high;
    }
    if (high > top) {
      top = high;
      best = begin + __ffs(static_cast<int>(lanes.ballot(x == high))) - 1;
    }
  }

  const PhiloxBlock block =
      philox(0, static_cast<u32>(particle), static_cast<u32>(chain),
             static_cast<u32>(counter), philox_key(scalar(args.seed_at, args.seed)));
  const double u = uniform53(block.w0, block.w1);
  i64 index = best;
  double lme = top, ess = 1.0;
  if (top == -infinity) {
    index = static_cast<i64>(u * static_cast<double>(num_candidates));
    index = index < num_candidates ? index : num_candidates - 1;
    ess = 0.0;
  } else if (alpha > 0.0) {
    double total = 0.0, squares = 0.0, cdf = 0.0;
    i64 last = 0;
    for (i64 begin = 0; begin < num_candidates; begin += WARP) {
      const double w = exp_double(log_weight(args, alpha, n, begin + lanes.rank) - top);
      cdf = add_in_order(lanes, w, num_candidates - begin, &total);
      add_in_order(lanes, w * w, num_candidates - begin, &squares);
      const u32 positive = lanes.ballot(w > 0.0);
      if (positive != 0) last = begin + 31 - __clz(static_cast<int>(positive));
    }
    const double target = u * total;
    index = last;
    double sum = 0.0;
    for (i64 begin = 0; begin < num_candidates; begin += WARP) {
      // The sums of a single round are still there.
      if (num_candidates > WARP) {
        const double w = exp_double(log_weight(args, alpha, n, begin + lanes.rank) - top);
        cdf = add_in_order(lanes, w, num_candidates - begin, &sum);
      }
      const u32 above = lanes.ballot(begin + lanes.rank < num_candidates && cdf > target);
      if (above == 0) continue;
      const i64 found = begin + __ffs(static_cast<int>(above)) - 1;
      index = found < last ? found : last;
      break;
    }
    lme = top + log_double(total / static_cast<double>(num_candidates));
    ess = total * total / squares;
  }
  if (writes && lanes.rank == 0) {
    args.out_index[n] = index;
    args.out_lme[n] = lme;
    args.out_ess[n] = ess;
  }
  return index;
}

constexpr u32 SELECT_THREADS = 256;

// WIDE: a block copies a part (blockIdx.y) of what one row takes, for rows of many bytes. Otherwise
// each warp serves a row of its own.
template <bool WIDE>
__global__ void __launch_bounds__(SELECT_THREADS)
    select(const __grid_constant__ SelectArgs args) {
  __shared__ i64 chosen;
  constexpr i64 ROWS = WIDE ? 1 : SELECT_THREADS / WARP;
  const i64 warp = threadIdx.x / WARP;
  const i64 n = static_cast<i64>(blockIdx.x) * ROWS + (WIDE ? 0 : warp);
  if (n >= args.num_rows) return;
  i64 k = -1, thread = threadIdx.x % WARP, threads = WARP;
  if (!WIDE || warp == 0) k = choose_by_warp(args, n, blockIdx.y == 0);
  if (WIDE) {
    if (threadIdx.x == 0) chosen = k;
    __syncthreads();
    k = chosen;
    thread = static_cast<i64>(blockIdx.y) * SELECT_THREADS + threadIdx.x;
    threads = static_cast<i64>(gridDim.y) * SELECT_THREADS;
  }
  if (k < 0) return;
  for (i32 i = 0; i < args.num_items; ++i)
    gather(args.items[i], args.num_candidates, n, k, n, thread, threads, args.fault,
           scalar(args.counter_at, args.counter) >> 8);
}

}  // namespace fastguide
