// Key words of eight (site, token) pairs; included once per instruction set.
namespace fastguide {
namespace FG_NAMESPACE {

constexpr RoundKeys ZOBRIST_SCHEDULE = round_keys(ZOBRIST_KEY);

struct KeyLanes {
  Lanes low, high;
};

FG_LANE KeyLanes zobrist_lanes(const Lanes& site, const Lanes& token_low, const Lanes& token_high) {
  const PhiloxLanes block =
      philox_lanes(site, token_low, token_high, lanes(ZOBRIST_C3), ZOBRIST_SCHEDULE);
  return {join_words(block.w0, block.w1), join_words(block.w2, block.w3)};
}

FG_LANE void store_keys(const KeyLanes& keys, Key128* words) {
  u64 low[LANES], high[LANES];
  store_wide(keys.low, low);
  store_wide(keys.high, high);
  for (int i = 0; i < LANES; ++i) words[i] = {low[i], high[i]};
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
