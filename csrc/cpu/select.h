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

FG_TARGET Fault select_rows(const SelectArgs& args, i64 begin, i64 end) {
  const double infinity = bits_double(0x7FF0000000000000ull);
  const PhiloxKey key = philox_key(args.seed);
  std::vector<double> log_w(static_cast<size_t>(args.num_candidates));
  for (i64 n = begin; n < end; ++n) {
    const i64 particle = args.particles == nullptr ? 0 : args.particles[n];
    Fault fault;
    if (!check_ids(args.chains[n], particle, 1, n, &fault)) return fault;
    args.values.is_double ? load_log_w<double>(args, n, log_w.data())
                          : load_log_w<float>(args, n, log_w.data());
    if (args.log_ratio.data != nullptr)
      args.log_ratio.is_double ? add_log_ratio<double>(args, n, log_w.data())
                               : add_log_ratio<float>(args, n, log_w.data());
    for (i64 k = 0; k < args.num_candidates; ++k)
      if (!(log_w[static_cast<size_t>(k)] < infinity)) return {kValueFault, n, k, 0};

    const PhiloxBlock block = philox(0, static_cast<u32>(particle),
                                     static_cast<u32>(args.chains[n]), args.c3, key);
    const Choice choice = choose(log_w.data(), args.num_candidates, args.alpha == 0.0,
                                 uniform53(block.w0, block.w1));
    args.out_index[n] = choice.index;
    args.out_lme[n] = choice.lme;
    args.out_ess[n] = choice.ess;
    for (i64 i = 0; i < args.num_items; ++i)
      if (!gather(args.items[i], n, args.num_candidates, choice.index, &fault)) return fault;
  }
  return {};
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
