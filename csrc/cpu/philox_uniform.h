// Body of philox_uniform, compiled once per instruction set (levels.h).
namespace fastguide {
namespace FG_NAMESPACE {

FG_TARGET Fault uniform_rows(const PhiloxArgs& args, double* out, i64 begin, i64 end) {
  const RoundKeys schedule = round_keys(philox_key(args.seed));
  for (i64 n = begin; n < end; ++n) {
    Fault fault;
    if (!check_ids(args, n, &fault)) return fault;
    const i64 first = args.first_candidate == nullptr ? 0 : args.first_candidate[n];
    for (i64 k = 0; k < args.num_candidates; ++k) {
      double* row = out + (n * args.num_candidates + k) * args.num_elements;
      for (i64 e = 0; e < args.num_elements; e += LANES) {
        const PhiloxLanes block =
            philox_lanes(count_from(static_cast<u64>(e)), lanes(static_cast<u64>(first + k)),
                         lanes(static_cast<u64>(args.chains[n])), lanes(args.c3), schedule);
        u64 w0[LANES], w1[LANES];
        store_words(block.w0, w0);
        store_words(block.w1, w1);
        double u[LANES];
        for (int i = 0; i < LANES; ++i) u[i] = uniform53(w0[i], w1[i]);
        const i64 left = args.num_elements - e;
        if (left >= LANES) {
          std::memcpy(row + e, u, sizeof u);
        } else {
          std::memcpy(row + e, u, static_cast<size_t>(left) * sizeof(double));
        }
      }
    }
  }
  return {};
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
