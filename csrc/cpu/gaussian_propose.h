// Body of gaussian_propose, compiled once per instruction set (levels.h).
#include "philox_normal.h"
#include "single_lanes.h"

namespace fastguide {
namespace FG_NAMESPACE {

// sums[i] += h[i] z[i]. Lane i holds the elements i, i + SUM_LANES, ... on every instruction set.
template <class T>
FG_LANE void add_products(const double* h, const T* z, i64 count, double* sums) {
  if (count % 16 == 0) {
    for (i64 i = 0; i < count; i += 16)
      for (i64 j = i; j < i + 16; ++j) sums[j] += h[j] * static_cast<double>(z[j]);
  } else {
    for (i64 i = 0; i < count; ++i) sums[i] += h[i] * static_cast<double>(z[i]);
  }
}

// What the elements of one step of the loop have in common for all candidates.
template <class T>
FG_LANE void scaled_shifts(const GaussianArgs& args, const GaussianTile<T>& tile, i64 e, i64 count,
                           double* h) {
  for (i64 i = 0; i < count; ++i) h[i] = static_cast<double>(tile.shift[e + i]) / args.s;
  const i64 lane = (e - tile.begin) % SUM_LANES;
  double* squares = tile.sums + args.noise.num_candidates * SUM_LANES + lane;
  add_products(h, h, count, squares);
}

template <class T>
FG_TARGET void gaussian_tile(const GaussianArgs& args, const GaussianTile<T>& tile);

template <>
FG_TARGET void gaussian_tile<float>(const GaussianArgs& args, const GaussianTile<float>& tile) {
  const RoundKeys keys = round_keys(philox_key(args.noise.seed));
  const u32 chain = static_cast<u32>(args.noise.chains[tile.n]);
  const i64 first = args.noise.first_candidate == nullptr ? 0 : args.noise.first_candidate[tile.n];
  const i64 num_candidates = args.noise.num_candidates, num_elements = args.noise.num_elements;
  const FloatRegister a = repeat_float(static_cast<float>(args.a));
  const FloatRegister b = repeat_float(static_cast<float>(args.b));
  const FloatRegister s = repeat_float(static_cast<float>(args.s));
  float padded[3][STEP] = {}, last[STEP], z_last[STEP];
  double h[STEP];
  for (i64 e = tile.begin; e < tile.end; e += STEP) {
    const i64 left = tile.end - e, count = left < STEP ? left : STEP;
    const float* x = tile.x + e;
    const float* output = tile.output + e;
    const float* shift = tile.shift == nullptr ? padded[2] : tile.shift + e;
    if (count < STEP) {
      for (i64 i = 0; i < count; ++i) {
        padded[0][i] = x[i];
        padded[1][i] = output[i];
        padded[2][i] = shift[i];
      }
      x = padded[0];
      output = padded[1];
      shift = padded[2];
    }
    FloatRegister mean[NORMAL_REGISTERS];
    for (int i = 0; i < NORMAL_REGISTERS; ++i) {
      const int at = i * FLOATS;
      mean[i] = fuse(a, load_floats(x + at),
                     fuse(b, load_floats(output + at), load_floats(shift + at)));
    }
    const SharedRounds shared = shared_rounds(static_cast<u64>(e / 4), chain, args.noise.c3, keys);
    if (tile.shift != nullptr) scaled_shifts(args, tile, e, count, h);
    for (i64 k = 0; k < num_candidates; ++k) {
      float* row = tile.out + k * num_elements + e;
      float* target = count < STEP ? last : row;
      if (args.s > 0.0) {
        const Normals z = candidate_normals(shared, static_cast<u32>(first + k), chain, keys);
        for (int i = 0; i < NORMAL_REGISTERS; ++i)
          store_floats(fuse(s, z.v[i], mean[i]), target + i * FLOATS);
        if (tile.shift != nullptr) {
          for (int i = 0; i < NORMAL_REGISTERS; ++i) store_floats(z.v[i], z_last + i * FLOATS);
          add_products(h, z_last, count, tile.sums + k * SUM_LANES + (e - tile.begin) % SUM_LANES);
        }
      } else {
        for (int i = 0; i < NORMAL_REGISTERS; ++i) store_floats(mean[i], target + i * FLOATS);
      }
      for (i64 i = 0; count < STEP && i < count; ++i) row[i] = last[i];
    }
  }
}

template <>
FG_TARGET void gaussian_tile<double>(const GaussianArgs& args, const GaussianTile<double>& tile) {
  constexpr i64 DOUBLES = 4 * LANES;
  const RoundKeys keys = round_keys(philox_key(args.noise.seed));
  const u64 chain = static_cast<u64>(args.noise.chains[tile.n]);
  const i64 first = args.noise.first_candidate == nullptr ? 0 : args.noise.first_candidate[tile.n];
  const GaussianStep step = {args.a, args.b, args.s};
  double h[DOUBLES], mean[DOUBLES], z[DOUBLES] = {};
  for (i64 e = tile.begin; e < tile.end; e += DOUBLES) {
    const i64 left = tile.end - e, count = left < DOUBLES ? left : DOUBLES;
    for (i64 i = 0; i < count; ++i)
      mean[i] = gaussian_mean(step, tile.x[e + i], tile.output[e + i],
                              tile.shift == nullptr ? 0.0 : tile.shift[e + i]);
    if (tile.shift != nullptr) scaled_shifts(args, tile, e, count, h);
    for (i64 k = 0; k < args.noise.num_candidates; ++k) {
      if (args.s > 0.0)
        normal_lanes(static_cast<u64>(e / 4), static_cast<u64>(first + k), chain, args.noise.c3,
                     keys, z);
      double* row = tile.out + k * args.noise.num_elements + e;
      for (i64 i = 0; i < count; ++i) row[i] = gaussian_candidate(step, mean[i], z[i]);
      if (tile.shift != nullptr) add_products(h, z, count, 
                                           tile.sums + k * SUM_LANES +
                                               (e - tile.begin) % SUM_LANES);
    }
  }
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
