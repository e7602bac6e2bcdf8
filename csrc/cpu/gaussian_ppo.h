// Body of gaussian_ppo, compiled once per instruction set (levels.h).
namespace fastguide {
namespace FG_NAMESPACE {

// Elements [begin, end) of row n.
template <class T>
struct PpoRow {
  const T *output, *x, *x_next, *output_ref;
  GaussianLaw law;
};

template <class T>
FG_LANE PpoRow<T> ppo_row(const GaussianPpoArgs<T>& args, i64 n) {
  const T* ref = args.output_ref.data;
  return {args.output.data + n * args.output.row_stride,
          args.x.data + n * args.x.row_stride,
          args.x_next.data + n * args.x_next.row_stride,
          ref == nullptr ? nullptr : ref + n * args.output_ref.row_stride,
          {args.a[n], args.b[n], args.s[n]}};
}

// Lane i of the sums holds the elements i, i + PPO_LANES, ... of the tile on every instruction set.
template <class T>
FG_LANE void add_element(const PpoRow<T>& row, i64 i, double* gaps, double* differences) {
  const double output = static_cast<double>(row.output[i]);
  const double gap = gaussian_gap(row.law, output, static_cast<double>(row.x[i]),
                                  static_cast<double>(row.x_next[i]));
  *gaps += gap * gap;
  if (row.output_ref == nullptr) return;
  const double difference = output - static_cast<double>(row.output_ref[i]);
  *differences += difference * difference;
}

// Sums of the squares of gaps, and of differences to the reference, over [begin, end) of row n.
template <class T>
FG_TARGET void ppo_tile(const GaussianPpoArgs<T>& args, i64 n, i64 begin, i64 end, double* sums) {
  const PpoRow<T> row = ppo_row(args, n);
  double gaps[PPO_LANES] = {}, differences[PPO_LANES] = {};
  const i64 whole = begin + (end - begin) / PPO_LANES * PPO_LANES;
  if (row.output_ref == nullptr) {
    for (i64 e = begin; e < whole; e += PPO_LANES)
      for (i64 i = 0; i < PPO_LANES; ++i) {
        const double gap = gaussian_gap(row.law, static_cast<double>(row.output[e + i]),
                                        static_cast<double>(row.x[e + i]),
                                        static_cast<double>(row.x_next[e + i]));
        gaps[i] += gap * gap;
      }
  } else {
    for (i64 e = begin; e < whole; e += PPO_LANES)
      for (i64 i = 0; i < PPO_LANES; ++i) {
        const double output = static_cast<double>(row.output[e + i]);
        const double gap = gaussian_gap(row.law, output, static_cast<double>(row.x[e + i]),
                                        static_cast<double>(row.x_next[e + i]));
        gaps[i] += gap * gap;
        const double difference = output - static_cast<double>(row.output_ref[e + i]);
        differences[i] += difference * difference;
      }
  }
  for (i64 e = whole; e < end; ++e)
    add_element(row, e, gaps + (e - whole), differences + (e - whole));
  sums[0] = sums[1] = 0.0;
  for (i64 i = 0; i < PPO_LANES; ++i) {
    sums[0] += gaps[i];
    sums[1] += differences[i];
  }
}

// d_output over [begin, end) of row n.
template <class T>
FG_TARGET void ppo_pull(const GaussianPpoArgs<T>& args, i64 n, i64 begin, i64 end,
                        double d_log_prob, double d_kl, T* d_output) {
  const PpoRow<T> row = ppo_row(args, n);
  const GaussianLaw law = row.law;
  const double along = d_log_prob * (law.b / (law.s * law.s));
  const double scale = law.b / law.s, back = d_kl * (scale * scale);
  if (row.output_ref == nullptr) {
    for (i64 i = begin; i < end; ++i)
      d_output[i] = static_cast<T>(
          along * gaussian_gap(law, static_cast<double>(row.output[i]),
                               static_cast<double>(row.x[i]), static_cast<double>(row.x_next[i])));
    return;
  }
  for (i64 i = begin; i < end; ++i) {
    const double output = static_cast<double>(row.output[i]);
    const double gap = gaussian_gap(law, output, static_cast<double>(row.x[i]),
                                    static_cast<double>(row.x_next[i]));
    d_output[i] =
        static_cast<T>(along * gap + back * (output - static_cast<double>(row.output_ref[i])));
  }
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
