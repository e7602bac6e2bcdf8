// Body of masked_keys, compiled once per instruction set (levels.h).
#include "zobrist_lanes.h"

namespace fastguide {
namespace FG_NAMESPACE {

FG_LANE KeyLanes key_words(i64 first_site, const i64* tokens) {
  const Lanes token = load_wide(tokens);
  return zobrist_lanes(count_from(static_cast<u64>(first_site)), token, high_words(token));
}

FG_LANE Key128 key_of(const i64* row, i64 site_stride, i64 length) {
  KeyLanes sum = {lanes(0), lanes(0)};
  i64 l = 0;
  for (; l + LANES <= length; l += LANES) {
    i64 strided[LANES];
    const i64* tokens = row + l;
    if (site_stride != 1) {
      for (i64 i = 0; i < LANES; ++i) strided[i] = row[(l + i) * site_stride];
      tokens = strided;
    }
    const KeyLanes words = key_words(l, tokens);
    sum = {sum.low ^ words.low, sum.high ^ words.high};
  }
  Key128 parts[LANES];
  store_keys(sum, parts);
  Key128 key = {0, 0};
  for (int i = 0; i < LANES; ++i) key = key ^ parts[i];
  if (l == length) return key;
  i64 tail[LANES] = {};
  for (i64 i = 0; l + i < length; ++i) tail[i] = row[(l + i) * site_stride];
  store_keys(key_words(l, tail), parts);
  for (i64 i = 0; l + i < length; ++i) key = key ^ parts[i];
  return key;
}

FG_TARGET Fault key_rows(const i64* x, i64 row_stride, i64 site_stride, i64 length, i64* out,
                         i64 begin, i64 end) {
  for (i64 r = begin; r < end; ++r) {
    const Key128 key = key_of(x + r * row_stride, site_stride, length);
    out[2 * r] = static_cast<i64>(key.low);
    out[2 * r + 1] = static_cast<i64>(key.high);
  }
  return {};
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
