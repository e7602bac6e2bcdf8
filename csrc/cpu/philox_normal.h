// Body of philox_normal, compiled once per instruction set (levels.h).
namespace fastguide {
namespace FG_NAMESPACE {

// `normal_pair` of eight pairs of words, in loops that vectorise.
FG_LANE void normal_pairs(const Lanes& w_a, const Lanes& w_b, double* first, double* second) {
  u64 a[LANES], b[LANES];
  store_words(w_a, a);
  store_words(w_b, b);
  double radius[LANES];
  for (int i = 0; i < LANES; ++i) radius[i] = radius_squared(a[i]);
  square_roots(radius);
  for (int i = 0; i < LANES; ++i) {
    const UnitVector direction = turn(b[i]);
    first[i] = radius[i] * direction.cos;
    second[i] = radius[i] * direction.sin;
  }
}

// Elements 4b, ..., 4b + 31 of the LANES blocks from b on.
FG_LANE void normal_lanes(u64 first_block, u64 candidate, u64 chain, u32 c3,
                          const RoundKeys& schedule, double* z) {
  const PhiloxLanes block =
      philox_lanes(count_from(first_block), lanes(candidate), lanes(chain), lanes(c3), schedule);
  double planes[4][LANES];
  normal_pairs(block.w0, block.w1, planes[0], planes[1]);
  normal_pairs(block.w2, block.w3, planes[2], planes[3]);
  for (int i = 0; i < LANES; ++i)
    for (int j = 0; j < 4; ++j) z[4 * i + j] = planes[j][i];
}

template <class T>
FG_TARGET Fault normal_rows(const PhiloxArgs& args, T* out, i64 begin, i64 end) {
  const RoundKeys schedule = round_keys(philox_key(args.seed));
  for (i64 n = begin; n < end; ++n) {
    Fault fault;
    if (!check_ids(args, n, &fault)) return fault;
    const i64 first = args.first_candidate == nullptr ? 0 : args.first_candidate[n];
    for (i64 k = 0; k < args.num_candidates; ++k) {
      T* row = out + (n * args.num_candidates + k) * args.num_elements;
      for (i64 e = 0; e < args.num_elements; e += 4 * LANES) {
        double z[4 * LANES];
        normal_lanes(static_cast<u64>(e / 4), static_cast<u64>(first + k),
                     static_cast<u64>(args.chains[n]), args.c3, schedule, z);
        const i64 left = args.num_elements - e;
        const i64 count = left < 4 * LANES ? left : 4 * LANES;
        for (i64 i = 0; i < count; ++i) row[e + i] = static_cast<T>(z[i]);
      }
    }
  }
  return {};
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
