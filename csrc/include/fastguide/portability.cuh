// What host compilers, nvcc and NVRTC spell differently. Nothing from the standard library is
// included when NVRTC compiles (it has none).
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define FG_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define FG_HD __forceinline
#else
// Always inlined, so that a body takes the instruction set of the loop it lands in.
#define FG_HD inline __attribute__((always_inline))
#endif

#ifndef __CUDACC_RTC__
#include <cstring>
#endif

namespace fastguide {

using i32 = int;
using i64 = long long;
using u32 = unsigned int;
using u64 = unsigned long long;

FG_HD u64 double_bits(double x) {
#ifdef __CUDA_ARCH__
  return static_cast<u64>(__double_as_longlong(x));
#else
  u64 bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

FG_HD double bits_double(u64 bits) {
#ifdef __CUDA_ARCH__
  return __longlong_as_double(static_cast<i64>(bits));
#else
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

}  // namespace fastguide
