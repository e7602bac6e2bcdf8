// Four normals of the stream.
#pragma once

#include "math.cuh"
#include "philox.cuh"

namespace fastguide {

struct NormalBlock {
  double z[4];  // elements 4b, 4b + 1, 4b + 2, 4b + 3 of block b
};

FG_HD NormalBlock normal_block(u64 w0, u64 w1, u64 w2, u64 w3) {
  const NormalPair low = box_muller(w0, w1);
  const NormalPair high = box_muller(w2, w3);
  return {{low.first, low.second, high.first, high.second}};
}

}  // namespace fastguide
