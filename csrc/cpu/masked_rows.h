// What masked_propose and masked_posterior do alike; included once per instruction set.
namespace fastguide {
namespace FG_NAMESPACE {

// Lists in `sites` where row [L] holds the mask, and returns how many there are; `bad` is set if
// another entry is no token in [0, V). `row` and `sites` have room for LANES more entries.
#if FG_LEVEL > 0

FG_LANE i64 list_masked(const i64* row, i64 length, i64 mask, i64 vocab_size, u32* sites,
                        bool* bad) {
  i64 count = 0;
  u32 wrong = 0;
  for (i64 l = 0; l < length; l += LANES) {
    const u32 valid = length - l < LANES ? (1u << (length - l)) - 1 : 0xFFu;
    u32 is_mask, is_token;
    classify_tokens(row + l, mask, vocab_size, &is_mask, &is_token);
    is_mask &= valid;
    wrong |= valid & ~(is_mask | is_token);
    const __m128i offsets = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(SET_BITS.bytes[is_mask]));
    const __m256i listed =
        _mm256_add_epi32(_mm256_cvtepu8_epi32(offsets), _mm256_set1_epi32(static_cast<int>(l)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sites + count), listed);
    count += SET_BITS.count[is_mask];
  }
  *bad = wrong != 0;
  return count;
}

#else

FG_LANE i64 list_masked(const i64* row, i64 length, i64 mask, i64 vocab_size, u32* sites,
                        bool* bad) {
  i64 count = 0;
  for (i64 l = 0; l < length; ++l) {
    sites[count] = static_cast<u32>(l);
    count += row[l] == mask;
  }
  bool wrong = false;
  for (i64 l = 0; l < length; ++l)
    wrong |= (row[l] != mask) & ((row[l] < 0) | (row[l] >= vocab_size));
  *bad = wrong;
  return count;
}

#endif

// Empty rows may have no address, which memcpy must not see.
FG_LANE void copy_tokens(i64* target, const i64* source, i64 count) {
  if (count > 0) std::memcpy(target, source, static_cast<size_t>(count) * sizeof(i64));
}

// Copies row n of the states to `row`, lists its masked sites in `sites`, and returns their number;
// -1 and a fault if a token is neither the mask nor in [0, V).
FG_LANE i64 scan_row(const States& states, i64 n, i64 vocab_size, i64* row, u32* sites,
                     Fault* fault) {
  const i64* x = states.x + n * states.row_stride;
  const i64 mask = states.mask_token;
  if (states.site_stride == 1) {
    copy_tokens(row, x, states.length);
  } else {
    for (i64 l = 0; l < states.length; ++l) row[l] = x[l * states.site_stride];
  }
  bool bad;
  const i64 count = list_masked(row, states.length, mask, vocab_size, sites, &bad);
  if (!bad) return count;
  for (i64 l = 0; l < states.length; ++l) {
    if (row[l] == mask || (row[l] >= 0 && row[l] < vocab_size)) continue;
    *fault = {kTokenFault, n, l, row[l]};
    break;
  }
  return -1;
}

// Points `row` at the logits of state n; false and a fault if its index is out of range. With an
// index per site, `row` is the start of the logits.
template <class T>
FG_LANE bool find_logits(const Logits<T>& logits, i64 n, const T** row, Fault* fault) {
  if (logits.per_site) {
    *row = logits.data;
    return true;
  }
  const i64 u = logits.index == nullptr ? n : logits.index[n];
  if (u < 0 || u >= logits.num_rows) {
    *fault = {kIndexFault, n, -1, u};
    return false;
  }
  *row = logits.data + u * logits.row_stride;
  return true;
}

// The logits [V] of a site of state n, whose `row` is from `find_logits`; null if the site's own
// index is out of range.
template <class T>
FG_LANE const T* site_logits(const Logits<T>& logits, const T* row, i64 n, i64 length, i64 site) {
  if (!logits.per_site) return row + site * logits.site_stride;
  const i64 u = logits.index[n * length + site];
  return u < 0 || u >= logits.num_rows ? nullptr : row + u * logits.row_stride;
}

// The fault of a site of state n: of its index if that is what is wrong.
template <class T>
FG_LANE Fault site_fault(const Logits<T>& logits, i32 code, i64 n, i64 length, i64 site) {
  return {code, n, site, code == kIndexFault ? logits.index[n * length + site] : 0};
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
