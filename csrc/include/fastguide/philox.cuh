// Philox4x32-10, a counter-based generator. Source: Salmon, Moraes, Dror, Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include "portability.cuh"

namespace fastguide {

constexpr u32 PHILOX_M0 = 0xD2511F53u;
constexpr u32 PHILOX_M1 = 0xCD9E8D57u;
constexpr u32 PHILOX_W0 = 0x9E3779B9u;
constexpr u32 PHILOX_W1 = 0xBB67AE85u;
constexpr int PHILOX_ROUNDS = 10;

struct PhiloxKey {
  u32 k0, k1;
};

// The keys of all rounds, for loops that draw many blocks with one key.
struct RoundKeys {
  u64 k0[PHILOX_ROUNDS], k1[PHILOX_ROUNDS];
};

struct PhiloxBlock {
  u32 w0, w1, w2, w3;
};

FG_HD PhiloxKey philox_key(u64 seed) {
  return {static_cast<u32>(seed), static_cast<u32>(seed >> 32)};
}

FG_HD constexpr RoundKeys round_keys(PhiloxKey key) {
  RoundKeys keys = {};
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    keys.k0[round] = key.k0;
    keys.k1[round] = key.k1;
    key.k0 += PHILOX_W0;
    key.k1 += PHILOX_W1;
  }
  return keys;
}

FG_HD PhiloxBlock philox(u32 c0, u32 c1, u32 c2, u32 c3, PhiloxKey key) {
  u32 k0 = key.k0, k1 = key.k1;
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    const u64 p0 = static_cast<u64>(PHILOX_M0) * c0;
    const u64 p1 = static_cast<u64>(PHILOX_M1) * c2;
    c0 = static_cast<u32>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<u32>(p1);
    c2 = static_cast<u32>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<u32>(p0);
    k0 += PHILOX_W0;
    k1 += PHILOX_W1;
  }
  return {c0, c1, c2, c3};
}

// A 32-bit word as a double, exactly. Every instruction set vectorises this spelling, while the
// plain conversion from unsigned needs AVX-512.
FG_HD double word_double(u64 word) {
  return bits_double(0x4330000000000000ull | word) - 0x1p52;
}

// 53-bit uniform in [0, 1): ((w0 | w1 << 32) >> 11) * 2^-53. Both terms and their sum are exact.
FG_HD double uniform53(u64 w0, u64 w1) {
  return word_double(w1) * 0x1p-32 + word_double(w0 >> 11) * 0x1p-53;
}

// Smallest word that does not reveal: floor(rho * 2^32), which needs 33 bits at rho = 1.
FG_HD u64 reveal_threshold(double rho) { return static_cast<u64>(rho * 0x1p32); }

}  // namespace fastguide
