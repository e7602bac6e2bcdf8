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
// SUM_BLOCK sets. Eight blocks side by side keep eight additions in flight.
FG_LANE void running_sums(const double* values, i64 n, double* cdf) {
  i64 begin = 0;
  double before = 0.0;
  for (; begin + LANES * SUM_BLOCK <= n; begin += LANES * SUM_BLOCK) {
    double sum[LANES] = {};
    for (i64 i = begin; i < begin + SUM_BLOCK; ++i) {
      for (int j = 0; j < LANES; ++j) {
        sum[j] += values[i + j * SUM_BLOCK];
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
      cdf[i] = before + sum;
    }
    before += sum;
    begin = end;
  }
}

// Weights, their running sums and what follows from them.
FG_LANE void weigh(Group& group) {
  double squares[LANES] = {};
  double* weights = group.weights;
  i64 i = 0;
  for (; i + LANES <= group.n; i += LANES) {
    for (int j = 0; j < LANES; ++j) {
      const double weight = exp_double(weights[i + j] - group.top);
      weights[i + j] = weight;
      squares[j] += weight * weight;
    }
  }
  for (; i < group.n; ++i) {
    weights[i] = exp_double(weights[i] - group.top);
    squares[0] += weights[i] * weights[i];
  }
  group.last = group.n - 1;
  while (!(weights[group.last] > 0.0)) --group.last;
  running_sums(weights, group.n, group.cdf);
  group.total = group.cdf[group.n - 1];
  group.squares = 0.0;
  for (int j = 0; j < LANES; ++j) group.squares += squares[j];
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

// First i with cdf[i] > u * total, clamped to `last`, as `pick` finds it.
FG_LANE i64 draw(const Draws& draws, double u) {
  const double target = u * draws.total;
  const i64 cell = static_cast<i64>(u * static_cast<double>(draws.n));
  i64 i = draws.guide[cell < draws.n ? cell : draws.n - 1];
  while (i > 0 && draws.cdf[i - 1] > target) --i;
  while (i < draws.last && draws.cdf[i] <= target) ++i;
  return i;
}

FG_LANE void multinomial(Group& group) {
  const Draws draws = prepare_draws(group, group.cdf, group.last);
  Uniforms window;
  for (i64 i = 0; i < group.n; ++i)
    group.ancestors[i] = draw(draws, uniform_at(group, window, i));
}

FG_LANE void killing(Group& group) {
  const Draws draws = prepare_draws(group, group.cdf, group.last);
  double u[LANES], v[LANES];
  for (i64 first = 0; first < group.n; first += LANES) {
    uniform_lanes(group, static_cast<u64>(first), u, v);
    for (i64 i = first; i < group.n && i < first + LANES; ++i)
      group.ancestors[i] = u[i - first] < group.weights[i] ? i : draw(draws, v[i - first]);
  }
}

FG_LANE void residual(Group& group) {
  i64 begin = 0, last = 0;
  for (i64 i = 0; i < group.n; ++i) {
    const double due = group.weights[i] * group.scale;
    const double copies = floor_positive(due);
    group.weights[i] = due - copies;
    last = group.weights[i] > 0.0 ? i : last;
    const i64 end = begin + whole_number(copies);
    write_run(group.ancestors, begin, end < group.n ? end : group.n, group.n, i);
    begin = end;
  }
  if (begin >= group.n) return;
  running_sums(group.weights, group.n, group.cdf);
  const Draws draws = prepare_draws(group, group.cdf, last);
  Uniforms window;
  for (i64 i = begin; i < group.n; ++i)
    group.ancestors[i] = draw(draws, uniform_at(group, window, i - begin));
}

FG_LANE void ssp(Group& group) {
  i64* counts = group.guide;
  OpenFraction open = {-1, 0.0};
  Uniforms window;
  i64 sum = 0;
  for (i64 i = 0; i < group.n; ++i) {
    const double due = group.weights[i] * group.scale;
    const double copies = floor_positive(due);
    counts[i] = whole_number(copies);
    sum += counts[i];
    if (due == copies) continue;
    const i64 up = pair_fractions(open, i, due - copies, uniform_at(group, window, i));
    if (up < 0) continue;
    ++counts[up];
    ++sum;
  }
  // The fractions add up to a whole number: what is still open is 0 or 1 up to rounding.
  if (open.particle >= 0) counts[open.particle] += group.n - sum;
  i64 begin = 0;
  for (i64 i = 0; i < group.n; ++i) {
    const i64 end = begin + counts[i];
    write_run(group.ancestors, begin, end < group.n ? end : group.n, group.n, i);
    begin = end;
  }
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
    for (i64 item = 0; item < args.num_items; ++item)
      for (i64 i = 0; i < n; ++i)
        if (!gather(args.items[item], g, n, group.ancestors[i], g * n + i, &fault)) return fault;
  }
  return {};
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
