// Which instruction set the loops use: chosen once, by the CPU or by FASTGUIDE_CPU.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)  // clang defines it too
#define FG_X86 1
#else
#define FG_X86 0
#endif

namespace fastguide {

enum class Level { baseline = 0, avx2 = 1, avx512 = 2 };

// The best level of this CPU, or the one FASTGUIDE_CPU names. Throws std::runtime_error if that
// name is unknown or this CPU cannot run it.
Level cpu_level();

const char* level_name(Level level);

bool cpu_supports(Level level);

// The entry of a table with one function per level.
template <class F>
F pick_level(F baseline, F avx2, F avx512) {
  switch (cpu_level()) {
    case Level::avx512: return avx512;
    case Level::avx2: return avx2;
    default: return baseline;
  }
}

}  // namespace fastguide

// FG_PICK(name): the function `name` of the namespace of the level in force.
#if FG_X86
#define FG_PICK(...) pick_level(&baseline::__VA_ARGS__, &avx2::__VA_ARGS__, &avx512::__VA_ARGS__)
#else
#define FG_PICK(...) (&baseline::__VA_ARGS__)
#endif
