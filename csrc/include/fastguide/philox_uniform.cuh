// One uniform of the stream.
#pragma once

#include "philox.cuh"

namespace fastguide {

// Counter (element, candidate id, chain, step << 8 | purpose), words 0 and 1.
FG_HD double philox_uniform_at(u32 element, u32 candidate, u32 chain, u32 c3, PhiloxKey key) {
  const PhiloxBlock block = philox(element, candidate, chain, c3, key);
  return uniform53(block.w0, block.w1);
}

}  // namespace fastguide
