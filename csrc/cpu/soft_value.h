// Body of soft_value, compiled once per instruction set (levels.h).
namespace fastguide {
namespace FG_NAMESPACE {

// Log-mean-exps of `values` [rows, S], which are overwritten, in loops over all of them at once.
FG_LANE void log_mean_exps(double* values, i64 rows, i64 num_samples, double alpha, double* top,
                           double* mean) {
  for (i64 r = 0; r < rows; ++r) {
    double* row = values + r * num_samples;
    top[r] = largest_value(row, num_samples);
    for (i64 s = 0; s < num_samples; ++s) row[s] = (row[s] - top[r]) / alpha;
  }
  for (i64 i = 0; i < rows * num_samples; ++i) values[i] = exp_double(values[i]);
  for (i64 r = 0; r < rows; ++r) {
    double sum = 0.0;
    for (i64 s = 0; s < num_samples; ++s) sum += values[r * num_samples + s];
    mean[r] = sum / static_cast<double>(num_samples);
  }
  for (i64 r = 0; r < rows; ++r) mean[r] = log_double(mean[r]);
  for (i64 r = 0; r < rows; ++r)
    mean[r] = is_its_maximum(top[r], alpha) ? top[r] : top[r] + alpha * mean[r];
}

FG_LANE double mean_of(const double* row, i64 num_samples) {
  double sum = 0.0;
  for (i64 s = 0; s < num_samples; ++s) sum += row[s];
  return sum / static_cast<double>(num_samples);
}

// A chunk of rows at a time, in double.
template <class T>
FG_TARGET Fault soft_value_rows(const T* values, i64 row_stride, i64 sample_stride, i64 num_samples,
                                SoftValueKind kind, double alpha, double tau, T* out, i64 begin,
                                i64 end) {
  constexpr i64 CHUNK_DOUBLES = 2048;
  const i64 chunk = CHUNK_DOUBLES / num_samples > 1 ? CHUNK_DOUBLES / num_samples : 1;
  std::vector<double> wide(static_cast<size_t>(chunk * num_samples));
  std::vector<double> top(static_cast<size_t>(chunk)), result(static_cast<size_t>(chunk));
  for (i64 first = begin; first < end; first += chunk) {
    const i64 rows = end - first < chunk ? end - first : chunk;
    for (i64 r = 0; r < rows; ++r)
      for (i64 s = 0; s < num_samples; ++s)
        wide[static_cast<size_t>(r * num_samples + s)] =
            static_cast<double>(values[(first + r) * row_stride + s * sample_stride]);
    if (kind == kLogMeanExp)
      log_mean_exps(wide.data(), rows, num_samples, alpha, top.data(), result.data());
    for (i64 r = 0; r < rows && kind != kLogMeanExp; ++r) {
      double* row = wide.data() + r * num_samples;
      double& value = result[static_cast<size_t>(r)];
      value = mean_of(row, num_samples);
      // The order of samples with a NaN is undefined; their mean is NaN already.
      const double top_value = largest_value(row, num_samples);
      if (kind == kMean || top_value != top_value) continue;
      std::sort(row, row + num_samples);
      value = cvar_of_sorted(row, num_samples, tau);
    }
    for (i64 r = 0; r < rows; ++r) out[first + r] = static_cast<T>(result[static_cast<size_t>(r)]);
  }
  return {};
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
