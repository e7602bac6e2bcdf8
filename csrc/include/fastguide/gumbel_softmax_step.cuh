// Noise of a relaxed masked step.
#pragma once

#include "masked_ppo.cuh"
#include "philox.cuh"

namespace fastguide {

// -log u of u = (word + 1/2) 2^-32, an exponential draw; minus its logarithm is a Gumbel draw.
FG_HD double exponential_draw(u64 word) { return 0.5 * radius_squared(word); }

}  // namespace fastguide
