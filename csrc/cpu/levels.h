// Compiles the file FG_BODY once per instruction set, each time in its own namespace. The target
// is an attribute of every function (and not a pragma), so that templates of the standard library
// that these files share with others keep the baseline instruction set.
#include "dispatch.h"
#include "fastguide/portability.cuh"

#if FG_X86
#include <immintrin.h>
#endif

#if defined(_MSC_VER)
#define FG_LANE static __forceinline
#else
#define FG_LANE static inline __attribute__((always_inline)) FG_TARGET
#endif

#if defined(__GNUC__) || defined(__clang__)
#define FG_PREFETCH(address) __builtin_prefetch(address)
#define FG_PREFETCH_OUTPUT(address) __builtin_prefetch(address, 1, 2)
#else
#define FG_PREFETCH(address) static_cast<void>(address)
#define FG_PREFETCH_OUTPUT(address) static_cast<void>(address)
#endif

#define FG_LEVEL 0
#define FG_NAMESPACE baseline
#define FG_TARGET
#include "lanes.h"
#include FG_BODY
#undef FG_LEVEL
#undef FG_NAMESPACE
#undef FG_TARGET

#if FG_X86

#define FG_LEVEL 1
#define FG_NAMESPACE avx2
#define FG_TARGET __attribute__((target("avx2,fma,f16c")))
#include "lanes.h"
#include FG_BODY
#undef FG_LEVEL
#undef FG_NAMESPACE
#undef FG_TARGET

#define FG_LEVEL 2
#define FG_NAMESPACE avx512
#define FG_TARGET \
  __attribute__((target("avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")))
#include "lanes.h"
#include FG_BODY
#undef FG_LEVEL
#undef FG_NAMESPACE
#undef FG_TARGET

#endif
