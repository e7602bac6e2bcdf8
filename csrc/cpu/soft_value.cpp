#include "fastguide/soft_value.cuh"

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "parallel.h"

#define FG_BODY "soft_value.h"
#include "levels.h"

namespace fastguide {

template <class T>
void soft_value(const T* values, i64 row_stride, i64 sample_stride, i64 num_rows, i64 num_samples,
                SoftValueKind kind, double alpha, double tau, T* out, int num_threads) {
  const auto rows = FG_PICK(soft_value_rows<T>);
  parallel_rows(num_rows, num_samples * 8, num_threads, [&](i64 begin, i64 end) {
    return rows(values, row_stride, sample_stride, num_samples, kind, alpha, tau, out, begin, end);
  });
}

template void soft_value<float>(const float*, i64, i64, i64, i64, SoftValueKind, double, double,
                                float*, int);
template void soft_value<double>(const double*, i64, i64, i64, i64, SoftValueKind, double, double,
                                 double*, int);

}  // namespace fastguide
