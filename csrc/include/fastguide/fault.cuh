// What can be wrong with the contents of an input, and where.
#pragma once

#include "portability.cuh"

namespace fastguide {

// The same numbers as FaultCode in fastguide/reference/faults.py.
enum FaultCode : i32 {
  kNoFault = 0,
  kIndexFault = 1,      // index[row] is no row of logits
  kTokenFault = 2,      // x[row, column] is neither the mask nor in [0, V)
  kChainFault = 3,      // chains[row] outside [0, 2^32)
  kCandidateFault = 4,  // a candidate or particle id outside [0, 2^32)
  kLogitFault = 5,      // NaN or +inf among the logits of (row, site)
  kNoTokenFault = 6,    // every logit of (row, site) is -inf
  kValueFault = 7,      // a log-weight of (row, candidate) is NaN or +inf
  kGatherFault = 8,     // a gather index of the row is no row of its tensor
  kNoWeightFault = 9,   // every log-weight of the group is -inf; value: its chain
  kScalarFault = 10,     // a scalar read from a device tensor is out of range; value: the step
};

struct Fault {
  i32 code = kNoFault;
  i64 row = -1;
  i64 column = -1;
  i64 value = 0;
};

// Ids become 32-bit counter words.
FG_HD bool fits_counter(i64 id) { return id >= 0 && id < (1LL << 32); }

}  // namespace fastguide
