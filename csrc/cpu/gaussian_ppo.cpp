#include "fastguide/gaussian_ppo.cuh"

#include <vector>

#include "parallel.h"
#include "training.h"

namespace fastguide {

// Lanes of the sums: two registers of the widest instruction set each.
constexpr i64 PPO_LANES = 16;
// Rows whose terms are made side by side.
constexpr i64 PPO_ROWS = 64;
// Elements of one unit of work, a multiple of PPO_LANES.
constexpr i64 PPO_TILE = 4096;

}  // namespace fastguide

#define FG_BODY "gaussian_ppo.h"
#include "levels.h"

namespace fastguide {

template <class T>
Fault gaussian_ppo(const GaussianPpoArgs<T>& args, const PpoInputs& in, const PpoOutputs& out,
                   int num_threads) {
  for (i64 n = 0; n < args.num_rows; ++n)
    if (!(args.s[n] > 0.0)) return {kScalarFault, n, -1, 0};
  const i64 num_tiles = (args.num_elements + PPO_TILE - 1) / PPO_TILE;
  // One partial sum per tile, added in order below: the split over threads does not show.
  std::vector<double> partial(static_cast<size_t>(2 * args.num_rows * num_tiles));
  const auto run = FG_PICK(ppo_tile<T>);
  parallel_rows(args.num_rows * num_tiles, PPO_TILE, num_threads, [&](i64 begin, i64 end) {
    for (i64 unit = begin; unit < end; ++unit) {
      const i64 first = unit % num_tiles * PPO_TILE, left = args.num_elements - first;
      run(args, unit / num_tiles, first, first + (left < PPO_TILE ? left : PPO_TILE),
          partial.data() + 2 * unit);
    }
    return Fault();
  });
  FG_PICK(ppo_terms_of_rows<T>)(args, in, partial.data(), num_tiles, out);
  return {};
}

template <class T>
void gaussian_ppo_backward(const GaussianPpoArgs<T>& args, const PpoPulls& pulls, T* d_output,
                           int num_threads) {
  const i64 num_tiles = (args.num_elements + PPO_TILE - 1) / PPO_TILE;
  const auto run = FG_PICK(ppo_pull<T>);
  parallel_rows(args.num_rows * num_tiles, PPO_TILE, num_threads, [&](i64 begin, i64 end) {
    for (i64 unit = begin; unit < end; ++unit) {
      const i64 n = unit / num_tiles, first = unit % num_tiles * PPO_TILE;
      const i64 left = args.num_elements - first;
      run(args, n, first, first + (left < PPO_TILE ? left : PPO_TILE), pull_on_log_prob(pulls, n),
          pull_on_kl(pulls, n), d_output + n * args.num_elements);
    }
    return Fault();
  });
}

#define FG_INSTANTIATE(T)                                                                        \
  template Fault gaussian_ppo<T>(const GaussianPpoArgs<T>&, const PpoInputs&, const PpoOutputs&, \
                                 int);                                                           \
  template void gaussian_ppo_backward<T>(const GaussianPpoArgs<T>&, const PpoPulls&, T*, int);
FG_INSTANTIATE(float)
FG_INSTANTIATE(double)

}  // namespace fastguide
