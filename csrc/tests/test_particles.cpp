// Gaussian steps and resampling: known answers, edges, faults, and the same bits on every split.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "../cpu/kernels.h"
#include "check.h"
#include "fastguide/gaussian_propose.cuh"
#include "fastguide/philox_normal.cuh"
#include "fastguide/resample.cuh"

using namespace fastguide;

namespace {

// A small generator of bit patterns; which one does not matter.
struct Words64 {
  u64 state = 1;
  u64 next() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return state ^ state >> 29;
  }
};

void test_fused_single() {
  Words64 words;
  int wrong = 0;
  for (int i = 0; i < 200000; ++i) {
    float x[3];
    for (float& value : x) {
      // Signs, and exponents close enough for the sum to cancel or to straddle a rounding.
      const u64 word = words.next();
      const u32 exponent = 127 - 13 + static_cast<u32>(word >> 40) % 27;
      value = single::bits_float((static_cast<u32>(word) & 0x807FFFFFu) | exponent << 23);
    }
    if (i % 3 == 0) x[2] = -(x[0] * x[1]);
    wrong += single::fused_single(x[0], x[1], x[2]) != std::fma(x[0], x[1], x[2]);
  }
  CHECK(wrong == 0);
  // A product half way between two floats, and what tips it lies below the last bit of a double.
  const float half_way = 1.0f + 0x1p-12f, due = 1.0f + 0x1p-11f;
  CHECK(single::fused_single(half_way, half_way, 0.0f) == due);
  CHECK(single::fused_single(half_way, half_way, 0x1p-70f) == due + 0x1p-23f);
  CHECK(single::fused_single(half_way, half_way, -0x1p-70f) == due);
  CHECK(single::fused_single(half_way, -half_way, -0x1p-70f) == -due - 0x1p-23f);
  CHECK(single::fused_single(half_way, -half_way, 0x1p-70f) == -due);
  CHECK(single::fused_single(0x1p-100f, 0x1p-48f, 0x1p-149f) == 0x1p-149f + 0x1p-148f);
  CHECK(single::fused_single(1.0f, 1.0f, -1.0f) == 0.0f);
  CHECK(std::isnan(single::fused_single(1.0f, std::nanf(""), 1.0f)));
}

double ulps(float got, double due) {
  if (got == due) return 0.0;
  const float size = std::fabs(got);
  return std::fabs(got - due) / (std::nextafter(size, INFINITY) - size);
}

double pair_error(u32 w_a, u32 w_b) {
  single::Floats first, second;
  single::normal_pair_single({w_a}, {w_b}, &first, &second);
  const NormalPair due = normal_pair(w_a, w_b);
  return std::max(ulps(first.v, due.first), ulps(second.v, due.second));
}

void test_normal_single() {
  Words64 words;
  double worst = 0.0;
  for (u32 i = 0; i < 200000; ++i) {
    const u64 word = words.next();
    const u32 w = static_cast<u32>(word >> 32), edge = i / 8;
    worst = std::max(worst, pair_error(static_cast<u32>(word), w));
    // Next to u = 0, 1/2 and 1, and to the quarters and eighths of a turn.
    worst = std::max({worst, pair_error(edge, w), pair_error(~edge, w)});
    worst = std::max({worst, pair_error(0x80000000u + edge, w), pair_error(0x7FFFFFFFu - edge, w)});
    const u32 eighth = (i % 8) << 29;
    worst = std::max({worst, pair_error(w, eighth + edge), pair_error(w, eighth - edge)});
  }
  CHECK(worst < 2.4);
  for (u32 quarter = 0; quarter < 4; ++quarter) {
    single::Floats first, second;
    single::normal_pair_single({12345}, {quarter << 30}, &first, &second);
    CHECK((quarter % 2 == 0 ? second.v : first.v) == 0.0f);
  }
}

struct Step {
  i64 n = 3, k = 4, d = 5003;
  std::vector<i64> chains, first;
  std::vector<double> log_ratio;

  Step() : chains(3), first(3), log_ratio(12) {
    std::iota(chains.begin(), chains.end(), 7);
    std::iota(first.begin(), first.end(), 100);
  }
  GaussianArgs args(double s, bool shifted) {
    return {{11, chains.data(), first.data(), 5u << 8 | 2, n, k, d},
            0.9,
            -0.2,
            s,
            d,
            d,
            d,
            n,
            nullptr,
            shifted ? log_ratio.data() : nullptr};
  }
};

template <class T>
void test_gaussian() {
  Step step;
  const size_t size = static_cast<size_t>(step.n * step.d);
  std::vector<T> x(size), output(size), shift(size), one(4 * size), many(4 * size);
  Words64 words;
  for (size_t i = 0; i < size; ++i) {
    x[i] = static_cast<T>(static_cast<double>(words.next() >> 40) * 0x1p-24 - 0.5);
    output[i] = static_cast<T>(static_cast<double>(words.next() >> 40) * 0x1p-24);
    shift[i] = static_cast<T>(0.1);
  }
  CHECK(gaussian_propose<T>(step.args(0.5, false), x.data(), output.data(), nullptr, one.data(), 1).code ==
        kNoFault);
  double worst = 0.0;
  const PhiloxKey key = philox_key(11);
  for (i64 k = 0; k < 4; ++k) {
    for (i64 e = 0; e < step.d; ++e) {
      const PhiloxBlock block = philox(static_cast<u32>(e / 4), static_cast<u32>(102 + k), 9, 5u << 8 | 2, key);
      const NormalPair z = e % 4 < 2 ? normal_pair(block.w0, block.w1) : normal_pair(block.w2, block.w3);
      const size_t at = static_cast<size_t>(2 * step.d + e);
      const double due = 0.9 * static_cast<double>(x[at]) - 0.2 * static_cast<double>(output[at]) +
                         0.5 * (e % 2 == 0 ? z.first : z.second);
      worst = std::max(worst, std::fabs(static_cast<double>(one[static_cast<size_t>((8 + k) * step.d + e)]) - due));
    }
  }
  CHECK(worst < (sizeof(T) == 4 ? 1e-6 : 1e-15));

  CHECK(gaussian_propose<T>(step.args(0.5, false), x.data(), output.data(), nullptr, many.data(), 3).code ==
        kNoFault);
  CHECK(std::memcmp(one.data(), many.data(), one.size() * sizeof(T)) == 0);
  CHECK(gaussian_propose<T>(step.args(0.5, true), x.data(), output.data(), shift.data(), one.data(), 1).code ==
        kNoFault);
  const std::vector<double> ratio = step.log_ratio;
  CHECK(gaussian_propose<T>(step.args(0.5, true), x.data(), output.data(), shift.data(), many.data(), 2).code ==
        kNoFault);
  CHECK(ratio == step.log_ratio);
  CHECK(std::memcmp(one.data(), many.data(), one.size() * sizeof(T)) == 0);

  CHECK(gaussian_propose<T>(step.args(0.0, false), x.data(), output.data(), nullptr, one.data(), 1).code ==
        kNoFault);
  CHECK(one[0] == one[static_cast<size_t>(3 * step.d)]);

  GaussianArgs args = step.args(0.5, false);
  const std::vector<i64> index = {0, 3, 0};
  args.index = index.data();
  CHECK(fault_is(gaussian_propose<T>(args, x.data(), output.data(), nullptr, one.data(), 1), kIndexFault, 1,
                 -1, 3));
  step.chains[2] = 1LL << 32;
  CHECK(fault_is(gaussian_propose<T>(step.args(0.5, false), x.data(), output.data(), nullptr, one.data(), 1),
                 kChainFault, 2, -1, 1LL << 32));
}

struct Groups {
  std::vector<i64> chains, ancestors;
  std::vector<double> log_z, ess;
  std::vector<unsigned char> resampled;

  Fault run(const std::vector<double>& log_w, i64 groups, ResampleScheme scheme, double threshold = -1.0,
            int threads = 1) {
    const i64 n = static_cast<i64>(log_w.size()) / groups;
    chains.resize(static_cast<size_t>(groups));
    std::iota(chains.begin(), chains.end(), 5);
    ancestors.assign(log_w.size(), -1);
    log_z.assign(chains.size(), NOT_A_NUMBER);
    ess = log_z;
    resampled.assign(chains.size(), 2);
    const ResampleArgs args = {{log_w.data(), n, 1, true}, groups, n, scheme, threshold, 3, chains.data(),
                               4u << 8 | 9, nullptr, 0, ancestors.data(), log_z.data(), resampled.data(),
                               ess.data()};
    return resample(args, threads);
  }
};

const ResampleScheme SCHEMES[] = {kSystematic, kStratified, kMultinomial, kResidual, kSsp, kKilling};

void test_resample() {
  Groups groups;
  Words64 words;
  for (ResampleScheme scheme : SCHEMES) {
    for (size_t n : {1, 2, 63, 1000, 4097}) {
      std::vector<double> log_w(3 * n);
      for (double& value : log_w)
        value = words.next() % 4 == 0 ? -INF : static_cast<double>(words.next() >> 40) * 0x1p-21;
      log_w[0] = log_w[n] = log_w[3 * n - 1] = 1.0;
      CHECK(groups.run(log_w, 3, scheme).code == kNoFault);
      bool live = true;
      for (size_t i = 0; i < 3 * n; ++i) {
        const i64 a = groups.ancestors[i];
        live = live && a >= 0 && a < static_cast<i64>(n) && log_w[i / n * n + static_cast<size_t>(a)] > -INF;
      }
      CHECK(live);
      const Groups one = groups;
      CHECK(groups.run(log_w, 3, scheme, -1.0, 3).code == kNoFault);
      CHECK(one.ancestors == groups.ancestors && one.log_z == groups.log_z && one.ess == groups.ess);
    }
    CHECK(groups.run({0.0, 0.0, 0.0, 0.0}, 1, scheme, 1.0).code == kNoFault);
    CHECK(groups.ancestors == std::vector<i64>{0, 1, 2, 3} && groups.resampled[0] == 0);
    CHECK(groups.log_z[0] == 0.0 && groups.ess[0] == 4.0);
    CHECK(groups.run({-INF, -1e300, -INF}, 1, scheme, 1.0).code == kNoFault);
    CHECK(groups.ancestors == std::vector<i64>{1, 1, 1} && groups.resampled[0] == 1);
    CHECK(fault_is(groups.run({0.0, 1.0, -INF, -INF}, 2, scheme), kNoWeightFault, 1, -1, 6));
    for (double bad : {INF, NOT_A_NUMBER})
      CHECK(fault_is(groups.run({0.0, 1.0, -INF, bad}, 2, scheme), kValueFault, 1, 1, 0));
  }
  CHECK(groups.run({std::log(4.0), std::log(2.0), std::log(1.0), std::log(1.0)}, 1, kSystematic).code ==
        kNoFault);
  CHECK(std::fabs(groups.log_z[0] - std::log(2.0)) < 1e-15);
  CHECK(std::count(groups.ancestors.begin(), groups.ancestors.end(), 0) == 2);
}

void test_points() {
  CHECK(floor_positive(0.0) == 0.0 && floor_positive(2.0) == 2.0 && floor_positive(2.5) == 2.0);
  CHECK(floor_positive(std::nextafter(3.0, 0.0)) == 2.0 && floor_positive(3.5) == 3.0);
  CHECK(whole_number(0.0) == 0 && whole_number(4294967296.0) == 4294967296);
  CHECK(points_below(2.25, 2.0, 0.5, 9.0) == 2.0 && points_below(2.75, 2.0, 0.5, 9.0) == 3.0);
  CHECK(points_below(2.5, 2.0, 0.5, 9.0) == 2.0 && points_below(9.5, 9.0, 0.0, 9.0) == 9.0);
  // Fractions 1/2, 3/4, 3/4: one of the first two is rounded up, and the rest meets the third.
  OpenFraction open = {-1, 0.0};
  CHECK(pair_fractions(open, 0, 0.5, 0.9) == -1 && open.particle == 0);
  CHECK(pair_fractions(open, 1, 0.75, 0.3) == 0 && open.particle == 1 && open.fraction == 0.25);
  CHECK(pair_fractions(open, 2, 0.75, 0.2) == 1 && open.particle == 2 && open.fraction == 0.0);
  CHECK(pair_fractions(open, 3, 0.25, 0.2) == -1 && open.particle == 3);
  CHECK(pair_fractions(open, 4, 0.5, 0.5) == -1 && open.particle == 4 && open.fraction == 0.75);
}

}  // namespace

void test_particles() {
  test_fused_single();
  test_normal_single();
  test_gaussian<float>();
  test_gaussian<double>();
  test_points();
  test_resample();
}
