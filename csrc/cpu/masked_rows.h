// What masked_propose and masked_posterior do alike; included once per instruction set.
namespace fastguide {
namespace FG_NAMESPACE {

// Copies row n of the states to `row` [L], lists its masked sites in `sites`, and returns their
// number; -1 and a fault if a token is neither the mask nor in [0, V).
FG_LANE i64 scan_row(const States& states, i64 n, i64 vocab_size, i64* row, u32* sites,
                     Fault* fault) {
  const i64* x = states.x + n * states.row_stride;
  const i64 mask = states.mask_token;
  if (states.site_stride == 1) {
    std::memcpy(row, x, static_cast<size_t>(states.length) * sizeof(i64));
  } else {
    for (i64 l = 0; l < states.length; ++l) row[l] = x[l * states.site_stride];
  }
  i64 count = 0;
  for (i64 l = 0; l < states.length; ++l) {
    sites[count] = static_cast<u32>(l);
    count += row[l] == mask;
  }
  bool bad = false;
  for (i64 l = 0; l < states.length; ++l)
    bad |= (row[l] != mask) & ((row[l] < 0) | (row[l] >= vocab_size));
  if (!bad) return count;
  for (i64 l = 0; l < states.length; ++l) {
    if (row[l] == mask || (row[l] >= 0 && row[l] < vocab_size)) continue;
    *fault = {kTokenFault, n, l, row[l]};
    break;
  }
  return -1;
}

// The logits of state n at site 0; null and a fault if its index is out of range.
template <class T>
FG_LANE const T* logits_of(const Logits<T>& logits, i64 n, Fault* fault) {
  const i64 u = logits.index == nullptr ? n : logits.index[n];
  if (u >= 0 && u < logits.num_rows) return logits.data + u * logits.row_stride;
  *fault = {kIndexFault, n, -1, u};
  return nullptr;
}

// cdf [count, V]: running sums of exp((logit - max) / temperature) at each of `sites` [count];
// last [count]: the last token of positive weight. Returns false and a fault for bad logits.
template <class T>
FG_LANE bool token_cdfs(const Logits<T>& logits, const T* row, i64 n, const u32* sites, i64 count,
                        double* cdf, i64* last, Fault* fault) {
  const i64 vocab_size = logits.vocab_size;
  for (i64 j = 0; j < count; ++j) {
    const T* site = row + sites[j] * logits.site_stride;
    double top;
    const i32 code = largest_logit(site, logits.token_stride, vocab_size, &top);
    if (code != kNoFault) {
      *fault = {code, n, sites[j], 0};
      return false;
    }
    double* out = cdf + j * vocab_size;
    for (i64 v = 0; v < vocab_size; ++v)
      out[v] = static_cast<double>(site[v * logits.token_stride]) - top;
  }
  if (logits.temperature != 1.0)
    for (i64 i = 0; i < count * vocab_size; ++i) cdf[i] /= logits.temperature;
  for (i64 i = 0; i < count * vocab_size; ++i) cdf[i] = exp_double(cdf[i]);
  for (i64 j = 0; j < count; ++j) last[j] = cumulate(cdf + j * vocab_size, vocab_size);
  return true;
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
