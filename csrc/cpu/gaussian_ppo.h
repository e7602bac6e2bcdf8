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
template <bool COMPARED, class T>
FG_LANE void add_element(const PpoRow<T>& row, i64 i, double* gaps, double* differences) {
  const double output = static_cast<double>(row.output[i]);
  const double gap = gaussian_gap(row.law, output, static_cast<double>(row.x[i]),
                                  static_cast<double>(row.x_next[i]));
  *gaps += gap * gap;
  if (!COMPARED) return;
  const double difference = output - static_cast<double>(row.output_ref[i]);
  *differences += difference * difference;
}

// d_output of element i.
template <bool COMPARED, class T>
FG_LANE T pulled_element(const PpoRow<T>& row, i64 i, double along, double back) {
  const double output = static_cast<double>(row.output[i]);
  const double gap = gaussian_gap(row.law, output, static_cast<double>(row.x[i]),
                                  static_cast<double>(row.x_next[i]));
  if (!COMPARED) return static_cast<T>(along * gap);
  return static_cast<T>(along * gap + back * (output - static_cast<double>(row.output_ref[i])));
}

#if FG_LEVEL > 0

// Four elements side by side: compilers widen float32 in longer registers and then split them.
FG_LANE __m256d four(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
FG_LANE __m256d four(const double* p) { return _mm256_loadu_pd(p); }
FG_LANE void put_four(__m256d v, float* p) { _mm_storeu_ps(p, _mm256_cvtpd_ps(v)); }
FG_LANE void put_four(__m256d v, double* p) { _mm256_storeu_pd(p, v); }

template <class T>
FG_LANE __m256d four_gaps(const PpoRow<T>& row, __m256d output, i64 i) {
  const __m256d a = _mm256_set1_pd(row.law.a), b = _mm256_set1_pd(row.law.b);
  return four(row.x_next + i) - (a * four(row.x + i) + b * output);
}

// The sums over [begin, end), whole steps of PPO_LANES; with a reference or without.
template <bool COMPARED, class T>
FG_LANE void add_steps(const PpoRow<T>& row, i64 begin, i64 end, double* gaps,
                       double* differences) {
  constexpr int PARTS = static_cast<int>(PPO_LANES / 4);
  __m256d own[PARTS], other[PARTS];
  for (int k = 0; k < PARTS; ++k) own[k] = other[k] = _mm256_setzero_pd();
  for (i64 e = begin; e < end; e += PPO_LANES)
    for (int k = 0; k < PARTS; ++k) {
      const i64 i = e + 4 * k;
      const __m256d output = four(row.output + i), gap = four_gaps(row, output, i);
      own[k] += gap * gap;
      if (!COMPARED) continue;
      const __m256d difference = output - four(row.output_ref + i);
      other[k] += difference * difference;
    }
  for (int k = 0; k < PARTS; ++k) {
    put_four(own[k], gaps + 4 * k);
    put_four(other[k], differences + 4 * k);
  }
}

template <bool COMPARED, class T>
FG_LANE void pull_steps(const PpoRow<T>& row, i64 begin, i64 end, double along, double back,
                        T* d_output) {
  for (i64 i = begin; i < end; i += 4) {
    const __m256d output = four(row.output + i);
    __m256d pull = _mm256_set1_pd(along) * four_gaps(row, output, i);
    if (COMPARED) pull = pull + _mm256_set1_pd(back) * (output - four(row.output_ref + i));
    put_four(pull, d_output + i);
  }
}

#else

template <bool COMPARED, class T>
FG_LANE void add_steps(const PpoRow<T>& row, i64 begin, i64 end, double* gaps,
                       double* differences) {
  for (i64 e = begin; e < end; e += PPO_LANES)
    for (i64 i = 0; i < PPO_LANES; ++i)
      add_element<COMPARED>(row, e + i, gaps + i, differences + i);
}

template <bool COMPARED, class T>
FG_LANE void pull_steps(const PpoRow<T>& row, i64 begin, i64 end, double along, double back,
                        T* d_output) {
  for (i64 i = begin; i < end; ++i) d_output[i] = pulled_element<COMPARED>(row, i, along, back);
}

#endif

template <bool COMPARED, class T>
FG_LANE void add_range(const PpoRow<T>& row, i64 begin, i64 end, double* gaps,
                       double* differences) {
  const i64 whole = begin + (end - begin) / PPO_LANES * PPO_LANES;
  add_steps<COMPARED>(row, begin, whole, gaps, differences);
  for (i64 e = whole; e < end; ++e)
    add_element<COMPARED>(row, e, gaps + (e - whole), differences + (e - whole));
}

template <bool COMPARED, class T>
FG_LANE void pull_range(const PpoRow<T>& row, i64 begin, i64 end, double along, double back,
                        T* d_output) {
  const i64 whole = begin + (end - begin) / 4 * 4;
  pull_steps<COMPARED>(row, begin, whole, along, back, d_output);
  for (i64 i = whole; i < end; ++i) d_output[i] = pulled_element<COMPARED>(row, i, along, back);
}

// Sums of the squares of gaps, and of differences to the reference, over [begin, end) of row n.
template <class T>
FG_TARGET void ppo_tile(const GaussianPpoArgs<T>& args, i64 n, i64 begin, i64 end, double* sums) {
  const PpoRow<T> row = ppo_row(args, n);
  double gaps[PPO_LANES] = {}, differences[PPO_LANES] = {};
  if (row.output_ref == nullptr)
    add_range<false>(row, begin, end, gaps, differences);
  else
    add_range<true>(row, begin, end, gaps, differences);
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
  const double along = d_log_prob * (row.law.b / (row.law.s * row.law.s));
  const double scale = row.law.b / row.law.s, back = d_kl * (scale * scale);
  if (row.output_ref == nullptr)
    pull_range<false>(row, begin, end, along, back, d_output);
  else
    pull_range<true>(row, begin, end, along, back, d_output);
}

// The terms of all rows from the sums of their tiles [N, tiles, 2].
template <class T>
FG_TARGET void ppo_terms_of_rows(const GaussianPpoArgs<T>& args, const PpoInputs& in,
                                 const double* partial, i64 num_tiles, const PpoOutputs& out) {
  const double num_elements = static_cast<double>(args.num_elements);
  double s[PPO_ROWS], gaps[PPO_ROWS], differences[PPO_ROWS], old[PPO_ROWS], ratio[PPO_ROWS];
  for (i64 first = 0; first < args.num_rows; first += PPO_ROWS) {
    const i64 left = args.num_rows - first, rows = left < PPO_ROWS ? left : PPO_ROWS;
    for (i64 j = 0; j < rows; ++j) {
      const double* sums = partial + 2 * (first + j) * num_tiles;
      gaps[j] = differences[j] = 0.0;
      for (i64 tile = 0; tile < num_tiles; ++tile) {
        gaps[j] += sums[2 * tile];
        differences[j] += sums[2 * tile + 1];
      }
      s[j] = args.s[first + j];
      old[j] = in.old_log_prob[first + j];
    }
    for (i64 j = 0; j < rows; ++j) gaps[j] = gaussian_log_prob(s[j], gaps[j], num_elements);
    for (i64 j = 0; j < rows; ++j) ratio[j] = exp_double(gaps[j] - old[j]);
    for (i64 j = 0; j < rows; ++j)
      write_ppo_terms(in, first + j, gaps[j], gaussian_kl(args.b[first + j], s[j], differences[j]),
                      ratio[j], out);
  }
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
