// The gradient of a token's log-probability and of a KL in one logit.
#pragma once

#include "ppo_terms.cuh"
#include "subs_cross_entropy.cuh"

namespace fastguide {

// KL(p || q) of two softmaxes, from sum exp(z - top) (z - z_ref) over the tokens and both normalisers.
FG_HD double softmax_kl(LogitSum sum, double moment, double normaliser, double normaliser_ref) {
  return moment / sum.total - (normaliser - normaliser_ref);
}

}  // namespace fastguide
