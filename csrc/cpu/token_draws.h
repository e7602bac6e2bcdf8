// Draws of tokens at masked sites, for masked_propose and masked_posterior; included once per
// instruction set. A draw is the first token whose running sum of weights exceeds u times their
// total, where sums are taken in order (categorical.cuh).
//
// Small vocabularies keep the running sums, of a few sites at once. The sums of a large one would
// take most of the time, one addition waiting for the other; a few draws need no more than the sum
// of each block of tokens, in any order, and then the one block that holds the target. How far
// that can be from the sums in order is known, and a target that comes closer than that to the
// ends of its token falls back to them: every path draws the same token.
#include "fastguide/masked_propose.cuh"

namespace fastguide {
namespace FG_NAMESPACE {

// Fused where there is an instruction: what follows is judged by a margin, not bit for bit.
#if FG_LEVEL > 0
FG_LANE double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
FG_LANE double multiply_add(double a, double b, double c) { return a * b + c; }
#endif

// exp(x) of x <= 0 within a share of 2^-31, but not below exp(-700); NaN at NaN.
FG_LANE double exp_quick(double x) {
  constexpr double ROUND = 0x1.8p52;  // as in exp_double
  x = pick_double(x < -700.0, -700.0, x);
  const double shifted = multiply_add(x, 0x1.71547652b82fep0, ROUND), k = shifted - ROUND;
  const double r = multiply_add(-k, 0x1.62e42fefa39efp-1, x);
  // Taylor polynomial of degree 8: |r| <= ln(2) / 2 leaves 2.8e-10; the reduction adds 1e-13.
  double p = 1.0 / 40320.0;
  p = multiply_add(p, r, 1.0 / 5040.0);
  p = multiply_add(p, r, 1.0 / 720.0);
  p = multiply_add(p, r, 1.0 / 120.0);
  p = multiply_add(p, r, 1.0 / 24.0);
  p = multiply_add(p, r, 1.0 / 6.0);
  p = multiply_add(p, r, 0.5);
  p = multiply_add(p, r, 1.0);
  p = multiply_add(p, r, 1.0);
  return p * bits_double((double_bits(shifted) + 1023) << 52);
}

// cdf [count, V]: running sums of exp((logit - max) / temperature) of the logits [V] at each of
// `sites` [count]; last [count]: the last token of positive weight. Returns `count`, or the first
// site with bad logits (null: out of range), and its fault code.
template <class T>
FG_LANE i64 token_cdfs(const Logits<T>& logits, const T* const* sites, i64 count, double* cdf,
                       i64* last, i32* code) {
  const i64 vocab_size = logits.vocab_size;
  for (i64 j = 0; j < count; ++j) {
    double top;
    *code = sites[j] == nullptr
                ? static_cast<i32>(kIndexFault)
                : largest_logit(sites[j], logits.token_stride, vocab_size, &top);
    if (*code != kNoFault) return j;
    double* out = cdf + j * vocab_size;
    for (i64 v = 0; v < vocab_size; ++v)
      out[v] = static_cast<double>(sites[j][v * logits.token_stride]) - top;
  }
  if (logits.temperature != 1.0)
    for (i64 i = 0; i < count * vocab_size; ++i) cdf[i] /= logits.temperature;
  for (i64 i = 0; i < count * vocab_size; ++i) cdf[i] = exp_double(cdf[i]);
  for (i64 j = 0; j < count; ++j) last[j] = cumulate(cdf + j * vocab_size, vocab_size);
  return count;
}

template <class T>
class TokenDraws {
 public:
  // cdf_doubles: how many running sums to keep, if a few sites fit.
  FG_TARGET TokenDraws(const Logits<T>& logits, i64 cdf_doubles)
      : logits_(logits),
        vocab_size_(logits.vocab_size),
        num_blocks_((vocab_size_ + BLOCK - 1) / BLOCK),
        margin_(0x1p-29 + 0x1p-50 * static_cast<double>(vocab_size_)),
        batch_(vocab_size_ < BLOCK ? cdf_doubles / vocab_size_ : 1),
        tops_(num_blocks_),
        ends_(num_blocks_),
        last_(batch_) {}

  // How many sites `read` takes at most.
  FG_TARGET i64 batch() const { return batch_; }

  // Reads the logits [V] at each of `sites` [count], for num_draws draws in all. Returns `count`,
  // or the first site with bad logits, and its fault code.
  FG_TARGET i64 read(const T* const* sites, i64 count, i64 num_draws, i32* code) {
    site_ = sites[0];
    // A draw reads one block again; from all of them twice over on, sums in order are faster.
    by_blocks_ = vocab_size_ >= BLOCK && num_draws * BLOCK <= 2 * vocab_size_;
    if (!by_blocks_) return sum_in_order(sites, count, code);
    *code = site_ == nullptr ? static_cast<i32>(kIndexFault) : sum_blocks();
    return *code == kNoFault ? count : 0;
  }

  // The token at sites[j] of the last `read` for a uniform u in [0, 1).
  FG_TARGET i64 draw(i64 j, double u) {
    if (by_blocks_) {
      const i64 token = pick_by_blocks(u);
      if (token >= 0) return token;
      i32 code;
      sum_in_order(&site_, 1, &code);
      by_blocks_ = false;
    }
    return pick(cdf_.data() + j * vocab_size_, vocab_size_, last_[static_cast<size_t>(j)], u);
  }

 private:
  static constexpr i64 BLOCK = 512;
  // Sums and maxima go side by side in as many strands: enough to fill the registers, and too many
  // for compilers to unroll what they should vectorise.
  static constexpr i64 STRANDS = 32;

  FG_TARGET i64 sum_in_order(const T* const* sites, i64 count, i32* code) {
    cdf_.resize(static_cast<size_t>(batch_ * vocab_size_));
    return token_cdfs(logits_, sites, count, cdf_.data(), last_.data(), code);
  }

  // ends_: the CDF, of weights relative to the largest logit, at the end of each block.
  FG_TARGET i32 sum_blocks() {
    const double infinity = bits_double(0x7FF0000000000000ull);
    top_ = -infinity;
    for (i64 b = 0; b < num_blocks_; ++b) {
      load(b);
      const double top = largest();
      top_ = top > top_ ? top : top_;
      tops_[static_cast<size_t>(b)] = top;
      // A pivot of its own lets a block be read once; NaN and +inf come out as NaN.
      weigh(top == -infinity ? 0.0 : top);
      ends_[static_cast<size_t>(b)] = sum();
    }
    double end = 0.0;
    bool bad = false;
    for (i64 b = 0; b < num_blocks_; ++b) {
      const size_t at = static_cast<size_t>(b);
      bad |= !(ends_[at] < infinity);
      end += ends_[at] * exp_double((tops_[at] - top_) / logits_.temperature);
      ends_[at] = end;
    }
    if (bad) return kLogitFault;
    return top_ == -infinity ? kNoTokenFault : kNoFault;
  }

  // The token for u, or -1 where the sums in order might give another.
  //
  // Let P(v) be the running sums of the true weights, P their total, and S(v), F(v) what is summed
  // in order and here, with e = 2^-53. A weight exp(x) of S is within (2 * 746 + 2) e of the true
  // one: two roundings of x, and that of exp; smaller ones than exp(-746) add nothing that counts,
  // for P >= 1. A weight of F errs by 2^-31 besides, and by as much as one of S once more for its
  // scale. V additions err by V e in any order, so that
  //     |S(v) - P(v)| < (V + 1500) e P,   |F(v) - P(v)| < (2^-31 + (V + 3000) e) P.
  // The targets, u times the total, err by as much. If F(v) exceeds its target by twice the sum of
  // both, which is below (2^-30 + 4 V e + 9000 e) P < margin_ * F, then S(v) exceeds its own; if
  // F(v - 1) falls short by as much, so does S(v - 1). Then v is the token of the sums in order,
  // and its weight is positive.
  FG_TARGET i64 pick_by_blocks(double u) {
    const double total = ends_.back(), target = u * total, margin = margin_ * total;
    const i64 b = pick(ends_.data(), num_blocks_, num_blocks_ - 1, u);
    load(b);
    weigh(top_);
    double below = b > 0 ? ends_[static_cast<size_t>(b - 1)] : 0.0;
    for (i64 i = 0; i < BLOCK; ++i) {
      const double end = below + block_[i];
      if (end > target)
        return end - target > margin && target - below > margin ? b * BLOCK + i : -1;
      below = end;
    }
    return -1;
  }

  // block_: the logits of block b, then -inf.
  FG_TARGET void load(i64 b) {
    const i64 stride = logits_.token_stride, left = vocab_size_ - b * BLOCK;
    const i64 count = left < BLOCK ? left : BLOCK;
    const T* const logits = site_ + b * BLOCK * stride;
    if (stride == 1) {
      for (i64 i = 0; i < count; ++i) block_[i] = static_cast<double>(logits[i]);
    } else {
      for (i64 i = 0; i < count; ++i) block_[i] = static_cast<double>(logits[i * stride]);
    }
    for (i64 i = count; i < BLOCK; ++i) block_[i] = bits_double(0xFFF0000000000000ull);
  }

  FG_TARGET double largest() const {
    double tops[STRANDS];
    for (i64 i = 0; i < STRANDS; ++i) tops[i] = block_[i];
    for (i64 b = STRANDS; b < BLOCK; b += STRANDS)
      for (i64 i = 0; i < STRANDS; ++i) tops[i] = block_[b + i] > tops[i] ? block_[b + i] : tops[i];
    double top = tops[0];
    for (i64 i = 1; i < STRANDS; ++i) top = tops[i] > top ? tops[i] : top;
    return top;
  }

  // Logits of the block become weights relative to the pivot.
  FG_TARGET void weigh(double pivot) {
    const double temperature = logits_.temperature;
    if (temperature == 1.0) {
      for (i64 i = 0; i < BLOCK; ++i) block_[i] = exp_quick(block_[i] - pivot);
    } else {
      for (i64 i = 0; i < BLOCK; ++i) block_[i] = exp_quick((block_[i] - pivot) / temperature);
    }
  }

  FG_TARGET double sum() const {
    double sums[STRANDS] = {};
    for (i64 b = 0; b < BLOCK; b += STRANDS)
      for (i64 i = 0; i < STRANDS; ++i) sums[i] += block_[b + i];
    double all = 0.0;
    for (i64 i = 0; i < STRANDS; ++i) all += sums[i];
    return all;
  }

  const Logits<T>& logits_;
  const i64 vocab_size_, num_blocks_;
  const double margin_;  // share of the total
  const i64 batch_;

  // The sites at hand; by blocks it is one.
  const T* site_ = nullptr;
  bool by_blocks_ = false;
  double top_ = 0.0;
  std::vector<double> tops_, ends_;  // [num_blocks]
  double block_[BLOCK];
  std::vector<double> cdf_;          // [batch, V], from the first sums in order on
  std::vector<i64> last_;            // [batch]
};

}  // namespace FG_NAMESPACE
}  // namespace fastguide
