// Ids that become counter words of the stream.
#pragma once

#include "kernels.h"

namespace fastguide {

// False, with the fault, if chain n or one of its candidates does not fit a counter word.
inline bool check_ids(i64 chain, i64 first_candidate, i64 num_candidates, i64 n, Fault* fault) {
  if (!fits_counter(chain)) {
    *fault = {kChainFault, n, -1, chain};
    return false;
  }
  if (!fits_counter(first_candidate) || first_candidate + num_candidates > (1LL << 32)) {
    *fault = {kCandidateFault, n, -1, first_candidate};
    return false;
  }
  return true;
}

inline bool check_ids(const PhiloxArgs& args, i64 n, Fault* fault) {
  return check_ids(args.chains[n], args.first_candidate == nullptr ? 0 : args.first_candidate[n],
                   args.num_candidates, n, fault);
}

}  // namespace fastguide
