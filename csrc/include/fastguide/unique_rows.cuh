// Where a 128-bit key starts to look in a table of 2^bits slots.
#pragma once

#include "portability.cuh"

namespace fastguide {

// Mixes both words, so that keys which differ in few bits still spread.
FG_HD u64 first_slot(u64 low, u64 high, int bits) {
  u64 h = (low ^ (high * 0x9E3779B97F4A7C15ull)) * 0xD6E8FEB86659FD93ull;
  h ^= h >> 32;
  return (h * 0xD6E8FEB86659FD93ull) >> (64 - bits);
}

}  // namespace fastguide
