"""Text that lets tests/cuda run a CUDA source on the host."""

from __future__ import annotations

from fastguide.kernels.cuda import Source


def entry_points(source: Source) -> str:
    """C++ that runs any kernel of `source` by its name expression."""
    cases = "\n".join(
        f'  if (!std::strcmp(name, "{kernel}")) run = [](const void* a) {{ '
        f"fastguide::{kernel}(*static_cast<const fastguide::{source.args.__name__}*>(a)); }};"
        for kernel in source.kernels
    )
    return f"""
#include "emulator.h"
#include "{source.op}.cu"
extern "C" int emulate(const char* name, const unsigned* grid, unsigned threads, unsigned seed,
                       int together, const void* args) {{
  void (*run)(const void*) = nullptr;
{cases}
  if (run == nullptr) return 1;
  emulator::run_grid({{grid[0], grid[1], grid[2]}}, threads, seed, together != 0, run, args);
  return 0;
}}
"""
