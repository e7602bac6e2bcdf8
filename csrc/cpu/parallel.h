// Row ranges over OpenMP threads.
#pragma once

#include <new>

#include "fastguide/fault.cuh"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastguide {

// Threads worth starting: small work (in elements) stays on the calling thread.
inline i64 useful_threads(i64 num_rows, i64 elements_per_row, int num_threads) {
#ifdef _OPENMP
  constexpr i64 GRAIN = 32768;
  i64 threads = num_rows * (elements_per_row > 0 ? elements_per_row : 1) / GRAIN;
  if (threads > num_threads) threads = num_threads;
  return threads < num_rows ? threads : num_rows;
#else
  (void)num_rows, (void)elements_per_row, (void)num_threads;
  return 1;
#endif
}

// Runs body(begin, end) -> Fault over [0, num_rows), split into one contiguous range per thread, and
// returns the fault of the lowest row. Throws std::bad_alloc if a body did.
template <class Body>
Fault parallel_rows(i64 num_rows, i64 elements_per_row, int num_threads, const Body& body) {
  const i64 threads = useful_threads(num_rows, elements_per_row, num_threads);
  if (threads <= 1) return body(0, num_rows);
  Fault first;
#ifdef _OPENMP
  bool out_of_memory = false;
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    const i64 part = omp_get_thread_num(), parts = omp_get_num_threads();
    const i64 begin = num_rows / parts * part + (part < num_rows % parts ? part : num_rows % parts);
    const i64 end = begin + num_rows / parts + (part < num_rows % parts ? 1 : 0);
    Fault fault;
    bool failed = false;
    try {
      fault = body(begin, end);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
#pragma omp critical(fastguide_fault)
    {
      out_of_memory |= failed;
      if (fault.code != kNoFault && (first.code == kNoFault || fault.row < first.row)) first = fault;
    }
  }
  if (out_of_memory) throw std::bad_alloc();
#endif
  return first;
}

}  // namespace fastguide
