// What PPO makes of the log-probability of one transition.
#pragma once

#include "math.cuh"

namespace fastguide {

// Where the terms of rows [N] go; slope is the derivative of the surrogate in log_prob.
struct PpoOutputs {
  double *surrogate, *kl, *log_prob, *ratio;
  bool* clipped;
  double* slope;
};

// Numbers [N] in float or double, any stride; data null: absent.
struct Numbers {
  const void* data;
  i64 stride;
  bool is_double;

  FG_HD double operator[](i64 n) const {
    return is_double ? static_cast<const double*>(data)[n * stride]
                     : static_cast<double>(static_cast<const float*>(data)[n * stride]);
  }
};

// What they are made of: [N] each, and the bounds of the ratio.
struct PpoInputs {
  Numbers old_log_prob, advantage;
  double low, high;
};

// Gradients in the terms, where absent none, and what the forward pass wrote.
struct PpoPulls {
  Numbers surrogate, kl, log_prob, ratio;
  const double *ratios, *slopes;  // [N]
};

FG_HD double pull_on_log_prob(const PpoPulls& pulls, i64 n) {
  double pull = 0.0;
  if (pulls.surrogate.data != nullptr) pull = pulls.surrogate[n] * pulls.slopes[n];
  if (pulls.log_prob.data != nullptr) pull += pulls.log_prob[n];
  if (pulls.ratio.data != nullptr) pull += pulls.ratio[n] * pulls.ratios[n];
  return pull;
}

FG_HD double pull_on_kl(const PpoPulls& pulls, i64 n) {
  return pulls.kl.data == nullptr ? 0.0 : pulls.kl[n];
}

// ratio: exp(log_prob - old_log_prob).
FG_HD void write_ppo_terms(const PpoInputs& in, i64 n, double log_prob, double kl, double ratio,
                           const PpoOutputs& out) {
  const double advantage = in.advantage[n];
  const double inside = ratio < in.low ? in.low : (ratio > in.high ? in.high : ratio);
  const double plain = ratio * advantage, held = inside * advantage;
  // NaN on either side goes through.
  const double least = plain < held || plain != plain ? plain : held;
  out.surrogate[n] = -least;
  out.kl[n] = kl;
  out.log_prob[n] = log_prob;
  out.ratio[n] = ratio;
  const bool clipped =
      (advantage > 0.0 && ratio > in.high) || (advantage < 0.0 && ratio < in.low);
  out.clipped[n] = clipped;
  out.slope[n] = clipped ? 0.0 : -plain;
}

FG_HD void write_ppo_terms(const PpoInputs& in, i64 n, double log_prob, double kl,
                           const PpoOutputs& out) {
  write_ppo_terms(in, n, log_prob, kl, exp_double(log_prob - in.old_log_prob[n]), out);
}

}  // namespace fastguide
