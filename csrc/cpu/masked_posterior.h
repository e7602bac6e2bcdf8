// Body of masked_posterior, compiled once per instruction set (levels.h).
#include "masked_rows.h"
#include "token_draws.h"

namespace fastguide {
namespace FG_NAMESPACE {

template <class T>
class Predictor {
 public:
  FG_TARGET Predictor(const Logits<T>& logits, const States& states, const PosteriorArgs& args)
      : logits_(logits),
        states_(states),
        args_(args),
        schedule_(round_keys(philox_key(args.seed))),
        row_(states.length + LANES),
        sites_(states.length + LANES),
        draws_(logits, CDF_DOUBLES),
        site_logits_(draws_.batch()) {}

  FG_TARGET Fault run(i64 begin, i64 end) {
    for (i64 n = begin; n < end; ++n) {
      Fault fault;
      if (!predict(n, &fault)) return fault;
    }
    return {};
  }

 private:
  static constexpr i64 CDF_DOUBLES = 4096;

  FG_TARGET bool predict(i64 n, Fault* fault) {
    const T* logits_row;
    if (!find_logits(logits_, n, &logits_row, fault)) return false;
    const i64 num_masked =
        scan_row(states_, n, logits_.vocab_size, row_.data(), sites_.data(), fault);
    if (num_masked < 0) return false;
    const i64 copies = args_.num_samples > 0 ? args_.num_samples : 1;
    i64* out = args_.out + n * copies * states_.length;
    for (i64 s = 0; s < copies; ++s)
      copy_tokens(out + s * states_.length, row_.data(), states_.length);
    if (args_.num_samples == 0) return fill_mode(logits_row, n, num_masked, out, fault);
    for (i64 b = 0; b < num_masked; b += draws_.batch()) {
      const i64 count = num_masked - b < draws_.batch() ? num_masked - b : draws_.batch();
      for (i64 j = 0; j < count; ++j)
        site_logits_[static_cast<size_t>(j)] =
            site_logits(logits_, logits_row, n, states_.length, sites_[static_cast<size_t>(b + j)]);
      i32 code;
      const i64 good = draws_.read(site_logits_.data(), count, count * args_.num_samples, &code);
      if (good < count) {
        *fault = site_fault(logits_, code, n, states_.length, sites_[static_cast<size_t>(b + good)]);
        return false;
      }
      for (i64 s = 0; s < args_.num_samples; ++s)
        fill_sample(n, static_cast<u32>(s), b, count, out + s * states_.length);
    }
    return true;
  }

  FG_TARGET bool fill_mode(const T* logits_row, i64 n, i64 num_masked, i64* out, Fault* fault) {
    for (i64 j = 0; j < num_masked; ++j) {
      const u32 site = sites_[static_cast<size_t>(j)];
      const T* at = site_logits(logits_, logits_row, n, states_.length, site);
      const i32 code = at == nullptr ? static_cast<i32>(kIndexFault)
                                     : first_maximum(at, logits_.token_stride, logits_.vocab_size,
                                                     out + site);
      if (code == kNoFault) continue;
      *fault = site_fault(logits_, code, n, states_.length, site);
      return false;
    }
    return true;
  }

  // Draws sites_[b], ..., sites_[b + count - 1] of sample s.
  FG_TARGET void fill_sample(i64 n, u32 s, i64 b, i64 count, i64* out) {
    const StateCounter state = state_counter(static_cast<u64>(args_.keys[2 * n]), args_.purpose);
    for (i64 j = 0; j < count; j += LANES) {
      const PhiloxLanes block = philox_lanes(load_words(sites_.data() + b + j), lanes(s),
                                             lanes(state.c2), lanes(state.c3), schedule_);
      u64 w0[LANES], w1[LANES];
      store_words(block.w0, w0);
      store_words(block.w1, w1);
      for (i64 i = 0; i < (count - j < LANES ? count - j : LANES); ++i) {
        const size_t at = static_cast<size_t>(j + i);
        out[sites_[static_cast<size_t>(b) + at]] =
            draws_.draw(j + i, uniform53(w0[i], w1[i]));
      }
    }
  }

  const Logits<T>& logits_;
  const States& states_;
  const PosteriorArgs& args_;
  const RoundKeys schedule_;

  // Scratch, reused from row to row.
  std::vector<i64> row_;     // [L], and room for LANES more
  std::vector<u32> sites_;   // the masked sites
  TokenDraws<T> draws_;
  std::vector<const T*> site_logits_;  // [batch], each [V]
};

template <class T>
FG_TARGET Fault predict_rows(const Logits<T>& logits, const States& states,
                             const PosteriorArgs& args, i64 begin, i64 end) {
  return Predictor<T>(logits, states, args).run(begin, end);
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
