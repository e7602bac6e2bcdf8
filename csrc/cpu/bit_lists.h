// The set bits of every byte, listed: how a vector loop writes down which of eight lanes matched.
#pragma once

#include "fastguide/portability.cuh"

namespace fastguide {

struct BitLists {
  unsigned char bytes[256][8];  // positions of the set bits, ascending, then zeros
  unsigned char count[256];
};

constexpr BitLists list_bits() {
  BitLists lists = {};
  for (u32 byte = 0; byte < 256; ++byte)
    for (u32 bit = 0; bit < 8; ++bit)
      if (byte >> bit & 1)
        lists.bytes[byte][lists.count[byte]++] = static_cast<unsigned char>(bit);
  return lists;
}

constexpr BitLists SET_BITS = list_bits();

}  // namespace fastguide
