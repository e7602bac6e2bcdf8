// Body of soft_value, compiled once per instruction set (levels.h).
namespace fastguide {
namespace FG_NAMESPACE {

template <class T>
FG_TARGET Fault soft_value_rows(const T* values, i64 row_stride, i64 sample_stride, i64 num_samples,
                                SoftValueKind kind, double alpha, double tau, T* out, i64 begin,
                                i64 end) {
  std::vector<double> row(static_cast<size_t>(num_samples));
  for (i64 r = begin; r < end; ++r) {
    bool nan = false;
    double sum = 0.0;
    for (i64 s = 0; s < num_samples; ++s) {
      const double value = static_cast<double>(values[r * row_stride + s * sample_stride]);
      row[static_cast<size_t>(s)] = value;
      nan |= value != value;
      sum += value;
    }
    double result = sum / static_cast<double>(num_samples);
    if (kind == kLogMeanExp) {
      result = log_mean_exp(row.data(), num_samples, alpha);
    } else if (kind == kCvar && !nan) {
      std::sort(row.begin(), row.end());
      result = cvar_of_sorted(row.data(), num_samples, tau);
    }
    out[r] = static_cast<T>(result);
  }
  return {};
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
