// Elements of the log-probability of a Gaussian step, of its KL to a reference, and their gradient.
#pragma once

#include "ppo_terms.cuh"

namespace fastguide {

// The coefficients of x_next ~ N(a x + b output, s^2) in one row, and those of the gradient.
struct GaussianLaw {
  double a, b, s;
};

// How far x_next lies from the mean.
FG_HD double gaussian_gap(const GaussianLaw& law, double output, double x, double x_next) {
  return x_next - (law.a * x + law.b * output);
}

// From sums of the squares of the gap, and of output - output_ref, over num_elements.
FG_HD double gaussian_log_prob(double s, double gaps, double num_elements) {
  constexpr double HALF_LOG_2_PI = 0x1.d67f1c864beb5p-1;
  const double each = log_double(s) + HALF_LOG_2_PI;
  return -0.5 * (gaps / (s * s)) - num_elements * each;
}
FG_HD double gaussian_kl(double b, double s, double differences) {
  const double scale = b / s;
  return 0.5 * (scale * scale) * differences;
}

}  // namespace fastguide
