// Body of select, compiled once per instruction set (levels.h).
namespace fastguide {
namespace FG_NAMESPACE {

template <class T>
FG_LANE void load_log_w(const SelectArgs& args, i64 n, double* log_w) {
  const T* values = static_cast<const T*>(args.values.data) + n * args.values.row_stride;
  for (i64 k = 0; k < args.num_candidates; ++k)
    log_w[k] = static_cast<double>(values[k * args.values.column_stride]);
  if (args.alpha > 0.0)
    for (i64 k = 0; k < args.num_candidates; ++k) log_w[k] /= args.alpha;
}

template <class T>
FG_LANE void add_log_ratio(const SelectArgs& args, i64 n, double* log_w) {
  const T* ratio = static_cast<const T*>(args.log_ratio.data) + n * args.log_ratio.row_stride;
  for (i64 k = 0; k < args.num_candidates; ++k)
    log_w[k] += static_cast<double>(ratio[k * args.log_ratio.column_stride]);
}

// Loads the log-weights of row n; false and a fault if its ids or weights cannot be used.
FG_LANE bool load_row(const SelectArgs& args, i64 n, double* log_w, Fault* fault) {
  const i64 particle = args.particles == nullptr ? 0 : args.particles[n];
  if (!check_ids(args.chains[n], particle, 1, n, fault)) return false;
  args.values.is_double ? load_log_w<double>(args, n, log_w) : load_log_w<float>(args, n, log_w);
  if (args.log_ratio.data != nullptr)
    args.log_ratio.is_double ? add_log_ratio<double>(args, n, log_w)
                             : add_log_ratio<float>(args, n, log_w);
  const double infinity = bits_double(0x7FF0000000000000ull);
  for (i64 k = 0; k < args.num_candidates; ++k) {
    if (log_w[k] < infinity) continue;
    *fault = {kValueFault, n, k, 0};
    return false;
  }
  return true;
}

FG_LANE Choice choose(const SelectArgs& args, i64 n, Peak peak, double* weights, PhiloxKey key) {
  if (args.alpha == 0.0 && peak.top > -bits_double(0x7FF0000000000000ull))
    return {peak.index, peak.top, 1.0};
  const i64 particle = args.particles == nullptr ? 0 : args.particles[n];
  const PhiloxBlock block =
      philox(0, static_cast<u32>(particle), static_cast<u32>(args.chains[n]), args.c3, key);
  const double u = uniform53(block.w0, block.w1);
  if (peak.top > -bits_double(0x7FF0000000000000ull))
    return choose_weighted(weights, args.num_candidates, peak.top, u);
  return choose_any(args.num_candidates, u);
}

// A chunk of rows at a time, so that the exponentials of all of them run in one loop.
FG_TARGET Fault select_rows(const SelectArgs& args, i64 begin, i64 end) {
  constexpr i64 CHUNK_DOUBLES = 2048;
  const PhiloxKey key = philox_key(args.seed);
  const i64 k = args.num_candidates;
  const i64 chunk = CHUNK_DOUBLES / k > 1 ? CHUNK_DOUBLES / k : 1;
  std::vector<double> weights(static_cast<size_t>(chunk * k));
  std::vector<Peak> peaks(static_cast<size_t>(chunk));
  Fault fault;
  for (i64 first = begin; first < end && fault.code == kNoFault; first += chunk) {
    i64 rows = 0;
    for (; rows < chunk && first + rows < end; ++rows) {
      double* log_w = weights.data() + rows * k;
      if (!load_row(args, first + rows, log_w, &fault)) break;
      const Peak peak = first_peak(log_w, k);
      peaks[static_cast<size_t>(rows)] = peak;
      for (i64 j = 0; j < k; ++j) log_w[j] -= peak.top;
    }
    if (args.alpha > 0.0)
      for (i64 i = 0; i < rows * k; ++i) weights[static_cast<size_t>(i)] = exp_double(weights[static_cast<size_t>(i)]);
    for (i64 r = 0; r < rows; ++r) {
      const i64 n = first + r;
      const Choice choice =
          choose(args, n, peaks[static_cast<size_t>(r)], weights.data() + r * k, key);
      args.out_index[n] = choice.index;
      args.out_lme[n] = choice.lme;
      args.out_ess[n] = choice.ess;
    }
    // Rows of the chunk precede whatever stopped the loading.
    for (i64 i = 0; i < args.num_items; ++i) {
      const Fault missing = gather(args.items[i], k, rows, first, [&](i64 r) {
        return Entry{first + r, args.out_index[first + r]};
      });
      if (missing.code != kNoFault) return missing;
    }
  }
  finish_streams();
  return fault;
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
