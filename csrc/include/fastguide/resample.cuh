// Offspring of weighted particles.
#pragma once

#include "math.cuh"
#include "philox.cuh"

namespace fastguide {

// The same order as SCHEMES in fastguide/reference/resample.py.
enum ResampleScheme : i32 {
  kSystematic = 0,
  kStratified = 1,
  kMultinomial = 2,
  kResidual = 3,
  kSsp = 4,
  kKilling = 5,
};

// Running sums add up inside blocks of so many weights, then over the blocks.
constexpr i64 SUM_BLOCK = 128;

// floor(x) of 0 <= x < 2^51, in a spelling that every instruction set vectorises.
FG_HD double floor_positive(double x) {
  const double nearest = (x + 0x1p52) - 0x1p52;
  return nearest - pick_double(nearest > x, 1.0, 0.0);
}

// A whole double in [0, 2^51) as an integer, likewise.
FG_HD i64 whole_number(double x) {
  return static_cast<i64>(double_bits(x + 0x1p52) - 0x4330000000000000ull);
}

// How many of the points i + u_i, i = 0, ..., n - 1, lie below `edge`, of which `whole` is the floor
// and u the uniform of that point. Both sides of the comparison are exact.
FG_HD double points_below(double edge, double whole, double u, double n) {
  const double count = whole + pick_double(u < edge - whole, 1.0, 0.0);
  return pick_double(count < n, count, n);
}

// Fractions of N w, rounded in pairs that keep their sum. One particle is open at a time.
struct OpenFraction {
  i64 particle;  // -1: none yet
  double fraction;
};

// The open particle meets particle i of fraction g > 0, with the uniform of i. Returns the particle
// that is rounded up to 1, or -1.
FG_HD i64 pair_fractions(OpenFraction& open, i64 i, double g, double u) {
  const double f = open.fraction, both = f + g;
  if (f == 0.0) {
    open = {i, g};
    return -1;
  }
  if (both < 1.0) {
    open = {u * both < f ? open.particle : i, both};
    return -1;
  }
  const bool rounds_open = u * (2.0 - both) < 1.0 - g;
  const i64 up = rounds_open ? open.particle : i;
  open = {rounds_open ? i : open.particle, both - 1.0};
  return up;
}

}  // namespace fastguide
