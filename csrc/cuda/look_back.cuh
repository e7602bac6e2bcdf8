// Prefix sums over tiles in one pass: each tile publishes its sum, then adds what the tiles before
// it published. Source: Merrill, Garland, "Single-pass parallel prefix scan with decoupled
// look-back", NVIDIA NVR-2016-002.
#pragma once

#include "device.cuh"

namespace fastguide {

// A published word: the kind in the two highest bits, a sum below 2^62 in the others. Kind and sum
// travel in one store, so no fence is needed between them.
constexpr u64 TILE_SUM = 1ull << 62;     // of the tile alone
constexpr u64 PREFIX_SUM = 2ull << 62;   // of the tile and all before it
constexpr u64 SUM_BITS = (1ull << 62) - 1;

// The next tile to work on. Tickets are drawn in the order in which blocks start, so every earlier
// tile belongs to a block that runs or has ended: waiting for it cannot deadlock.
__device__ inline i64 take_tile(u64* ticket) {
  __shared__ u64 taken;
  if (threadIdx.x == 0) taken = atomicAdd(ticket, 1ull);
  __syncthreads();
  const u64 tile = taken;
  __syncthreads();
  return static_cast<i64>(tile);
}

// Sum of all tiles before `tile`, whose own sum is `sum`. `states` [tiles] were zero when the kernel
// started. Called by one whole warp; every lane gets the result.
__device__ inline u64 look_back(u64* states, i64 tile, u64 sum) {
  const u32 lane = threadIdx.x % WARP;
  if (lane == 0) store_relaxed(&states[tile], (tile == 0 ? PREFIX_SUM : TILE_SUM) | sum);
  u64 before = 0;
  for (i64 end = tile; end > 0; end -= WARP) {
    const i64 other = end - 1 - lane;  // lane 0 holds the nearest tile
    u64 state = PREFIX_SUM;
    if (other >= 0)
      while ((state = load_relaxed(&states[other])) == 0) __nanosleep(20);
    const u32 complete = __ballot_sync(FULL_WARP, (state & PREFIX_SUM) != 0);
    const u32 nearest = static_cast<u32>(__ffs(static_cast<int>(complete))) - 1;
    u64 part = lane <= nearest ? state & SUM_BITS : 0;
    for (u32 distance = WARP / 2; distance > 0; distance /= 2)
      part += __shfl_xor_sync(FULL_WARP, part, static_cast<int>(distance));
    before += part;
    if (complete != 0) break;
  }
  if (lane == 0 && tile > 0) store_relaxed(&states[tile], PREFIX_SUM | (before + sum));
  return before;
}

}  // namespace fastguide
