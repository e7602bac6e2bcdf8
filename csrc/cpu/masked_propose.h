// Body of masked_propose, compiled once per instruction set (levels.h).
//
// Per chain: list the masked sites, and run one REVEAL block per (site, four candidates), eight sites
// at a time, copying the parent to its candidates in between (the copies wait for memory, the blocks
// for arithmetic). What is revealed waits, while its logits are fetched, until a batch of some
// hundred over several chains is full; then the tokens and key words of the batch are drawn, eight
// blocks at a time, with one CDF per (chain, site).
#include "masked_rows.h"
#include "token_draws.h"
#include "zobrist_lanes.h"

namespace fastguide {
namespace FG_NAMESPACE {

// Reveals that wait for their tokens. A slot is a distinct (row, site) among them: candidates that
// reveal the same site share its CDF.
template <class T>
struct Reveals {
  explicit Reveals(i64 capacity)
      : slot_and_k(capacity + LANES),
        slot_site(capacity + LANES),
        slot_chain(capacity + LANES),
        slot_first(capacity + LANES),
        slot_row(capacity + LANES),
        slot_logits(capacity + LANES),
        site(capacity + LANES),
        id(capacity + LANES),
        chain(capacity + LANES),
        token(capacity + LANES),
        u(capacity + LANES),
        mask_word(capacity + LANES) {}

  std::vector<u64> slot_and_k;                           // slot << 32 | candidate, slots ascending
  std::vector<u32> slot_site, slot_chain, slot_first;    // first: candidate id of k = 0
  std::vector<i64> slot_row;
  std::vector<const T*> slot_logits;                     // [V]
  i64 count = 0, num_slots = 0;

  // Made by the flush.
  std::vector<u32> site, id, chain;  // counter words of the TOKEN draw
  std::vector<u32> token;
  std::vector<double> u;
  std::vector<Key128> mask_word;     // of each slot

  i64 slot(i64 e) const { return static_cast<i64>(slot_and_k[static_cast<size_t>(e)] >> 32); }
  i64 candidate(i64 e) const {
    return static_cast<i64>(slot_and_k[static_cast<size_t>(e)] & 0xFFFFFFFFu);
  }
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
        row_(states.length + LANES),
        sites_(states.length + LANES),
        masks_(args.num_candidates),
        reveals_(capacity_),
        draws_(logits, CDF_DOUBLES) {}

  FG_TARGET Fault run(i64 begin, i64 end) {
    Fault waiting, fault;
    for (i64 n = begin; n < end; ++n) {
      if (propose(n, &fault)) continue;
      // Rows before n may still wait; a fault of theirs comes first.
      return flush(&waiting) ? fault : waiting;
    }
    flush(&fault);
    return fault;
  }

 private:
  static constexpr i64 MIN_BATCH = 384;
  static constexpr i64 CDF_DOUBLES = 2048;
  static constexpr i64 TOKENS_PER_LINE = 8;

  FG_TARGET bool propose(i64 n, Fault* fault) {
    const i64 num_candidates = args_.num_candidates;
    first_ = args_.first_candidate == nullptr ? 0 : args_.first_candidate[n];
    chain_ = args_.chains[n];
    if (!check_ids(chain_, first_, num_candidates, n, fault)) return false;
    const T* logits_row;
    if (!find_logits(logits_, n, &logits_row, fault)) return false;
    const i64 num_masked =
        scan_row(states_, n, logits_.vocab_size, row_.data(), sites_.data(), fault);
    if (num_masked < 0) return false;

    const i64 num_blocks = (num_masked + LANES - 1) / LANES;
    const i64 copies_per_block = num_blocks > 0 ? (num_candidates + num_blocks - 1) / num_blocks : 0;
    i64 copied = 0;
    for (i64 b = 0; b < num_masked; b += LANES) {
      if (reveals_.count + LANES * num_candidates > capacity_) {
        copied = copy_parent(n, copied, num_candidates);
        if (!flush(fault)) return false;
      }
      reveal_block(n, logits_row, b, num_masked - b < LANES ? num_masked - b : LANES);
      copied = copy_parent(n, copied, copied + copies_per_block);
    }
    copy_parent(n, copied, num_candidates);
    return true;
  }

  // Copies row n to its candidates from `k` to before `end`, and returns `end`. The same places of the
  // next row are fetched, which is where the time of a large batch would go.
  FG_TARGET i64 copy_parent(i64 n, i64 k, i64 end) {
    const i64 num_candidates = args_.num_candidates, length = states_.length;
    if (end > num_candidates) end = num_candidates;
    for (; k < end; ++k) {
      const i64 at = n * num_candidates + k;
      copy_tokens(args_.out_tokens + at * length, row_.data(), length);
      args_.out_keys[2 * at] = args_.keys[2 * n];
      args_.out_keys[2 * at + 1] = args_.keys[2 * n + 1];
      args_.out_changed[at] = 0;
      if (n + 1 == states_.num_rows) continue;
      const i64* next = args_.out_tokens + (at + num_candidates) * length;
      for (i64 l = 0; l < length; l += TOKENS_PER_LINE) FG_PREFETCH_OUTPUT(next + l);
    }
    return end;
  }

  // Appends what the candidates reveal among sites_[b], ..., sites_[b + valid - 1].
  FG_TARGET void reveal_block(i64 n, const T* logits_row, i64 b, i64 valid) {
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
    for (int i = 0; i < SET_BITS.count[any]; ++i) {
      const u32 lane = SET_BITS.bytes[any][i];
      append(n, logits_row, sites_[static_cast<size_t>(b + lane)], lane);
    }
  }

  // Appends the candidates whose mask has the bit `lane`, without branching on each: written always,
  // counted if revealed.
  FG_TARGET void append(i64 n, const T* logits_row, u32 site, u32 lane) {
    const size_t slot = static_cast<size_t>(reveals_.num_slots++);
    const T* logits = site_logits(logits_, logits_row, n, states_.length, site);
    FG_PREFETCH(logits);
    reveals_.slot_site[slot] = site;
    reveals_.slot_chain[slot] = static_cast<u32>(chain_);
    reveals_.slot_first[slot] = static_cast<u32>(first_);
    reveals_.slot_row[slot] = n;
    reveals_.slot_logits[slot] = logits;
    u64* const entries = reveals_.slot_and_k.data();
    const u32* const masks = masks_.data();
    const i64 num_candidates = args_.num_candidates;
    i64 count = reveals_.count;
    for (i64 k = 0; k < num_candidates; ++k) {
      entries[count] = static_cast<u64>(slot) << 32 | static_cast<u64>(k);
      count += masks[k] >> lane & 1;
    }
    reveals_.count = count;
  }

  // Draws the tokens of the waiting reveals and writes them with their keys.
  FG_TARGET bool flush(Fault* fault) {
    draw_uniforms();
    i64 e = 0;
    for (i64 slot = 0; slot < reveals_.num_slots; slot += draws_.batch()) {
      const i64 left = reveals_.num_slots - slot;
      const i64 count = left < draws_.batch() ? left : draws_.batch();
      i64 end = e;
      while (end < reveals_.count && reveals_.slot(end) < slot + count) ++end;
      i32 code;
      const i64 good = draws_.read(reveals_.slot_logits.data() + slot, count, end - e, &code);
      if (good < count) {
        const size_t at = static_cast<size_t>(slot + good);
        *fault = site_fault(logits_, code, reveals_.slot_row[at], states_.length,
                            reveals_.slot_site[at]);
        return false;
      }
      for (; e < end; ++e) {
        const size_t at = static_cast<size_t>(e);
        reveals_.token[at] =
            static_cast<u32>(draws_.draw(reveals_.slot(e) - slot, reveals_.u[at]));
      }
    }
    write();
    reveals_.count = reveals_.num_slots = 0;
    return true;
  }

  FG_TARGET void draw_uniforms() {
    for (i64 e = 0; e < reveals_.count; ++e) {
      const size_t at = static_cast<size_t>(e), slot = static_cast<size_t>(reveals_.slot(e));
      reveals_.site[at] = reveals_.slot_site[slot];
      reveals_.id[at] = reveals_.slot_first[slot] + static_cast<u32>(reveals_.candidate(e));
      reveals_.chain[at] = reveals_.slot_chain[slot];
    }
    const Lanes c3 = lanes(args_.step << 8 | TOKEN);
    for (i64 e = 0; e < reveals_.count; e += LANES) {
      const PhiloxLanes block =
          philox_lanes(load_words(reveals_.site.data() + e), load_words(reveals_.id.data() + e),
                       load_words(reveals_.chain.data() + e), c3, schedule_);
      u64 w0[LANES], w1[LANES];
      store_words(block.w0, w0);
      store_words(block.w1, w1);
      double* const u = reveals_.u.data() + e;
      for (int i = 0; i < LANES; ++i) u[i] = uniform53(w0[i], w1[i]);
    }
  }

  FG_TARGET void write() {
    const u64 mask = static_cast<u64>(states_.mask_token);
    const Lanes mask_low = lanes(mask & 0xFFFFFFFFu), mask_high = lanes(mask >> 32);
    for (i64 j = 0; j < reveals_.num_slots; j += LANES)
      store_keys(zobrist_lanes(load_words(reveals_.slot_site.data() + j), mask_low, mask_high),
                 reveals_.mask_word.data() + j);
    for (i64 e = 0; e < reveals_.count; e += LANES) {
      Key128 words[LANES];
      store_keys(zobrist_lanes(load_words(reveals_.site.data() + e),
                               load_words(reveals_.token.data() + e), lanes(0)),
                 words);
      const i64 left = reveals_.count - e;
      for (i64 i = 0; i < (left < LANES ? left : LANES); ++i) {
        const size_t at = static_cast<size_t>(e + i), slot = static_cast<size_t>(reveals_.slot(e + i));
        const i64 row = reveals_.slot_row[slot] * args_.num_candidates + reveals_.candidate(e + i);
        const Key128 change = words[i] ^ reveals_.mask_word[slot];
        args_.out_tokens[row * states_.length + reveals_.site[at]] = reveals_.token[at];
        args_.out_keys[2 * row] ^= static_cast<i64>(change.low);
        args_.out_keys[2 * row + 1] ^= static_cast<i64>(change.high);
        ++args_.out_changed[row];
      }
    }
  }

  const Logits<T>& logits_;
  const States& states_;
  const ProposeArgs& args_;
  const RoundKeys schedule_;
  const u64 threshold_;
  const i64 capacity_;

  // The chain at hand.
  i64 first_ = 0, chain_ = 0;

  // Scratch, reused from batch to batch.
  std::vector<i64> row_;        // [L], and room for LANES more
  std::vector<u32> sites_;      // the masked sites
  std::vector<u32> masks_;      // [K], bit i: reveals lane i of the block
  Reveals<T> reveals_;
  TokenDraws<T> draws_;
};

template <class T>
FG_TARGET Fault propose_rows(const Logits<T>& logits, const States& states, const ProposeArgs& args,
                             i64 begin, i64 end) {
  return Proposer<T>(logits, states, args).run(begin, end);
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
