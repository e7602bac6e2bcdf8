// Runs CUDA kernels on the host, for tests: a thread of a block is a fiber, a block an OS thread.
// Fibers switch only at collectives, barriers and sleeps, in a shuffled order, so that code which
// relies on lockstep or on the order of threads fails.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
// One OS thread runs one block at a time.
#define __shared__ static thread_local

namespace emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

struct Exchange {
  unsigned arrived = 0, generation = 0;
  unsigned long long given[32], taken[32];
};

struct Fiber {
  ucontext_t context;
  jmp_buf state;
  Index index;
  bool started = false, done = false;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<std::map<unsigned, Exchange>> warps;  // by mask
  jmp_buf scheduler;
  Fiber* current = nullptr;
  unsigned waiting = 0, generation = 0, alive = 0;
  void (*kernel)(const void*) = nullptr;
  const void* args = nullptr;
};

constexpr size_t STACK = 128 << 10;

inline thread_local Block* block = nullptr;

}  // namespace emulator

inline thread_local emulator::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

inline void yield() {
  Fiber* self = block->current;
  if (_setjmp(self->state) == 0) _longjmp(block->scheduler, 1);
  threadIdx = self->index;
}

inline void enter() {
  block->kernel(block->args);
  block->current->done = true;
  --block->alive;
  _longjmp(block->scheduler, 1);
}

inline void resume(Fiber& fiber) {
  block->current = &fiber;
  threadIdx = fiber.index;
  if (_setjmp(block->scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.state, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

// Every lane of the mask gives a word; returns what all of them gave.
inline const unsigned long long* exchange(unsigned mask, unsigned long long word) {
  const unsigned lane = threadIdx.x % 32;
  if ((mask >> lane & 1) == 0) {
    std::fprintf(stderr, "emulator: lane %u calls a collective of mask %08x\n", lane, mask);
    std::abort();
  }
  Exchange& e = block->warps[threadIdx.x / 32][mask];
  const unsigned generation = e.generation;
  e.given[lane] = word;
  if (++e.arrived == static_cast<unsigned>(__builtin_popcount(mask))) {
    std::memcpy(e.taken, e.given, sizeof e.given);
    e.arrived = 0;
    ++e.generation;
  } else {
    while (e.generation == generation) yield();
  }
  return e.taken;
}

template <class T>
T read(const unsigned long long* words, unsigned mask, unsigned lane) {
  static_assert(sizeof(T) <= 8, "one word");
  if ((mask >> lane & 1) == 0) {
    std::fprintf(stderr, "emulator: lane %u is not in mask %08x\n", lane, mask);
    std::abort();
  }
  T x;
  std::memcpy(&x, &words[lane], sizeof x);
  return x;
}

template <class T>
unsigned long long word(T x) {
  unsigned long long w = 0;
  std::memcpy(&w, &x, sizeof x);
  return w;
}

inline void run_block(Index index, Index grid, unsigned threads, unsigned seed,
                      void (*kernel)(const void*), const void* args, char* stacks) {
  Block own;
  block = &own;
  blockIdx = index;
  gridDim = grid;
  blockDim = {threads, 1, 1};
  own.kernel = kernel;
  own.args = args;
  own.alive = threads;
  own.fibers.resize(threads);
  own.warps.resize((threads + 31) / 32);
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = own.fibers[t];
    fiber.index = {t, 0, 0};
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks + t * STACK;
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, &enter, 0);
  }
  unsigned long long random = seed * 2654435761ull + index.x + 1;
  while (own.alive > 0) {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    const unsigned start = static_cast<unsigned>(random >> 33) % threads;
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& fiber = own.fibers[(start + t) % threads];
      if (!fiber.done) resume(fiber);
    }
  }
}

// Blocks start in order, as on a device; `together`: all of them run at the same time.
inline void run_grid(Index grid, unsigned threads, unsigned seed, bool together,
                     void (*kernel)(const void*), const void* args) {
  const unsigned long long blocks = 1ull * grid.x * grid.y * grid.z;
  const unsigned long long workers = together || blocks < 4 ? blocks : 4;
  std::atomic<unsigned long long> next{0};
  std::vector<std::thread> pool;
  for (unsigned long long w = 0; w < workers; ++w)
    pool.emplace_back([&] {
      const std::unique_ptr<char[]> stacks(new char[threads * STACK]);
      for (unsigned long long b; (b = next++) < blocks;) {
        const Index index = {static_cast<unsigned>(b % grid.x),
                             static_cast<unsigned>(b / grid.x % grid.y),
                             static_cast<unsigned>(b / grid.x / grid.y)};
        run_block(index, grid, threads, seed, kernel, args, stacks.get());
      }
    });
  for (std::thread& thread : pool) thread.join();
}

}  // namespace emulator

inline void __syncthreads() {
  emulator::Block& b = *emulator::block;
  const unsigned generation = b.generation;
  ++b.waiting;
  // Threads that have returned no longer count.
  while (b.generation == generation) {
    if (b.waiting == b.alive) {
      b.waiting = 0;
      ++b.generation;
      return;
    }
    emulator::yield();
  }
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { emulator::exchange(mask, 0); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __nanosleep(unsigned) {
  std::this_thread::yield();
  emulator::yield();
}

template <class T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32) {
  const unsigned lane = threadIdx.x % 32, w = static_cast<unsigned>(width);
  const auto* words = emulator::exchange(mask, emulator::word(x));
  return emulator::read<T>(words, mask, lane / w * w + static_cast<unsigned>(source) % w);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T x, int distance, int = 32) {
  const auto* words = emulator::exchange(mask, emulator::word(x));
  return emulator::read<T>(words, mask, threadIdx.x % 32 ^ static_cast<unsigned>(distance));
}

template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned distance, int = 32) {
  const unsigned lane = threadIdx.x % 32;
  const auto* words = emulator::exchange(mask, emulator::word(x));
  return emulator::read<T>(words, mask, lane < distance ? lane : lane - distance);
}

inline unsigned __ballot_sync(unsigned mask, bool x) {
  const auto* words = emulator::exchange(mask, x ? 1 : 0);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((mask >> lane & 1) != 0 && words[lane] != 0) bits |= 1u << lane;
  return bits;
}

inline int __all_sync(unsigned mask, bool x) { return __ballot_sync(mask, x) == mask; }

inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

template <class T>
T atomicCAS(T* at, T due, T x) {
  __atomic_compare_exchange_n(at, &due, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return due;
}

template <class T>
T atomicAdd(T* at, T x) {
  return __atomic_fetch_add(at, x, __ATOMIC_SEQ_CST);
}

template <class T>
T atomicExch(T* at, T x) {
  return __atomic_exchange_n(at, x, __ATOMIC_SEQ_CST);
}

template <class T>
T atomicMax(T* at, T x) {
  T old = __atomic_load_n(at, __ATOMIC_SEQ_CST);
  while (old < x && !__atomic_compare_exchange_n(at, &old, x, false, __ATOMIC_SEQ_CST,
                                                 __ATOMIC_SEQ_CST)) {
  }
  return old;
}
