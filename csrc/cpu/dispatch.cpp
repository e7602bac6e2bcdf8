#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if FG_X86
#include <cpuid.h>
#endif

namespace fastguide {

const char* level_name(Level level) {
  switch (level) {
    case Level::avx512: return "avx512";
    case Level::avx2: return "avx2";
    default: return "baseline";
  }
}

#if FG_X86
// Older compilers do not know its name in __builtin_cpu_supports.
static bool cpu_has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

bool cpu_supports(Level level) {
  if (level == Level::baseline) return true;
#if FG_X86
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c();
  if (level == Level::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

static Level choose_level() {
  const Level levels[] = {Level::avx512, Level::avx2, Level::baseline};
  const char* asked = std::getenv("FASTGUIDE_CPU");
  if (asked == nullptr || *asked == '\0') {
    for (Level level : levels)
      if (cpu_supports(level)) return level;
  }
  for (Level level : levels) {
    if (std::string(asked) != level_name(level)) continue;
    if (cpu_supports(level)) return level;
    throw std::runtime_error("FASTGUIDE_CPU=" + std::string(asked) +
                             ": this CPU cannot run it; unset the variable to use the best level");
  }
  throw std::runtime_error("FASTGUIDE_CPU=" + std::string(asked) +
                           ": unknown level; use baseline, avx2 or avx512");
}

Level cpu_level() {
  static const Level level = choose_level();
  return level;
}

}  // namespace fastguide
