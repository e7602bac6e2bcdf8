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

// What they are made of: [N] each, and the bounds of the ratio.
struct PpoInputs {
  const double *old_log_prob, *advantage;
  double low, high;
};

FG_HD void write_ppo_terms(const PpoInputs& in, i64 n, double log_prob, double kl,
                           const PpoOutputs& out) {
  const double advantage = in.advantage[n];
  const double ratio = exp_double(log_prob - in.old_log_prob[n]);
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

}  // namespace fastguide
