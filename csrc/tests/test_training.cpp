// The training kernels on vocabularies at both sides of every border: closed forms, and memory errors
// when built with sanitizers.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../cpu/training.h"
#include "fastguide/exp_single.cuh"
#include "check.h"

using namespace fastguide;

namespace {

constexpr i64 N = 3, L = 35;

// Rows of numbers [N], and where the terms go.
struct Terms {
  std::vector<double> half = std::vector<double>(N, 0.5), surrogate = half, kl = half, log_prob = half,
                      ratio = half, slope = half;
  bool clipped[N] = {};
  Numbers halves = {half.data(), 1, true};
  PpoInputs in = {halves, halves, 0.8, 1.2};
  PpoPulls pulls = {{nullptr, 0, true}, halves, halves, {nullptr, 0, true}, ratio.data(), slope.data()};
  PpoOutputs out = {surrogate.data(), kl.data(), log_prob.data(), ratio.data(), clipped, slope.data()};
};

// Two sites of three are masked, and in the next state half of those are revealed.
struct Steps {
  std::vector<i64> x, next, targets;
  double masked = 0.0, revealed = 0.0;  // per row, of the first one

  explicit Steps(i64 vocab_size) : x(N * L), next(N * L), targets(N * L) {
    for (i64 i = 0; i < N * L; ++i) {
      const bool hidden = i % 3 != 0, shown = i % 2 == 0;
      targets[static_cast<size_t>(i)] = i % vocab_size;
      x[static_cast<size_t>(i)] = hidden ? vocab_size : i % vocab_size;
      next[static_cast<size_t>(i)] = hidden && !shown ? vocab_size : i % vocab_size;
      masked += i < L && hidden;
      revealed += i < L && hidden && shown;
    }
  }
};

bool near(double got, double due, double tolerance = 1e-5) {
  return std::fabs(got - due) <= tolerance * (1.0 + std::fabs(due));
}

// With equal logits every token has probability 1 / V.
template <class T>
void test_equal_logits(i64 vocab_size) {
  const auto number = [](T x) { return static_cast<double>(widened(x)); };
  const double tolerance = sizeof(T) == 2 ? 4e-3 : 1e-5;  // half a step of bfloat16
  const std::vector<T> logits(static_cast<size_t>(N * L * vocab_size), rounded<T>(0.25));
  std::vector<T> d_logits(logits.size());
  const SiteLogits<T> all = {logits.data(), L * vocab_size, vocab_size, 1};
  const Steps steps(vocab_size);
  const double log_v = std::log(static_cast<double>(vocab_size));
  Terms terms;
  std::vector<double> sites(3 * N * L), normalisers(N * L), loss(N);

  const MaskedPpoArgs<T> ppo = {all, all, steps.x.data(), steps.next.data(), N, L, vocab_size,
                                vocab_size, terms.halves, 0.7};
  CHECK(masked_ppo(ppo, terms.in, terms.out, sites.data(), 2).code == kNoFault);
  CHECK(near(terms.log_prob[0], -steps.revealed * log_v));
  CHECK(terms.kl[0] == 0.0);
  masked_ppo_backward(ppo, sites.data(), terms.pulls, d_logits.data(), 2);
  double sum = 0.0;
  for (i64 i = 0; i < L * vocab_size; ++i) sum += number(d_logits[static_cast<size_t>(i)]);
  CHECK(std::fabs(sum) < 20.0 * tolerance);

  const SubsArgs<T> subs = {all, steps.x.data(), steps.targets.data(), N, L, vocab_size, vocab_size};
  CHECK(subs_cross_entropy(subs, loss.data(), normalisers.data(), 2).code == kNoFault);
  CHECK(near(loss[0], steps.masked * log_v));
  subs_cross_entropy_backward(subs, normalisers.data(), terms.halves, d_logits.data(), 2);
  const T at_target = d_logits[static_cast<size_t>(vocab_size + 1 % vocab_size)];
  CHECK(near(number(at_target), 0.5 * (1.0 / static_cast<double>(vocab_size) - 1.0), tolerance));

  std::vector<T> slice_logits = logits;
  std::vector<double> top(N * L, -INF), total(N * L), chosen(N * L);
  const LogitsSlice<T> slice = {slice_logits.data(), N * L, vocab_size, 0, steps.targets.data()};
  subs_slice_sums(slice, top.data(), total.data(), chosen.data(), 2);
  CHECK(near(top[1] + std::log(total[1]) - chosen[1], log_v));
  for (i64 i = 0; i < N * L; ++i) normalisers[static_cast<size_t>(i)] = 0.25 + log_v;
  subs_slice_pull(slice, normalisers.data(), chosen.data(), 2);
  CHECK(near(number(slice_logits[0]), 0.25 * (1.0 / static_cast<double>(vocab_size) - 1.0), tolerance));
}

template <class T>
void test_relaxed_rows(i64 vocab_size, double tau) {
  const i64 columns = vocab_size + 1;
  const std::vector<T> logits(static_cast<size_t>(N * L * vocab_size), T(0.25));
  const std::vector<T> x(static_cast<size_t>(N * L * columns), T(1) / static_cast<T>(columns));
  std::vector<T> next(x.size()), d_x(x.size()), d_logits(logits.size()), d_ref(logits.size());
  const SiteLogits<T> all = {logits.data(), L * vocab_size, vocab_size, 1};
  const std::vector<i64> chains = {0, 7, (1LL << 32) - 1};
  const std::vector<double> half(N, 0.5);
  const Numbers halves = {half.data(), 1, true};
  std::vector<double> kl(N);
  const RelaxedStepArgs<T> args = {all,    all, x.data(), N, L,             vocab_size,
                                   halves, tau, 0.9,      7, chains.data(), 11};
  CHECK(gumbel_softmax_step(args, false, next.data(), kl.data(), 2).code == kNoFault);
  double sum = 0.0;
  for (i64 c = 0; c < columns; ++c) sum += static_cast<double>(next[static_cast<size_t>(c)]);
  CHECK(near(sum, 1.0));
  CHECK(kl[0] == 0.0);
  gumbel_softmax_step_backward(args, next.data(), halves, d_logits.data(), d_x.data(), d_ref.data(),
                               2);
  sum = 0.0;
  for (i64 v = 0; v < vocab_size; ++v) sum += static_cast<double>(d_logits[static_cast<size_t>(v)]);
  CHECK(vocab_size > 1 ? std::fabs(sum) < 1.0 : std::fabs(sum) < 1e-6);
}

template <class T>
void test_gaussian(i64 num_elements) {
  const std::vector<T> x(static_cast<size_t>(N * num_elements), T(0.5));
  std::vector<T> d_output(x.size());
  const Rows<T> rows = {x.data(), num_elements};
  Terms terms;
  // Mean 0.5 x + 0.5 x: no gap.
  const GaussianPpoArgs<T> args = {rows,         rows,         rows, rows,        terms.halves,
                                   terms.halves, terms.halves, N,    num_elements};
  CHECK(gaussian_ppo(args, terms.in, terms.out, 2).code == kNoFault);
  const double each = -std::log(0.5 * std::sqrt(2.0 * 3.14159265358979323846));
  CHECK(near(terms.log_prob[1], each * static_cast<double>(num_elements)));
  gaussian_ppo_backward(args, terms.pulls, d_output.data(), 2);
  CHECK(num_elements == 0 || d_output[0] == T(0));
}

// The error in units of the last place, and the ends of the range.
void test_exp_single() {
  double worst = 0.0;
  for (float x = -87.0f; x < 88.0f; x += 0.00390721f) {
    const double due = std::exp(static_cast<double>(x));
    const float near_due = static_cast<float>(due);
    const double place = static_cast<double>(std::nextafter(near_due, INFINITY) - near_due);
    worst = std::max(worst, std::fabs(static_cast<double>(exp_single(x)) - due) / place);
  }
  CHECK(worst < 1.4);
  CHECK(exp_single(0.0f) == 1.0f && exp_single(-87.5f) == 0.0f && exp_single(-INFINITY) == 0.0f);
  CHECK(std::isnan(exp_single(NAN)));
}

constexpr i64 VOCABULARIES[] = {1, 4, 5, 37, 191, 192, 513, 1031};

// All numbers of 16 bits come back from float32, and so do those half way to their neighbours: to the
// even one of both.
template <class T>
void test_halves() {
  constexpr u32 INFINITE = std::is_same_v<T, Half> ? 0x7C00 : 0x7F80;
  for (u32 bits = 0; bits < 0x10000; ++bits) {
    const T x = {static_cast<u16>(bits)};
    const u32 size = bits & 0x7FFF;
    const double value = static_cast<double>(widened(x));
    if (size > INFINITE) {
      CHECK(std::isnan(value) && std::isnan(widened(rounded<T>(value))));
      continue;
    }
    CHECK(rounded<T>(value).bits == bits);
    if (size + 1 >= INFINITE) continue;
    const double next = static_cast<double>(widened(T{static_cast<u16>(bits + 1)}));
    const double middle = 0.5 * (value + next), step = 0.1 * (next - value);
    // The middle of the smallest bfloat16 is a float32 too.
    CHECK(rounded<T>(middle).bits == bits + (bits & 1));
    CHECK(rounded<T>(middle - step).bits == bits && rounded<T>(middle + step).bits == bits + 1);
  }
  CHECK(rounded<T>(1e39).bits == INFINITE && rounded<T>(-1e39).bits == (INFINITE | 0x8000));
  for (i64 vocab_size : VOCABULARIES) test_equal_logits<T>(vocab_size);
}

template <class T>
void test_all() {
  for (i64 vocab_size : VOCABULARIES) {
    test_equal_logits<T>(vocab_size);
    for (double tau : {1.0, 0.5, 0.8}) test_relaxed_rows<T>(vocab_size, tau);
  }
  for (i64 num_elements : {0, 1, 15, 16, 33, 4096, 4100}) test_gaussian<T>(num_elements);
}

}  // namespace

void test_training() {
  test_exp_single();
  test_all<float>();
  test_all<double>();
  test_halves<Bfloat16>();
  test_halves<Half>();
}
