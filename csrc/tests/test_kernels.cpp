// The CPU kernels without Python: known answers, edges, and memory errors when built with
// sanitizers. Prints "N passed, 0 failed" and exits with the number of failures.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/kernels.h"
#include "check.h"
#include "fastguide/categorical.cuh"
#include "fastguide/masked_keys.cuh"
#include "fastguide/math.cuh"
#include "fastguide/philox_normal.cuh"
#include "fastguide/philox_uniform.cuh"

using namespace fastguide;

namespace {

constexpr i64 MASK = 4;

bool same(PhiloxBlock a, PhiloxBlock b) {
  return a.w0 == b.w0 && a.w1 == b.w1 && a.w2 == b.w2 && a.w3 == b.w3;
}

// Random123 1.14, kat_vectors, philox4x32 with 10 rounds.
void test_known_answers() {
  const u32 f = 0xFFFFFFFFu;
  CHECK(same(philox(0, 0, 0, 0, {0, 0}), {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  CHECK(same(philox(f, f, f, f, {f, f}), {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  CHECK(same(philox(0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, {0xa4093822u, 0x299f31d0u}),
             {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

double ulps(double got, double due) {
  if (got == due) return 0.0;
  return std::fabs(got - due) / (std::nextafter(std::fabs(due), INF) - std::fabs(due));
}

void test_functions() {
  double exp_error = 0.0, log_error = 0.0, turn_error = 0.0;
  for (int i = 0; i <= 200000; ++i) {
    const double x = -745.0 + 1454.0 * i / 200000.0;
    exp_error = std::max(exp_error, ulps(exp_double(x), std::exp(x)));
    const double y = std::exp(-30.0 + 60.0 * i / 200000.0);
    log_error = std::max(log_error, std::fabs(log_double(y) - std::log(y)) /
                                        std::max(std::fabs(std::log(y)), 1e-3));
    const u64 word = static_cast<u64>(i) * 21474u;
    const double theta = 6.283185307179586 * static_cast<double>(word) * 0x1p-32;
    const UnitVector v = turn(word);
    turn_error = std::max({turn_error, std::fabs(v.cos - std::cos(theta)), std::fabs(v.sin - std::sin(theta))});
  }
  CHECK(exp_error <= 2.0);
  CHECK(log_error < 3e-16);
  CHECK(turn_error < 2e-15);
  CHECK(exp_double(0.0) == 1.0);
  CHECK(exp_double(-INF) == 0.0);
  CHECK(exp_double(-800.0) == 0.0);
  CHECK(exp_double(-744.0) > 0.0);
  CHECK(exp_double(1000.0) == INF);
  CHECK(std::isnan(exp_double(NOT_A_NUMBER)));
  CHECK(log_double(1.0) == 0.0);
  CHECK(turn(0).cos == 1.0 && turn(0).sin == 0.0);
  CHECK(turn(1u << 30).cos == 0.0 && turn(1u << 30).sin == 1.0);
  CHECK(turn(1u << 31).cos == -1.0);
  CHECK(turn(3u << 30).sin == -1.0);
}

void test_uniforms() {
  const std::vector<i64> chains = {0, 3, (1LL << 32) - 1}, first = {0, 7, 5};
  for (i64 elements : {0, 1, 7, 8, 9, 20}) {
    const PhiloxArgs args = {0xFEDCBA9876543210ull, chains.data(), first.data(), 77, 3, 2, elements};
    std::vector<double> u(static_cast<size_t>(6 * elements), -1.0);
    CHECK(philox_uniform(args, u.data(), 1).code == kNoFault);
    bool equal = true;
    for (i64 n = 0; n < 3; ++n)
      for (i64 k = 0; k < 2; ++k)
        for (i64 e = 0; e < elements; ++e)
          equal &= u[static_cast<size_t>((n * 2 + k) * elements + e)] ==
                   philox_uniform_at(static_cast<u32>(e), static_cast<u32>(first[static_cast<size_t>(n)] + k),
                                     static_cast<u32>(chains[static_cast<size_t>(n)]), 77,
                                     philox_key(0xFEDCBA9876543210ull));
    CHECK(equal);
  }
  CHECK(uniform53(0, 0) == 0.0);
  CHECK(uniform53(0xFFFFFFFFu, 0xFFFFFFFFu) == 1.0 - 0x1p-53);
  const i64 bad_chain = 1LL << 32;
  double out = 0.0;
  CHECK(philox_uniform({0, &bad_chain, nullptr, 0, 1, 1, 1}, &out, 1).code == kChainFault);
  const i64 chain = 0, bad_first = (1LL << 32) - 1;
  CHECK(philox_uniform({0, &chain, &bad_first, 0, 1, 2, 1}, &out, 1).code == kCandidateFault);
  CHECK(philox_uniform({0, nullptr, nullptr, 0, 0, 1, 1}, nullptr, 4).code == kNoFault);
}

void test_normals() {
  const std::vector<i64> chains = {5, 6};
  for (i64 elements : {0, 1, 3, 4, 31, 32, 33, 70}) {
    const PhiloxArgs args = {9, chains.data(), nullptr, 2, 2, 3, elements};
    std::vector<double> z(static_cast<size_t>(6 * elements));
    std::vector<float> narrow(z.size());
    CHECK(philox_normal(args, z.data(), 1).code == kNoFault);
    CHECK(philox_normal(args, narrow.data(), 1).code == kNoFault);
    bool equal = true;
    for (i64 e = 0; e < elements; ++e) {
      const PhiloxBlock block = philox(static_cast<u32>(e / 4), 2, 6, 2, philox_key(9));
      const NormalPair pair =
          e % 4 < 2 ? normal_pair(block.w0, block.w1) : normal_pair(block.w2, block.w3);
      const size_t at = static_cast<size_t>(5 * elements + e);
      equal &= z[at] == (e % 2 == 0 ? pair.first : pair.second);
      equal &= narrow[at] == static_cast<float>(z[at]);
    }
    CHECK(equal);
  }
}

void test_pick() {
  const double end = 1.0 - 0x1p-53;
  std::vector<double> w = {0.0, 2.0, 0.0, 1.0, 0.0};
  i64 last = cumulate(w.data(), 5);
  CHECK(last == 3);
  CHECK(pick(w.data(), 5, last, 0.0) == 1);
  CHECK(pick(w.data(), 5, last, 0.5) == 1);
  CHECK(pick(w.data(), 5, last, 0.7) == 3);
  CHECK(pick(w.data(), 5, last, end) == 3);
  // u * total may round up to the total itself: the clamp must hold at every size.
  for (i64 n = 1; n < 60; ++n) {
    bool inside = true;
    for (int trial = 0; trial < 50; ++trial) {
      std::vector<double> v(static_cast<size_t>(n));
      for (i64 i = 0; i < n; ++i)
        v[static_cast<size_t>(i)] =
            philox_uniform_at(static_cast<u32>(i), static_cast<u32>(trial), static_cast<u32>(n), 0, {1, 2});
      v.back() = trial % 2 == 0 ? 0.0 : 1e-300;
      if (n == 1) v[0] = 0x1p-1074;
      const i64 most = cumulate(v.data(), n);
      for (double u : {0.0, 0.3, 0.999999, end}) {
        i64 scan = 0;
        while (scan < most && v[static_cast<size_t>(scan)] <= u * v.back()) ++scan;
        inside &= pick(v.data(), n, most, u) == scan;
      }
    }
    CHECK(inside);
  }
}

struct Propose {
  std::vector<i64> x, keys, chains, first;
  std::vector<float> logits;
  std::vector<i64> tokens, out_keys;
  std::vector<i32> changed;
  i64 n, length, vocab, candidates;
  std::vector<i64> index;
  i64 num_logits;

  Propose(i64 n_, i64 length_, i64 vocab_, i64 candidates_)
      : x(static_cast<size_t>(n_ * length_), MASK),
        keys(static_cast<size_t>(2 * n_)),
        chains(static_cast<size_t>(n_)),
        first(static_cast<size_t>(n_), 0),
        logits(static_cast<size_t>(n_ * length_ * vocab_)),
        tokens(static_cast<size_t>(n_ * candidates_ * length_), -99),
        out_keys(static_cast<size_t>(n_ * candidates_ * 2), -99),
        changed(static_cast<size_t>(n_ * candidates_), -99),
        n(n_),
        length(length_),
        vocab(vocab_),
        candidates(candidates_),
        num_logits(n_) {
    for (size_t i = 0; i < logits.size(); ++i)
      logits[i] = static_cast<float>(i * 2654435761u % 1000) / 250.0f;
    for (size_t i = 0; i < chains.size(); ++i) chains[i] = static_cast<i64>(i);
  }

  States states() const { return {x.data(), length, 1, n, length, MASK}; }

  Fault run(double rho, int threads = 1) {
    masked_keys(x.data(), length, 1, n, length, keys.data(), threads);
    const Logits<float> source = {logits.data(), length * vocab, vocab, 1,
                                  num_logits,    vocab,          index.empty() ? nullptr : index.data(),
                                  0.9, false};
    const ProposeArgs args = {keys.data(),     rho, 42, chains.data(), first.data(), 3, candidates,
                              tokens.data(), out_keys.data(), changed.data()};
    return masked_propose(source, states(), args, threads);
  }

  i64 count_masks() const { return std::count(tokens.begin(), tokens.end(), MASK); }

  bool keys_fit() const {
    std::vector<i64> due(out_keys.size());
    masked_keys(tokens.data(), length, 1, n * candidates, length, due.data(), 1);
    return due == out_keys;
  }
};

void test_propose() {
  for (i64 n : {0, 1, 3})
    for (i64 length : {0, 1, 8, 50, 130})
      for (i64 vocab : {1, 4, 2500})
        for (i64 candidates : {1, 4, 10, 70}) {
          if (vocab > 4 && (candidates > 10 || length > 8)) continue;
          Propose all(n, length, vocab, candidates);
          CHECK(all.run(1.0).code == kNoFault);
          CHECK(all.count_masks() == 0 || vocab > MASK);
          CHECK(all.keys_fit());
          CHECK(std::all_of(all.changed.begin(), all.changed.end(),
                            [&](i32 c) { return c == length; }));
          Propose none(n, length, vocab, candidates);
          CHECK(none.run(0.0).code == kNoFault);
          CHECK(none.count_masks() == n * candidates * length);
          CHECK(none.out_keys.empty() || none.out_keys[0] == none.keys[0]);
        }
  Propose one(200, 60, 4, 10), many(200, 60, 4, 10);
  for (size_t i = 0; i < one.x.size(); i += 3) one.x[i] = many.x[i] = static_cast<i64>(i % 4);
  CHECK(one.run(0.2, 1).code == kNoFault);
  CHECK(many.run(0.2, 7).code == kNoFault);
  CHECK(one.tokens == many.tokens && one.out_keys == many.out_keys && one.changed == many.changed);
  CHECK(one.keys_fit());
}

void test_propose_faults() {
  const float infinity = std::numeric_limits<float>::infinity();
  Propose p(3, 5, 4, 2);
  p.x[7] = 9;
  CHECK(fault_is(p.run(1.0), kTokenFault, 1, 2, 9));
  p.x[7] = 0;
  p.logits[static_cast<size_t>((2 * 5 + 4) * 4 + 1)] = std::nanf("");
  CHECK(fault_is(p.run(1.0), kLogitFault, 2, 4, 0));
  CHECK(p.run(0.0).code == kNoFault);
  p.logits[static_cast<size_t>((2 * 5 + 4) * 4 + 1)] = infinity;
  CHECK(fault_is(p.run(1.0), kLogitFault, 2, 4, 0));
  for (size_t v = 0; v < 4; ++v) p.logits[(2 * 5 + 4) * 4 + v] = -infinity;
  CHECK(fault_is(p.run(1.0), kNoTokenFault, 2, 4, 0));
  p.logits[(2 * 5 + 4) * 4 + 3] = 0.0f;
  CHECK(p.run(1.0).code == kNoFault);
  CHECK(p.tokens[(2 * 2 + 1) * 5 + 4] == 3);
  p.index = {0, 3, 0};
  CHECK(fault_is(p.run(0.5), kIndexFault, 1, -1, 3));
  p.index = {0, 2, 0};
  CHECK(p.run(0.5).code == kNoFault);
  p.chains[0] = -1;
  CHECK(fault_is(p.run(0.5), kChainFault, 0, -1, -1));
  p.chains[0] = 0;
  p.first[2] = (1LL << 32) - 1;
  CHECK(fault_is(p.run(0.5), kCandidateFault, 2, -1, (1LL << 32) - 1));
}

void test_posterior() {
  Propose p(2, 9, 4, 1);
  p.x[3] = 2;
  masked_keys(p.x.data(), 9, 1, 2, 9, p.keys.data(), 1);
  const Logits<float> logits = {p.logits.data(), 36, 4, 1, 2, 4, nullptr, 1.0, false};
  std::vector<i64> mode(18), samples(2 * 5 * 9);
  CHECK(masked_posterior(logits, p.states(), {0, nullptr, 0, 5, mode.data()}, 1).code == kNoFault);
  bool first_maximum = true;
  for (i64 i = 0; i < 18; ++i) {
    const float* row = p.logits.data() + 4 * i;
    const i64 due = i == 3 ? 2 : std::max_element(row, row + 4) - row;
    first_maximum &= mode[static_cast<size_t>(i)] == due;
  }
  CHECK(first_maximum);
  CHECK(masked_posterior(logits, p.states(), {5, p.keys.data(), 8, 5, samples.data()}, 1).code == kNoFault);
  CHECK(std::all_of(samples.begin(), samples.end(), [](i64 t) { return t >= 0 && t < 4; }));
  for (size_t s = 0; s < 5; ++s) CHECK(samples[s * 9 + 3] == 2);
  p.logits[5] = std::nanf("");
  CHECK(fault_is(masked_posterior(logits, p.states(), {0, nullptr, 0, 5, mode.data()}, 1), kLogitFault, 0, 1, 0));
}

i64 unique(const std::vector<i64>& rows, i64 length, const std::vector<i64>& keys,
           std::vector<i64>* first, std::vector<i64>* inverse) {
  const i64 r = static_cast<i64>(keys.size() / 2);
  first->assign(static_cast<size_t>(r), -5);
  inverse->assign(static_cast<size_t>(r), -5);
  i64 count = -1;
  unique_rows(rows.data(), length * 8, length * 8, r, keys.data(), first->data(), inverse->data(), &count);
  return count;
}

void test_unique_rows() {
  std::vector<i64> first, inverse;
  CHECK(unique({}, 3, {}, &first, &inverse) == 0);
  CHECK(unique({7, 8}, 2, {1, 2}, &first, &inverse) == 1);
  const std::vector<i64> rows = {1, 1, 2, 2, 1, 1, 3, 3, 2, 2};
  for (i64 key : {0, 1, -1}) {
    // All keys equal: only the rows themselves tell them apart.
    CHECK(unique(rows, 2, std::vector<i64>(10, key), &first, &inverse) == 3);
    CHECK(first == std::vector<i64>{0, 1, 3, 0, 0});
    CHECK(inverse == std::vector<i64>{0, 1, 0, 2, 1});
  }
  CHECK(unique({}, 0, {5, 5, 5, 5, 6, 6}, &first, &inverse) == 2);
  std::vector<i64> many(1000), keys(2000);
  for (size_t i = 0; i < 1000; ++i) many[i] = static_cast<i64>(i % 321);
  masked_keys(many.data(), 1, 1, 1000, 1, keys.data(), 1);
  CHECK(unique(many, 1, keys, &first, &inverse) == 321);
  CHECK(inverse == many);
}

void test_select() {
  const std::vector<double> values = {-INF, 0.0, -INF, 2.0, 2.0, 1.0, -INF, -INF, -INF};
  const std::vector<i64> chains = {0, 1, 2}, where = {0, 1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<i32> source = {10, 11, 12, 13, 14, 15, 16, 17, 18};
  std::vector<i64> index(3);
  std::vector<double> lme(3), ess(3);
  std::vector<i32> dense(3), indirect(3);
  const GatherItem items[] = {
      {reinterpret_cast<const char*>(source.data()), 12, 4, 4, nullptr, 3, reinterpret_cast<char*>(dense.data())},
      {reinterpret_cast<const char*>(source.data()), 4, 0, 4, where.data(), 9, reinterpret_cast<char*>(indirect.data())}};
  SelectArgs args = {{values.data(), 3, 1, true}, {nullptr, 0, 0, false}, 3, 3, 0.5, 1, chains.data(), nullptr, 7,
                     items, 2, index.data(), lme.data(), ess.data()};
  CHECK(select(args, 2).code == kNoFault);
  CHECK(index[0] == 1 && ess[0] == 1.0);
  CHECK(lme[2] == -INF && ess[2] == 0.0 && index[2] >= 0 && index[2] < 3);
  for (size_t n = 0; n < 3; ++n)
    CHECK(dense[n] == 10 + static_cast<i32>(3 * n) + static_cast<i32>(index[n]) && indirect[n] == dense[n]);
  args.alpha = 0.0;
  CHECK(select(args, 1).code == kNoFault);
  CHECK(index[1] == 0 && lme[1] == 2.0 && ess[1] == 1.0);
  GatherItem short_item = items[1];
  short_item.num_source_rows = 2;
  args.items = &short_item;
  args.num_items = 1;
  CHECK(select(args, 1).code == kGatherFault);
  args.num_items = 0;
  for (double bad : {INF, NOT_A_NUMBER}) {
    std::vector<double> wrong = values;
    wrong[5] = bad;
    args.values.data = wrong.data();
    CHECK(fault_is(select(args, 1), kValueFault, 1, 2, 0));
  }
  args.num_rows = 0;
  CHECK(select(args, 1).code == kNoFault);
}

void test_soft_value() {
  const std::vector<float> values = {1.0f, 2.0f, 4.0f, 8.0f};
  float out = 0.0f;
  soft_value(values.data(), 4, 1, 1, 4, kMean, 1.0, 0.0, &out, 1);
  CHECK(out == 3.75f);
  soft_value(values.data(), 4, 1, 1, 4, kLogMeanExp, 0.0, 0.0, &out, 1);
  CHECK(out == 8.0f);
  soft_value(values.data(), 4, 1, 1, 4, kCvar, 1.0, 0.5, &out, 1);
  CHECK(out == 1.5f);
  soft_value(values.data(), 4, 4, 1, 1, kLogMeanExp, 0.1, 0.0, &out, 1);
  CHECK(out == 1.0f);
  const std::vector<float> odd = {std::nanf(""), 1.0f};
  soft_value(odd.data(), 2, 1, 1, 2, kCvar, 1.0, 0.5, &out, 1);
  CHECK(std::isnan(out));
}

}  // namespace

int main() {
  std::printf("instruction set: %s\n", level_name(cpu_level()));
  test_known_answers();
  test_functions();
  test_uniforms();
  test_normals();
  test_pick();
  test_propose();
  test_propose_faults();
  test_posterior();
  test_unique_rows();
  test_select();
  test_soft_value();
  test_particles();
  test_training();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed;
}
