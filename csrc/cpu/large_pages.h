// Large pages for large outputs: fresh memory costs a page fault every 4 KiB otherwise, which takes
// longer than the arithmetic of a kernel that writes each entry once.
#pragma once

#include <cstdint>

#include "fastguide/portability.cuh"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastguide {

// Asks for large pages inside data [count], which nobody has written yet; a kernel that has none to
// give serves small ones as before.
template <class T>
void ask_for_large_pages(T* data, i64 count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t PAGE = 2 << 20, FEWEST = 4;
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (address + PAGE - 1) / PAGE * PAGE;
  const std::uintptr_t end = (address + static_cast<std::uintptr_t>(count) * sizeof(T)) / PAGE * PAGE;
  if (end >= begin + FEWEST * PAGE)
    static_cast<void>(madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE));
#else
  static_cast<void>(data), static_cast<void>(count);
#endif
}

}  // namespace fastguide
