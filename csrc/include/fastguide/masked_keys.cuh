// 128-bit Zobrist keys: a row's key is the XOR over its sites of word(site, token), so a change of
// one site changes the key by two words. Source: Zobrist, "A new hashing method with application
// for game playing", 1970.
#pragma once

#include "philox.cuh"

namespace fastguide {

constexpr PhiloxKey ZOBRIST_KEY = {0x66617374u, 0x67756964u};
constexpr u32 ZOBRIST_C3 = 0x5A4F4252u;

struct Key128 {
  u64 low, high;
};

FG_HD Key128 operator^(Key128 a, Key128 b) { return {a.low ^ b.low, a.high ^ b.high}; }

FG_HD Key128 site_word(u32 site, i64 token) {
  const u64 bits = static_cast<u64>(token);
  const PhiloxBlock block =
      philox(site, static_cast<u32>(bits), static_cast<u32>(bits >> 32), ZOBRIST_C3, ZOBRIST_KEY);
  return {block.w0 | static_cast<u64>(block.w1) << 32, block.w2 | static_cast<u64>(block.w3) << 32};
}

}  // namespace fastguide
