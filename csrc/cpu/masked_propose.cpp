#include "fastguide/masked_propose.cuh"

#include <cstring>
#include <vector>

#include "kernels.h"
#include "bit_lists.h"
#include "parallel.h"
#include "philox_ids.h"

namespace fastguide {

// Low bytes of the counter word c3; the same numbers as fastguide.rng.Purpose.
constexpr u32 REVEAL = 3, TOKEN = 4;

}  // namespace fastguide

#define FG_BODY "masked_propose.h"
#include "levels.h"

namespace fastguide {

template <class T>
Fault masked_propose(const Logits<T>& logits, const States& states, const ProposeArgs& args,
                     int num_threads) {
  const auto rows = FG_PICK(propose_rows<T>);
  return parallel_rows(states.num_rows, states.length * args.num_candidates, num_threads,
                       [&](i64 begin, i64 end) { return rows(logits, states, args, begin, end); });
}

template Fault masked_propose<float>(const Logits<float>&, const States&, const ProposeArgs&, int);
template Fault masked_propose<double>(const Logits<double>&, const States&, const ProposeArgs&, int);

}  // namespace fastguide
