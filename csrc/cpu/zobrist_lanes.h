// Key words of eight (site, token) pairs; included once per instruction set.
namespace fastguide {
namespace FG_NAMESPACE {

FG_LANE void zobrist_lanes(const Lanes& site, const Lanes& token_low, const Lanes& token_high,
                           Key128* words) {
  const PhiloxLanes block =
      philox_lanes(site, token_low, token_high, lanes(ZOBRIST_C3), ZOBRIST_SCHEDULE);
  u64 w0[LANES], w1[LANES], w2[LANES], w3[LANES];
  store_words(block.w0, w0);
  store_words(block.w1, w1);
  store_words(block.w2, w2);
  store_words(block.w3, w3);
  for (int i = 0; i < LANES; ++i) words[i] = {w0[i] | w1[i] << 32, w2[i] | w3[i] << 32};
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
