// Body of resample, compiled once per instruction set (levels.h).
namespace fastguide {
namespace FG_NAMESPACE {

// One group: the places of scratch memory and what the passes find out.
struct Group {
  const ResampleArgs& args;
  i64 g, n;            // its number, its particles N
  double* weights;     // [N] exp(log_w - top); kept by the schemes that need them later
  double* cdf;         // [N] running sums; `weights` itself for the schemes that need no weights
  i64* guide;          // [N], for draws
  i64* ancestors;      // [N], output
  RoundKeys keys;
  double top, total, squares, scale;  // scale = N / total
  i64 last;            // of positive weight

  u32 chain() const { return static_cast<u32>(args.chains[g]); }
};

// 53-bit uniforms of the particles first, ..., first + LANES - 1: words 0, 1 and words 2, 3.
FG_LANE void uniform_lanes(const Group& group, u64 first, double* u, double* v) {
  const PhiloxLanes block = philox_lanes(count_from(first), lanes(0), lanes(group.chain()),
                                         lanes(group.args.c3), group.keys);
  u64 w[4][LANES];
  store_words(block.w0, w[0]);
  store_words(block.w1, w[1]);
  for (int i = 0; i < LANES; ++i) u[i] = uniform53(w[0][i], w[1][i]);
  if (v == nullptr) return;
  store_words(block.w2, w[2]);
  store_words(block.w3, w[3]);
  for (int i = 0; i < LANES; ++i) v[i] = uniform53(w[2][i], w[3][i]);
}

// A window of uniforms that moves upwards over the particles.
struct Uniforms {
  static constexpr i64 SIZE = 256;
  i64 begin = -SIZE;
  double u[SIZE];
};

FG_LANE double uniform_at(const Group& group, Uniforms& window, i64 i) {
  if (i - window.begin >= Uniforms::SIZE) {
    window.begin = i / LANES * LANES;
    for (i64 j = 0; j < Uniforms::SIZE; j += LANES)
      uniform_lanes(group, static_cast<u64>(window.begin + j), window.u + j, nullptr);
  }
  return window.u[i - window.begin];
}

// Copies the log-weights to `weights` as doubles and finds the largest; the fault of a bad one.
template <class T>
FG_LANE Fault load_group(Group& group) {
  const double infinity = bits_double(0x7FF0000000000000ull);
  const Matrix& log_w = group.args.log_w;
  const T* row = static_cast<const T*>(log_w.data) + group.g * log_w.row_stride;
  double top[LANES], nan[LANES];
  for (int j = 0; j < LANES; ++j) {
    top[j] = -infinity;
    nan[j] = 0.0;
  }
  i64 i = 0;
  if (log_w.column_stride == 1) {
    for (; i + LANES <= group.n; i += LANES) {
      for (int j = 0; j < LANES; ++j) {
        const double value = static_cast<double>(row[i + j]);
        group.weights[i + j] = value;
        top[j] = value > top[j] ? value : top[j];
        nan[j] = value != value ? 1.0 : nan[j];
      }
    }
  }
  for (; i < group.n; ++i) {
    const double value = static_cast<double>(row[i * log_w.column_stride]);
    group.weights[i] = value;
    top[0] = value > top[0] ? value : top[0];
    nan[0] = value != value ? 1.0 : nan[0];
  }
  group.top = -infinity;
  bool bad = false;
  for (int j = 0; j < LANES; ++j) {
    group.top = top[j] > group.top ? top[j] : group.top;
    bad |= nan[j] != 0.0;
  }
  if (bad || group.top == infinity) {
    for (i = 0; group.weights[i] < infinity;) ++i;
    return {kValueFault, group.g, i, 0};
  }
  if (group.top == -infinity) return {kNoWeightFault, group.g, -1, group.args.chains[group.g]};
  return {};
}

// Running sums of values [N] into cdf [N] (which may be `values`), in the order of additions that
// SUM_BLOCK sets, and the sum of the squares. Eight blocks side by side keep eight chains of
// additions in flight.
FG_LANE double running_sums(const double* values, i64 n, double* cdf) {
  i64 begin = 0;
  double before = 0.0, squares[LANES] = {};
  for (; begin + LANES * SUM_BLOCK <= n; begin += LANES * SUM_BLOCK) {
    double sum[LANES] = {};
    for (i64 i = begin; i < begin + SUM_BLOCK; ++i) {
      for (int j = 0; j < LANES; ++j) {
        const double value = values[i + j * SUM_BLOCK];
        sum[j] += value;
        squares[j] += value * value;
        cdf[i + j * SUM_BLOCK] = sum[j];
      }
    }
    for (int j = 0; j < LANES; ++j) {
      double* block = cdf + begin + j * SUM_BLOCK;
      for (i64 i = 0; i < SUM_BLOCK; ++i) block[i] += before;
      before += sum[j];
    }
  }
  while (begin < n) {
    const i64 end = begin + SUM_BLOCK < n ? begin + SUM_BLOCK : n;
    double sum = 0.0;
    for (i64 i = begin; i < end; ++i) {
      sum += values[i];
      squares[0] += values[i] * values[i];
      cdf[i] = before + sum;
    }
    before += sum;
    begin = end;
  }
  for (int j = 1; j < LANES; ++j) squares[0] += squares[j];
  return squares[0];
}

// Weights, their running sums and what follows from them.
FG_LANE void weigh(Group& group) {
  double* weights = group.weights;
  const i64 n = group.n;
  const double top = group.top;
  for (i64 i = 0; i < n; ++i) weights[i] = exp_double(weights[i] - top);
  group.last = n - 1;
  while (!(weights[group.last] > 0.0)) --group.last;
  group.squares = running_sums(weights, group.n, group.cdf);
  group.total = group.cdf[group.n - 1];
  group.scale = static_cast<double>(group.n) / group.total;
}

// Writes `value` to the places [begin, end) of out [n]. Up to four places beyond `end` may be
// overwritten: the next run writes them again, and the last one ends at n.
FG_LANE void write_run(i64* out, i64 begin, i64 end, i64 n, i64 value) {
  constexpr i64 WIDE = 4;
  while (begin + WIDE <= n) {
    for (i64 i = 0; i < WIDE; ++i) out[begin + i] = value;
    begin += WIDE;
    if (begin >= end) return;
  }
  for (; begin < end; ++begin) out[begin] = value;
}

// Runs of 0, 1, ..., last in out [N]: particle i owns the points below its edge cdf_i scale and not
// below the edge before. The points carry one uniform, or those of `window` where that is given.
FG_LANE void expand_grid(const Group& group, const double* cdf, i64 last, double scale, double shared,
                         Uniforms* window, i64* out) {
  constexpr i64 CHUNK = 256;
  const double n = static_cast<double>(group.n);
  double edges[CHUNK], wholes[CHUNK], u[CHUNK];
  i64 ends[CHUNK], begin = 0;
  for (i64 i = 0; i < CHUNK; ++i) u[i] = shared;
  for (i64 first = 0; first < last; first += CHUNK) {
    const i64 count = last - first < CHUNK ? last - first : CHUNK;
    for (i64 i = 0; i < count; ++i) {
      edges[i] = cdf[first + i] * scale;
      wholes[i] = floor_positive(edges[i]);
    }
    for (i64 i = 0; window != nullptr && i < count; ++i) {
      const i64 at = whole_number(wholes[i]);
      u[i] = at < group.n ? uniform_at(group, *window, at) : 0.0;
    }
    for (i64 i = 0; i < count; ++i)
      ends[i] = whole_number(points_below(edges[i], wholes[i], u[i], n));
    for (i64 i = 0; i < count; ++i) {
      write_run(out, begin, ends[i], group.n, first + i);
      begin = ends[i];
    }
  }
  write_run(out, begin, group.n, group.n, last);
}

// Inverse-CDF draws in constant time: guide [N] holds, for each of N equal cells of [0, total), the
// particle that owns its lower end (Chen and Asau, "On generating random variates from an empirical
// distribution", 1974).
struct Draws {
  const double* cdf;
  const i64* guide;
  i64 n, last;
  double total;
};

FG_LANE Draws prepare_draws(const Group& group, const double* cdf, i64 last) {
  const double total = cdf[group.n - 1];
  expand_grid(group, cdf, last, static_cast<double>(group.n) / total, 0.0, nullptr, group.guide);
  return {cdf, group.guide, group.n, last, total};
}

constexpr i64 BATCH = 64;

// For each of count <= BATCH uniforms the first i with cdf[i] > u * total, clamped to `last`, as `pick`
// finds it. Both tables are met at random places, so their lines are asked for ahead of time.
FG_LANE void draw(const Draws& draws, const double* u, i64 count, i64* out) {
  const double cells = static_cast<double>(draws.n);
  for (i64 j = 0; j < count; ++j) {
    const i64 cell = static_cast<i64>(u[j] * cells);
    out[j] = cell < draws.n ? cell : draws.n - 1;
    FG_PREFETCH(draws.guide + out[j]);
  }
  for (i64 j = 0; j < count; ++j) {
    out[j] = draws.guide[out[j]];
    FG_PREFETCH(draws.cdf + out[j]);
  }
  for (i64 j = 0; j < count; ++j) {
    const double target = u[j] * draws.total;
    i64 i = out[j];
    while (i > 0 && draws.cdf[i - 1] > target) --i;
    while (i < draws.last && draws.cdf[i] <= target) ++i;
    out[j] = i;
  }
}

// Draws with the uniforms of particles 0, 1, ..., count - 1.
FG_LANE void draw_first(const Group& group, const Draws& draws, i64 count, i64* out) {
  double u[BATCH];
  for (i64 first = 0; first < count; first += BATCH) {
    for (i64 j = 0; j < BATCH; j += LANES)
      uniform_lanes(group, static_cast<u64>(first + j), u + j, nullptr);
    draw(draws, u, count - first < BATCH ? count - first : BATCH, out + first);
  }
}

FG_LANE void multinomial(Group& group) {
  draw_first(group, prepare_draws(group, group.cdf, group.last), group.n, group.ancestors);
}

FG_LANE void killing(Group& group) {
  const Draws draws = prepare_draws(group, group.cdf, group.last);
  double u[BATCH], v[BATCH];
  i64 killed[BATCH], drawn[BATCH];
  for (i64 first = 0; first < group.n; first += BATCH) {
    const i64 count = group.n - first < BATCH ? group.n - first : BATCH;
    for (i64 j = 0; j < BATCH; j += LANES)
      uniform_lanes(group, static_cast<u64>(first + j), u + j, v + j);
    i64 num_killed = 0;
    for (i64 j = 0; j < count; ++j) {
      group.ancestors[first + j] = first + j;
      killed[num_killed] = first + j;
      v[num_killed] = v[j];
      num_killed += u[j] < group.weights[first + j] ? 0 : 1;
    }
    draw(draws, v, num_killed, drawn);
    for (i64 j = 0; j < num_killed; ++j) group.ancestors[killed[j]] = drawn[j];
  }
}

// N w in whole copies and fractions, which take the place of the weights.
FG_LANE void split_shares(const Group& group, i64* copies) {
  double* weights = group.weights;
  const double scale = group.scale;
  for (i64 i = 0; i < group.n; ++i) {
    const double due = weights[i] * scale, whole = floor_positive(due);
    copies[i] = whole_number(whole);
    weights[i] = due - whole;
  }
}

// Runs of copies[i] times i; returns how many places they fill.
FG_LANE i64 expand_copies(const Group& group, const i64* copies) {
  i64 begin = 0;
  for (i64 i = 0; i < group.n; ++i) {
    const i64 end = begin + copies[i];
    write_run(group.ancestors, begin, end < group.n ? end : group.n, group.n, i);
    begin = end;
  }
  return begin;
}

FG_LANE void residual(Group& group) {
  split_shares(group, group.guide);
  const i64 kept = expand_copies(group, group.guide);
  if (kept >= group.n) return;
  i64 last = group.n - 1;
  while (last > 0 && !(group.weights[last] > 0.0)) --last;
  running_sums(group.weights, group.n, group.cdf);
  draw_first(group, prepare_draws(group, group.cdf, last), group.n - kept, group.ancestors + kept);
}

FG_LANE void ssp(Group& group) {
  i64* copies = group.guide;
  split_shares(group, copies);
  OpenFraction open = {-1, 0.0};
  double u[BATCH];
  i64 sum = 0;
  for (i64 first = 0; first < group.n; first += BATCH) {
    const i64 end = group.n - first < BATCH ? group.n : first + BATCH;
    for (i64 j = 0; j < BATCH; j += LANES)
      uniform_lanes(group, static_cast<u64>(first + j), u + j, nullptr);
    for (i64 i = first; i < end; ++i) {
      sum += copies[i];
      if (group.weights[i] == 0.0) continue;
      const i64 up = pair_fractions(open, i, group.weights[i], u[i - first]);
      if (up < 0) continue;
      ++copies[up];
      ++sum;
    }
  }
  // The fractions add up to a whole number: what is still open is 0 or 1 up to rounding.
  if (open.particle >= 0) copies[open.particle] += group.n - sum;
  expand_copies(group, copies);
}

FG_LANE void draw_ancestors(Group& group) {
  Uniforms window;
  switch (group.args.scheme) {
    case kSystematic: {
      double u[LANES];
      uniform_lanes(group, 0, u, nullptr);
      return expand_grid(group, group.cdf, group.last, group.scale, u[0], nullptr, group.ancestors);
    }
    case kStratified:
      return expand_grid(group, group.cdf, group.last, group.scale, 0.0, &window, group.ancestors);
    case kMultinomial: return multinomial(group);
    case kResidual: return residual(group);
    case kSsp: return ssp(group);
    case kKilling: return killing(group);
  }
}

// scratch [3 N]
FG_TARGET Fault resample_groups(const ResampleArgs& args, double* scratch, i64 begin, i64 end) {
  const i64 n = args.num_particles;
  // Running sums may take the place of the weights where nobody reads those afterwards.
  const bool keeps_weights = args.scheme == kResidual || args.scheme == kSsp ||
                             args.scheme == kKilling;
  Fault fault;
  for (i64 g = begin; g < end; ++g) {
    Group group = {args, g, n, scratch, keeps_weights ? scratch + n : scratch,
                   reinterpret_cast<i64*>(scratch + 2 * n), args.out_ancestors + g * n,
                   round_keys(philox_key(args.seed)), 0.0, 0.0, 0.0, 0.0, 0};
    if (!check_ids(args.chains[g], 0, 1, g, &fault)) return fault;
    fault = args.log_w.is_double ? load_group<double>(group) : load_group<float>(group);
    if (fault.code != kNoFault) return fault;
    weigh(group);
    const double size = static_cast<double>(n), ess = group.total * group.total / group.squares;
    const bool kept = args.ess_threshold >= 0.0 && !(ess < args.ess_threshold * size);
    args.out_ess[g] = ess;
    args.out_resampled[g] = kept ? 0 : 1;
    args.out_log_z[g] = kept ? 0.0 : group.top + log_double(group.total / size);
    if (kept) {
      for (i64 i = 0; i < n; ++i) group.ancestors[i] = i;
    } else {
      draw_ancestors(group);
    }
    for (i64 i = 0; i < args.num_items; ++i) {
      fault = gather(args.items[i], n, n, g * n, [&](i64 j) { return Entry{g, group.ancestors[j]}; });
      if (fault.code != kNoFault) return fault;
    }
  }
  finish_streams();
  return {};
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
