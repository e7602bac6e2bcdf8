// Body of masked_keys, compiled once per instruction set (levels.h).
#include "zobrist_lanes.h"

namespace fastguide {
namespace FG_NAMESPACE {

FG_TARGET Fault key_rows(const i64* x, i64 row_stride, i64 site_stride, i64 length, i64* out,
                         i64 begin, i64 end) {
  for (i64 r = begin; r < end; ++r) {
    const i64* row = x + r * row_stride;
    Key128 key = {0, 0};
    for (i64 l = 0; l < length; l += LANES) {
      const int valid = static_cast<int>(length - l < LANES ? length - l : LANES);
      u32 low[LANES] = {}, high[LANES] = {};
      for (int i = 0; i < valid; ++i) {
        const u64 token = static_cast<u64>(row[(l + i) * site_stride]);
        low[i] = static_cast<u32>(token);
        high[i] = static_cast<u32>(token >> 32);
      }
      Key128 words[LANES];
      zobrist_lanes(count_from(static_cast<u64>(l)), load_words(low), load_words(high), words);
      for (int i = 0; i < valid; ++i) key = key ^ words[i];
    }
    out[2 * r] = static_cast<i64>(key.low);
    out[2 * r + 1] = static_cast<i64>(key.high);
  }
  return {};
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
