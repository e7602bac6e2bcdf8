// The threads that work on one group of particles: a block, or all blocks of a cooperative launch.
#pragma once

#include "device.cuh"
#include "fastguide/resample.cuh"

namespace fastguide {

constexpr u32 TEAM_THREADS = 256;  // at most, per block

// WHOLE_GRID: `arrivals` [1] was zero when the kernel started, and all blocks run at once.
template <bool WHOLE_GRID>
struct Team {
  u64* arrivals;
  u64 rounds = 0;

  __device__ explicit Team(u64* counter) : arrivals(counter) {}

  __device__ i64 thread() const {
    return (WHOLE_GRID ? static_cast<i64>(blockIdx.x) * blockDim.x : 0) + threadIdx.x;
  }
  __device__ i64 threads() const {
    return (WHOLE_GRID ? static_cast<i64>(gridDim.x) : 1) * blockDim.x;
  }
  __device__ i64 block() const { return WHOLE_GRID ? blockIdx.x : 0; }
  __device__ i64 blocks() const { return WHOLE_GRID ? gridDim.x : 1; }

  // What any thread of the team wrote before is seen by all of them after.
  __device__ void barrier() {
    __syncthreads();
    if (!WHOLE_GRID) return;
    ++rounds;
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(arrivals, 1ull);
      while (load_acquire(arrivals) < rounds * gridDim.x) __nanosleep(40);
      __threadfence();
    }
    __syncthreads();
  }
};

// The maximum over a block; NaN if any thread gives NaN. Every thread of the block must call it.
__device__ inline double block_max(double x) {
  __shared__ double parts[TEAM_THREADS / WARP];
  const Lanes<WARP> lanes;
  for (u32 distance = WARP / 2; distance > 0; distance /= 2) {
    const double other = lanes.across(x, distance);
    x = other > x || other != other ? other : x;
  }
  __syncthreads();  // the parts of an earlier call have been read
  if (lanes.rank == 0) parts[threadIdx.x / WARP] = x;
  __syncthreads();
  x = parts[0];
  for (u32 warp = 1; warp < blockDim.x / WARP; ++warp)
    x = parts[warp] > x || parts[warp] != parts[warp] ? parts[warp] : x;
  return x;
}

// Sums over a tile of the particles of a group: what later tiles and the weights as a whole need.
struct TileSum {
  double sum, squares;
  i64 last;   // index of the last positive value, or -1
  i64 whole;  // sum of the integers that go along
};

// Running sums are taken within BLOCK values, over the blocks of a tile, and over tiles: three
// levels of additions in a fixed order, whatever the grid. Up to one tile it is the order of
// fastguide.reference.resample.running_sums.
constexpr i64 SUM_BLOCKS = 64;
constexpr i64 SUM_TILE = SUM_BLOCK * SUM_BLOCKS;

// Turns values [count] of one tile into running sums within the tile, and so the integers `wholes`
// where given; called by one block.
template <bool INTEGERS>
__device__ TileSum sum_tile(double* values, i64* wholes, i64 count, i64 index) {
  __shared__ double sums[SUM_BLOCKS], squares[SUM_BLOCKS];
  __shared__ i64 lasts[SUM_BLOCKS], counts[SUM_BLOCKS];
  __shared__ TileSum tile;
  const i64 blocks = (count + SUM_BLOCK - 1) / SUM_BLOCK;
  for (i64 b = threadIdx.x; b < blocks; b += blockDim.x) {
    const i64 end = (b + 1) * SUM_BLOCK < count ? (b + 1) * SUM_BLOCK : count;
    double sum = 0.0, square = 0.0;
    i64 last = -1, whole = 0;
    for (i64 i = b * SUM_BLOCK; i < end; ++i) {
      const double x = values[i];
      sum += x;
      square += x * x;
      last = x > 0.0 ? index + i : last;
      values[i] = sum;
      if (INTEGERS) wholes[i] = whole += wholes[i];
    }
    sums[b] = sum;
    squares[b] = square;
    lasts[b] = last;
    counts[b] = whole;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    TileSum all = {0.0, 0.0, -1, 0};
    for (i64 b = 0; b < blocks; ++b) {
      const double sum = sums[b];
      const i64 whole = counts[b];
      sums[b] = all.sum;
      counts[b] = all.whole;
      all.sum += sum;
      all.squares += squares[b];
      all.last = lasts[b] >= 0 ? lasts[b] : all.last;
      all.whole += whole;
    }
    tile = all;
  }
  __syncthreads();
  for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
    values[i] += sums[i / SUM_BLOCK];
    if (INTEGERS) wholes[i] += counts[i / SUM_BLOCK];
  }
  const TileSum result = tile;
  __syncthreads();  // the next call overwrites what was read here
  return result;
}

// The sums of tiles [begin, end), added to `sum` in order.
__device__ inline TileSum add_tiles(const TileSum* tiles, i64 begin, i64 end, TileSum sum) {
#pragma unroll 4
  for (i64 t = begin; t < end; ++t) {
    const TileSum tile = tiles[t];
    sum.sum += tile.sum;
    sum.squares += tile.squares;
    sum.last = tile.last >= 0 ? tile.last : sum.last;
    sum.whole += tile.whole;
  }
  return sum;
}

}  // namespace fastguide
