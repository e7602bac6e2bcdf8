// What only device code has: ordered loads and stores, collectives of a few lanes, fault records.
#pragma once

#include "fastguide/fault.cuh"
#include "fastguide/portability.cuh"

namespace fastguide {

constexpr u32 WARP = 32;
constexpr u32 FULL_WARP = 0xFFFFFFFFu;

// Bypasses the L1 cache, which does not see what other multiprocessors wrote.
FG_HD u64 load_relaxed(const u64* at) {
#ifdef __CUDA_ARCH__
  u64 x;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(x) : "l"(at) : "memory");
  return x;
#else
  return __atomic_load_n(at, __ATOMIC_RELAXED);
#endif
}

FG_HD u64 load_acquire(const u64* at) {
#ifdef __CUDA_ARCH__
  u64 x;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(x) : "l"(at) : "memory");
  return x;
#else
  return __atomic_load_n(at, __ATOMIC_ACQUIRE);
#endif
}

FG_HD void store_relaxed(u64* at, u64 x) {
#ifdef __CUDA_ARCH__
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" : : "l"(at), "l"(x) : "memory");
#else
  __atomic_store_n(at, x, __ATOMIC_RELAXED);
#endif
}

FG_HD void store_release(u64* at, u64 x) {
#ifdef __CUDA_ARCH__
  asm volatile("st.release.gpu.global.u64 [%0], %1;" : : "l"(at), "l"(x) : "memory");
#else
  __atomic_store_n(at, x, __ATOMIC_RELEASE);
#endif
}

// A scalar argument: what a device address holds when the kernel runs, or a number. Graphs replay
// with new values through the address.
template <class T>
FG_HD T scalar(const T* at, T value) {
  return at == nullptr ? value : *at;
}

// step << 8 | purpose of a step in [0, 2^24).
FG_HD bool fits_step(i64 counter) { return counter >= 0 && counter < 1LL << 32; }

// COUNT neighbouring lanes of a warp that work on one row.
template <u32 COUNT>
struct Lanes {
  u32 rank, mask;

  __device__ Lanes() : rank(threadIdx.x % COUNT) {
    const u32 lane = threadIdx.x % WARP;
    mask = COUNT == WARP ? FULL_WARP : ((1u << (COUNT % WARP)) - 1) << (lane - rank);
  }
  template <class T>
  __device__ T from(T x, u32 source) const {
    return __shfl_sync(mask, x, static_cast<int>(source), COUNT);
  }
  template <class T>
  __device__ T across(T x, u32 distance) const {
    return __shfl_xor_sync(mask, x, static_cast<int>(distance), COUNT);
  }
  __device__ bool all(bool x) const { return __all_sync(mask, x) != 0; }
  // Bit r: x of the lane of rank r.
  __device__ u32 ballot(bool x) const {
    return (__ballot_sync(mask, x) & mask) >> (threadIdx.x % WARP - rank);
  }
};

// Inclusive sum over the lanes of a warp.
template <class T>
__device__ T warp_inclusive_sum(T x) {
  const u32 lane = threadIdx.x % WARP;
  for (u32 distance = 1; distance < WARP; distance *= 2) {
    const T left = __shfl_up_sync(FULL_WARP, x, distance);
    x += lane >= distance ? left : T(0);
  }
  return x;
}

// Exclusive sum over the threads of a block of whole warps, and the total of all. Every thread of
// the block must call it.
template <u32 THREADS>
__device__ u64 block_exclusive_sum(u64 x, u64* total) {
  __shared__ u64 sums[THREADS / WARP];
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const u64 inclusive = warp_inclusive_sum(x);
  __syncthreads();  // the sums of an earlier call have been read
  if (lane == WARP - 1) sums[warp] = inclusive;
  __syncthreads();
  u64 before = 0, all = 0;
  for (u32 w = 0; w < THREADS / WARP; ++w) {
    before += w < warp ? sums[w] : 0;
    all += sums[w];
  }
  *total = all;
  return before + inclusive - x;
}

// The first fault of an op: lowest row, then lowest column. kernels/device_faults.py owns it, sets key
// to 2^63 - 1 and the rest to 0, and reads it when the host waits anyway.
struct FaultRecord {
  u64 key;  // row << 28 | min(column + 1, 2^20 - 1) << 8 | code
  i64 value, step;
  u64 lock;
};

constexpr u64 MOST_COLUMNS = (1ull << 20) - 1;

__device__ inline void report(FaultRecord* record, i32 code, i64 row, i64 column, i64 value,
                              i64 step) {
  const u64 place = static_cast<u64>(column + 1);
  const u64 key = static_cast<u64>(row) << 28 |
                  (place < MOST_COLUMNS ? place : MOST_COLUMNS) << 8 | static_cast<u64>(code);
  // Without this look a tensor full of NaN would queue every row at the lock.
  if (load_relaxed(&record->key) <= key) return;
  for (bool done = false; !done;) {
    if (atomicCAS(&record->lock, 0ull, 1ull) != 0) continue;
    __threadfence();
    if (key < load_relaxed(&record->key)) {
      store_relaxed(&record->key, key);
      store_relaxed(reinterpret_cast<u64*>(&record->value), static_cast<u64>(value));
      store_relaxed(reinterpret_cast<u64*>(&record->step), static_cast<u64>(step));
    }
    __threadfence();
    atomicExch(&record->lock, 0ull);
    done = true;
  }
}

}  // namespace fastguide
