// Ancestors of groups of particles, and the gather that follows, in one launch. A block serves a
// small group (several blocks if much is gathered: each finds the ancestors of its own rows); a
// large group takes the whole grid, with a barrier between the phases. The largest weight and the
// total must be known before any ancestor is, so those barriers cannot be saved, and between them
// the running sums need no look-back.
#include "fastguide/math.cuh"
#include "fastguide/philox.cuh"
#include "fastguide/resample.cuh"
#include "gather.cuh"
#include "team.cuh"

namespace fastguide {

struct ResampleArgs {
  const void* log_w;  // [G, N] float or double
  i64 group_stride, particle_stride;
  i64 num_groups, num_particles;  // G, N
  double ess_threshold;           // share of N; negative: every group resamples
  const u64* seed_at;             // null: seed
  u64 seed;
  const i64* counter_at;  // null: counter
  i64 counter;            // step << 8 | purpose
  const i64* chains;   // [G]
  i64* ancestors;      // [G, N]
  double* log_z;       // [G]
  unsigned char* resampled;  // [G]
  double* ess;               // [G]
  double* sums;              // work, [N] for each block, or for the grid
  i64* ends;                 // work, the same
  double* uniforms;          // work of ssp, the same
  TileSum* tiles;            // work, [tiles] twice for each block, or for the grid
  double* tops;              // work of a whole grid, [blocks]
  u64* arrivals;             // work, [1], zero
  FaultRecord* fault;
  i32 is_double;
  i32 num_items;
  i32 wide;  // a block copies a row together
  GatherItem items[MAX_GATHER_ITEMS];
};

// One group, as all phases see it.
struct Group {
  i64 g, n;  // its number, and its particles
  const ResampleArgs& args;
  PhiloxKey key;
  u32 chain, counter;
  double top = 0.0;  // the largest log-weight
  double scale = 0.0;  // N / total
  TileSum all = {};
  double* sums;
  i64* ends;
  double* uniforms;
  TileSum* tiles;

  __device__ double log_w(i64 i) const {
    const i64 at = g * args.group_stride + i * args.particle_stride;
    return args.is_double != 0 ? static_cast<const double*>(args.log_w)[at]
                               : static_cast<double>(static_cast<const float*>(args.log_w)[at]);
  }
  __device__ double weight(i64 i) const { return exp_double(log_w(i) - top); }
  __device__ PhiloxBlock draw(i64 i) const {
    return philox(static_cast<u32>(i), 0, chain, counter, key);
  }
  __device__ double uniform(i64 i) const {
    const PhiloxBlock block = draw(i);
    return uniform53(block.w0, block.w1);
  }
};

__device__ inline i64 tiles_of(i64 n) { return (n + SUM_TILE - 1) / SUM_TILE; }
__device__ inline i64 tile_size(i64 tile, i64 n) {
  return (tile + 1) * SUM_TILE < n ? SUM_TILE : n - tile * SUM_TILE;
}

// First i in [low, high) with values[i] > x, or high.
template <class T>
__device__ i64 first_above(const T* values, i64 low, i64 high, T x) {
  while (low < high) {
    const i64 middle = low + (high - low) / 2;
    if (values[middle] > x)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// Points of the grid below the edge of particle i, whose running sum is `cdf`.
template <i32 SCHEME>
__device__ i64 end_of(const Group& group, i64 i, double cdf, double u0) {
  if (i >= group.all.last) return group.n;
  const double edge = cdf * group.scale;
  const double whole = static_cast<double>(static_cast<i64>(edge));
  if (whole >= static_cast<double>(group.n)) return group.n;
  const i64 at = static_cast<i64>(whole);
  const double u = SCHEME == kSystematic ? u0 : group.uniform(at);
  return static_cast<i64>(points_below(edge, whole, u, static_cast<double>(group.n)));
}

// The fractions are rounded in pairs by one thread: each step needs the one before. `sums` holds the
// fractions, `ends` the whole parts, `uniforms` a draw each; `ends` becomes running sums.
__device__ inline void round_in_pairs(const Group& group) {
  OpenFraction open = {-1, 0.0};
  i64 sum = 0;
  for (i64 i = 0; i < group.n; ++i) {
    const double g = group.sums[i];
    sum += group.ends[i];
    const i64 up = g > 0.0 ? pair_fractions(open, i, g, group.uniforms[i]) : -1;
    if (up < 0) continue;
    ++group.ends[up];
    ++sum;
  }
  // The fractions add up to an integer: what is still open is 0 or 1 up to rounding.
  if (open.particle >= 0) group.ends[open.particle] += group.n - sum;
  sum = 0;
  for (i64 i = 0; i < group.n; ++i) group.ends[i] = sum += group.ends[i];
}

// Sums of all tiles of the group; each block also learns them.
template <bool INTEGERS, class T>
__device__ TileSum sum_group(T& team, const Group& group, TileSum* tiles) {
  for (i64 t = team.block(); t < tiles_of(group.n); t += team.blocks()) {
    const i64 begin = t * SUM_TILE;
    const TileSum sum = sum_tile<INTEGERS>(group.sums + begin, group.ends + begin,
                                           tile_size(t, group.n), begin);
    if (threadIdx.x == 0) tiles[t] = sum;
  }
  team.barrier();
  return add_tiles(tiles, 0, tiles_of(group.n), {0.0, 0.0, -1, 0});
}

// Calls body(i, before) for the particles of the tiles that this block summed; `before`: the sums of
// earlier tiles.
template <class T, class Body>
__device__ void each_particle(T& team, const Group& group, const TileSum* tiles, const Body& body) {
  TileSum before = {0.0, 0.0, -1, 0};
  i64 added = 0;
  for (i64 t = team.block(); t < tiles_of(group.n); t += team.blocks()) {
    before = add_tiles(tiles, added, t, before);
    added = t;
    for (i64 i = threadIdx.x; i < tile_size(t, group.n); i += blockDim.x)
      body(t * SUM_TILE + i, before);
  }
}

// The values whose running sums come next, in the same tiles.
template <class T, class Body>
__device__ void fill_tiles(T& team, const Group& group, const Body& body) {
  for (i64 t = team.block(); t < tiles_of(group.n); t += team.blocks())
    for (i64 i = threadIdx.x; i < tile_size(t, group.n); i += blockDim.x) body(t * SUM_TILE + i);
  __syncthreads();
}

// False, after reporting, if the input has a fault; else the largest log-weight is known.
template <class T>
__device__ bool find_top(T& team, Group& group) {
  const double infinity = bits_double(0x7FF0000000000000ull);
  const i64 step = group.counter >> 8, chain = group.args.chains[group.g];
  double top = -infinity;
  for (i64 i = team.thread(); i < group.n; i += team.threads()) {
    const double x = group.log_w(i);
    if (!(x < infinity)) {
      report(group.args.fault, kValueFault, group.g, i, 0, step);
      top = bits_double(0x7FF8000000000000ull);
    }
    top = x > top ? x : top;
  }
  top = block_max(top);
  if (team.blocks() > 1) {
    if (threadIdx.x == 0) group.args.tops[team.block()] = top;
    team.barrier();
    top = -infinity;
    for (i64 b = threadIdx.x; b < team.blocks(); b += blockDim.x) {
      const double other = group.args.tops[b];
      top = other > top || other != other ? other : top;
    }
    top = block_max(top);
  }
  group.top = top;
  if (top == -infinity && team.thread() == 0)
    report(group.args.fault, kNoWeightFault, group.g, -1, chain, step);
  return top > -infinity;
}

// Prepares `sums` and `ends` so that ancestor() can be asked; false if the group is kept as it is.
template <i32 SCHEME, class T>
__device__ bool prepare(T& team, Group& group, bool writes) {
  TileSum* tiles = group.tiles;
  const double count = static_cast<double>(group.n);
  fill_tiles(team, group, [&](i64 i) { group.sums[i] = group.weight(i); });
  group.all = sum_group<false>(team, group, tiles);
  const double total = group.all.sum;
  const double ess = total * total / group.all.squares;
  const double threshold = group.args.ess_threshold;
  const bool resampled = threshold < 0.0 || ess < threshold * count;
  if (writes) {
    group.args.ess[group.g] = ess;
    group.args.resampled[group.g] = resampled ? 1 : 0;
    group.args.log_z[group.g] = resampled ? group.top + log_double(total / count) : 0.0;
  }
  if (!resampled) return false;
  group.scale = count / total;

  if (SCHEME == kSystematic || SCHEME == kStratified) {
    const double u0 = SCHEME == kSystematic ? group.uniform(0) : 0.0;
    each_particle(team, group, tiles, [&](i64 i, const TileSum& before) {
      group.ends[i] = end_of<SCHEME>(group, i, before.sum + group.sums[i], u0);
    });
  } else if (SCHEME == kMultinomial || SCHEME == kKilling) {
    each_particle(team, group, tiles,
                  [&](i64 i, const TileSum& before) { group.sums[i] += before.sum; });
  } else {
    fill_tiles(team, group, [&](i64 i) {
      const double due = group.weight(i) * group.scale;
      group.ends[i] = static_cast<i64>(due);
      group.sums[i] = due - static_cast<double>(group.ends[i]);
      if (SCHEME == kSsp) group.uniforms[i] = group.uniform(i);
    });
    if (SCHEME == kSsp) {
      team.barrier();
      if (team.thread() == 0) round_in_pairs(group);
    } else {
      // A second array of tile sums: other blocks may still read the first.
      tiles += tiles_of(group.n);
      group.all = sum_group<true>(team, group, tiles);
      each_particle(team, group, tiles, [&](i64 i, const TileSum& before) {
        group.sums[i] += before.sum;
        group.ends[i] += before.whole;
      });
    }
  }
  team.barrier();
  return true;
}

__device__ inline i64 draw_ancestor(const Group& group, double u) {
  const i64 found = first_above(group.sums, 0, group.n, u * group.all.sum);
  return found < group.all.last ? found : group.all.last;
}

// The ancestor of row i; those in order lie in [low, high].
template <i32 SCHEME>
__device__ i64 ancestor(const Group& group, i64 i, i64 low, i64 high) {
  if (SCHEME == kMultinomial) return draw_ancestor(group, group.uniform(i));
  if (SCHEME == kKilling) {
    const PhiloxBlock block = group.draw(i);
    if (uniform53(block.w0, block.w1) < group.weight(i)) return i;
    return draw_ancestor(group, uniform53(block.w2, block.w3));
  }
  if (SCHEME == kResidual && i >= group.all.whole)
    return draw_ancestor(group, group.uniform(i - group.all.whole));
  return first_above(group.ends, low, high, i);
}

// Rows [begin, end) of the group: their ancestors, and what these take along. One block calls it.
template <i32 SCHEME>
__device__ void place_rows(const Group& group, i64 begin, i64 end, bool kept) {
  __shared__ i64 chosen[TEAM_THREADS];
  __shared__ i64 bounds[2];
  const ResampleArgs& args = group.args;
  constexpr bool ORDERED = SCHEME != kMultinomial && SCHEME != kKilling;
  const i64 step = group.counter >> 8, out = group.g * group.n;
  // Ancestors in order: two searches of the whole group bound those of all rows of the block.
  if (ORDERED && !kept && begin < end && threadIdx.x < 2) {
    i64 last = SCHEME == kResidual && end > group.all.whole ? group.all.whole : end;
    const i64 i = threadIdx.x == 0 ? begin : last - 1;
    bounds[threadIdx.x] = first_above(group.ends, 0, group.n, i);
  }
  __syncthreads();
  const Lanes<WARP> lanes;
  for (i64 base = begin; base < end; base += blockDim.x) {
    const i64 i = base + threadIdx.x;
    i64 from = i;
    if (i < end) {
      if (!kept) from = ancestor<SCHEME>(group, i, bounds[0], bounds[1]);
      args.ancestors[out + i] = from;
    }
    if (args.num_items == 0) continue;
    if (args.wide != 0) {
      chosen[threadIdx.x] = from;
      __syncthreads();
      const i64 rows = end - base < blockDim.x ? end - base : blockDim.x;
      for (i64 r = 0; r < rows; ++r)
        for (i32 item = 0; item < args.num_items; ++item)
          gather(args.items[item], group.n, group.g, chosen[r], out + base + r, threadIdx.x,
                 blockDim.x, args.fault, step);
      __syncthreads();
      continue;
    }
    const i64 first = i - lanes.rank;
    for (u32 r = 0; r < WARP && first + r < end; ++r) {
      const i64 k = lanes.from(from, r);
      for (i32 item = 0; item < args.num_items; ++item)
        gather(args.items[item], group.n, group.g, k, out + first + r, lanes.rank, WARP, args.fault,
               step);
    }
  }
}

template <i32 SCHEME, bool LARGE>
__device__ void resample_group(Team<LARGE>& team, const ResampleArgs& args, i64 g, i64 slot,
                               i64 part, i64 parts) {
  const i64 n = args.num_particles, chain = args.chains[g];
  const i64 counter = scalar(args.counter_at, args.counter), step = counter >> 8;
  const bool writes = part == 0 && threadIdx.x == 0;
  if (!fits_counter(chain) || !fits_step(counter)) {
    const bool bad_chain = !fits_counter(chain);
    if (writes)
      report(args.fault, bad_chain ? kChainFault : kScalarFault, g, -1, bad_chain ? chain : step,
             step);
    return;
  }
  Group group = {g,
                 n,
                 args,
                 philox_key(scalar(args.seed_at, args.seed)),
                 static_cast<u32>(chain),
                 static_cast<u32>(counter),
                 0.0,
                 0.0,
                 {},
                 args.sums + slot * n,
                 args.ends + slot * n,
                 args.uniforms + slot * n,
                 args.tiles + 2 * tiles_of(n) * slot};
  if (!find_top(team, group)) return;
  const bool kept = !prepare<SCHEME>(team, group, writes);
  place_rows<SCHEME>(group, n * part / parts, n * (part + 1) / parts, kept);
}

// Grid [G, parts]: a block for each part of each group, for N <= SUM_TILE.
template <i32 SCHEME>
__global__ void __launch_bounds__(TEAM_THREADS, 2)
    resample_small(const __grid_constant__ ResampleArgs args) {
  Team<false> team(nullptr);
  const i64 slot = static_cast<i64>(blockIdx.x) * gridDim.y + blockIdx.y;
  resample_group<SCHEME>(team, args, blockIdx.x, slot, blockIdx.y, gridDim.y);
}

// All blocks serve one group after the other; a cooperative launch.
template <i32 SCHEME>
__global__ void __launch_bounds__(TEAM_THREADS, 2)
    resample_large(const __grid_constant__ ResampleArgs args) {
  Team<true> team(args.arrivals);
  for (i64 g = 0; g < args.num_groups; ++g) {
    resample_group<SCHEME>(team, args, g, 0, blockIdx.x, gridDim.x);
    team.barrier();  // the work space is free for the next group
  }
}

}  // namespace fastguide
