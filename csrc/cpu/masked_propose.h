// Body of masked_propose, compiled once per instruction set (levels.h).
//
// Per chain: list the masked sites; one REVEAL block per (site, four candidates), eight sites at a
// time; collect what is revealed, ordered by site; then draw the tokens and key words of a whole
// batch of reveals, eight Philox blocks at a time, with one CDF per site.
#include "masked_rows.h"
#include "zobrist_lanes.h"

namespace fastguide {
namespace FG_NAMESPACE {

// Reveals of one chain that wait for their tokens: site and candidate id of each, and `slot`, the
// number of its site among the distinct ones, which `slot_site` lists.
struct Reveals {
  explicit Reveals(i64 capacity)
      : site(capacity + LANES), id(capacity + LANES), slot(capacity + LANES), slot_site(capacity + LANES) {}

  std::vector<u32> site, id, slot, slot_site;
  i64 count = 0, num_slots = 0;
};

template <class T>
class Proposer {
 public:
  FG_TARGET Proposer(const Logits<T>& logits, const States& states, const ProposeArgs& args)
      : logits_(logits),
        states_(states),
        args_(args),
        schedule_(round_keys(philox_key(args.seed))),
        threshold_(reveal_threshold(args.rho)),
        capacity_(LANES * args.num_candidates > MIN_BATCH ? LANES * args.num_candidates : MIN_BATCH),
        cdf_slots_(CDF_DOUBLES / logits.vocab_size > 1 ? CDF_DOUBLES / logits.vocab_size : 1),
        row_(states.length + LANES),
        sites_(states.length + LANES),
        masks_(args.num_candidates),
        reveals_(capacity_),
        u_(capacity_ + LANES),
        token_(capacity_ + LANES),
        mask_words_(capacity_ + LANES),
        cdf_(cdf_slots_ * logits.vocab_size),
        last_(cdf_slots_) {}

  FG_TARGET Fault run(i64 begin, i64 end) {
    for (i64 n = begin; n < end; ++n) {
      Fault fault;
      if (!propose(n, &fault)) return fault;
    }
    return {};
  }

 private:
  static constexpr i64 MIN_BATCH = 512;
  static constexpr i64 CDF_DOUBLES = 2048;

  FG_TARGET bool propose(i64 n, Fault* fault) {
    const i64 num_candidates = args_.num_candidates, length = states_.length;
    first_ = args_.first_candidate == nullptr ? 0 : args_.first_candidate[n];
    chain_ = args_.chains[n];
    if (!check_ids(chain_, first_, num_candidates, n, fault)) return false;
    logits_row_ = logits_of(logits_, n, fault);
    if (logits_row_ == nullptr) return false;
    const i64 num_masked =
        scan_row(states_, n, logits_.vocab_size, row_.data(), sites_.data(), fault);
    if (num_masked < 0) return false;

    tokens_ = args_.out_tokens + n * num_candidates * length;
    keys_ = args_.out_keys + n * num_candidates * 2;
    changed_ = args_.out_changed + n * num_candidates;
    for (i64 k = 0; k < num_candidates; ++k) {
      std::memcpy(tokens_ + k * length, row_.data(), static_cast<size_t>(length) * sizeof(i64));
      keys_[2 * k] = args_.keys[2 * n];
      keys_[2 * k + 1] = args_.keys[2 * n + 1];
      changed_[k] = 0;
    }
    for (i64 b = 0; b < num_masked; b += LANES) {
      reveal_block(b, num_masked - b < LANES ? num_masked - b : LANES);
      if (reveals_.count + LANES * num_candidates > capacity_ && !flush(n, fault)) return false;
    }
    return flush(n, fault);
  }

  // Appends what the candidates reveal among sites_[b], ..., sites_[b + valid - 1].
  FG_TARGET void reveal_block(i64 b, i64 valid) {
    const u32 in_row = (1u << valid) - 1;
    const i64 num_candidates = args_.num_candidates;
    const Lanes site = load_words(sites_.data() + b), chain = lanes(static_cast<u64>(chain_));
    const Lanes c3 = lanes(args_.step << 8 | REVEAL);
    u32 any = 0;
    for (i64 group = first_ / 4; group * 4 < first_ + num_candidates; ++group) {
      const PhiloxLanes block = philox_lanes(site, lanes(static_cast<u64>(group)), chain, c3, schedule_);
      const u32 below[4] = {
          lanes_below(block.w0, threshold_) & in_row, lanes_below(block.w1, threshold_) & in_row,
          lanes_below(block.w2, threshold_) & in_row, lanes_below(block.w3, threshold_) & in_row};
      for (i64 word = 0; word < 4; ++word) {
        const i64 k = 4 * group + word - first_;
        if (k < 0 || k >= num_candidates) continue;
        masks_[static_cast<size_t>(k)] = below[word];
        any |= below[word];
      }
    }
    // Appends without branching on each candidate: written always, counted if revealed.
    u32* const waiting_site = reveals_.site.data();
    u32* const waiting_id = reveals_.id.data();
    u32* const waiting_slot = reveals_.slot.data();
    i64 count = reveals_.count;
    for (int i = 0; i < SET_BITS.count[any]; ++i) {
      const u32 lane = SET_BITS.bytes[any][i];
      const u32 revealed = sites_[static_cast<size_t>(b + lane)];
      for (i64 k = 0; k < num_candidates; ++k) {
        waiting_site[count] = revealed;
        waiting_id[count] = static_cast<u32>(first_ + k);
        waiting_slot[count] = static_cast<u32>(reveals_.num_slots);
        count += masks_[static_cast<size_t>(k)] >> lane & 1;
      }
      reveals_.slot_site[static_cast<size_t>(reveals_.num_slots++)] = revealed;
    }
    reveals_.count = count;
  }

  // Draws the tokens of the waiting reveals and writes them with their keys.
  FG_TARGET bool flush(i64 n, Fault* fault) {
    draw_uniforms();
    i64 e = 0;
    for (i64 slot = 0; slot < reveals_.num_slots; slot += cdf_slots_) {
      const i64 left = reveals_.num_slots - slot;
      const i64 count = left < cdf_slots_ ? left : cdf_slots_;
      if (!token_cdfs(logits_, logits_row_, n, reveals_.slot_site.data() + slot, count, cdf_.data(),
                      last_.data(), fault))
        return false;
      for (; e < reveals_.count && reveals_.slot[static_cast<size_t>(e)] < slot + count; ++e) {
        const size_t i = static_cast<size_t>(e);
        const i64 j = reveals_.slot[i] - slot;
        token_[i] = static_cast<u32>(pick(cdf_.data() + j * logits_.vocab_size, logits_.vocab_size,
                                          last_[static_cast<size_t>(j)], u_[i]));
      }
    }
    write();
    reveals_.count = reveals_.num_slots = 0;
    return true;
  }

  FG_TARGET void draw_uniforms() {
    const Lanes chain = lanes(static_cast<u64>(chain_)), c3 = lanes(args_.step << 8 | TOKEN);
    for (i64 e = 0; e < reveals_.count; e += LANES) {
      const PhiloxLanes block = philox_lanes(load_words(reveals_.site.data() + e),
                                             load_words(reveals_.id.data() + e), chain, c3, schedule_);
      u64 w0[LANES], w1[LANES];
      store_words(block.w0, w0);
      store_words(block.w1, w1);
      for (int i = 0; i < LANES; ++i) u_[static_cast<size_t>(e + i)] = uniform53(w0[i], w1[i]);
    }
  }

  FG_TARGET void write() {
    const u64 mask = static_cast<u64>(states_.mask_token);
    const Lanes mask_low = lanes(mask & 0xFFFFFFFFu), mask_high = lanes(mask >> 32);
    for (i64 j = 0; j < reveals_.num_slots; j += LANES)
      store_keys(zobrist_lanes(load_words(reveals_.slot_site.data() + j), mask_low, mask_high),
                 mask_words_.data() + j);
    for (i64 e = 0; e < reveals_.count; e += LANES) {
      Key128 words[LANES];
      store_keys(zobrist_lanes(load_words(reveals_.site.data() + e),
                               load_words(token_.data() + e), lanes(0)),
                 words);
      const i64 left = reveals_.count - e;
      for (i64 i = 0; i < (left < LANES ? left : LANES); ++i) {
        const size_t at = static_cast<size_t>(e + i);
        const i64 k = reveals_.id[at] - first_;
        const Key128 change = words[i] ^ mask_words_[reveals_.slot[at]];
        tokens_[k * states_.length + reveals_.site[at]] = token_[at];
        keys_[2 * k] ^= static_cast<i64>(change.low);
        keys_[2 * k + 1] ^= static_cast<i64>(change.high);
        ++changed_[k];
      }
    }
  }

  const Logits<T>& logits_;
  const States& states_;
  const ProposeArgs& args_;
  const RoundKeys schedule_;
  const u64 threshold_;
  const i64 capacity_, cdf_slots_;

  // The chain at hand.
  i64 first_ = 0, chain_ = 0;
  const T* logits_row_ = nullptr;
  i64* tokens_ = nullptr;
  i64* keys_ = nullptr;
  i32* changed_ = nullptr;

  // Scratch, reused from chain to chain.
  std::vector<i64> row_;        // [L], and room for LANES more
  std::vector<u32> sites_;      // the masked sites
  std::vector<u32> masks_;      // [K], bit i: reveals lane i of the block
  Reveals reveals_;
  std::vector<double> u_;
  std::vector<u32> token_;
  std::vector<Key128> mask_words_;  // of each slot
  std::vector<double> cdf_;         // [cdf_slots, V]
  std::vector<i64> last_;
};

template <class T>
FG_TARGET Fault propose_rows(const Logits<T>& logits, const States& states, const ProposeArgs& args,
                             i64 begin, i64 end) {
  return Proposer<T>(logits, states, args).run(begin, end);
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
