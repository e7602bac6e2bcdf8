// One Gaussian reverse step of one element.
#pragma once

#include "normal_single.cuh"
#include "philox_normal.cuh"

namespace fastguide {

// The coefficients of x' = a x + b output + shift + s z.
struct GaussianStep {
  double a, b, s;
};

// a x + b output + shift, in the dtype of x. In float32 each coefficient is rounded first and every
// product is fused with its sum, so that all backends agree bit for bit.
FG_HD float gaussian_mean(const GaussianStep& step, float x, float output, float shift) {
  const float inner = single::fused_single(static_cast<float>(step.b), output, shift);
  return single::fused_single(static_cast<float>(step.a), x, inner);
}
FG_HD double gaussian_mean(const GaussianStep& step, double x, double output, double shift) {
  return step.a * x + step.b * output + shift;
}

FG_HD float gaussian_candidate(const GaussianStep& step, float mean, float z) {
  return single::fused_single(static_cast<float>(step.s), z, mean);
}
FG_HD double gaussian_candidate(const GaussianStep& step, double mean, double z) {
  return mean + step.s * z;
}

}  // namespace fastguide
