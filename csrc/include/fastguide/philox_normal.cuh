// Two normals from a pair of words of the stream.
#pragma once

#include "math.cuh"
#include "philox.cuh"

#ifndef __CUDACC_RTC__
#include <cmath>
#endif

namespace fastguide {

struct NormalPair {
  double first, second;
};

// Box-Muller: r cos(theta), r sin(theta) with r = sqrt(-2 ln((w_a + 1/2) 2^-32)) and
// theta = 2 pi w_b 2^-32. Block b of the stream holds elements 4b, 4b + 1 in its words 0, 1 and
// elements 4b + 2, 4b + 3 in its words 2, 3.
FG_HD NormalPair normal_pair(u64 w_a, u64 w_b) {
  const double radius = sqrt(radius_squared(w_a));
  const UnitVector direction = turn(w_b);
  return {radius * direction.cos, radius * direction.sin};
}

}  // namespace fastguide
