// The Python module fastguide._C: raw pointers as integers, no knowledge of torch. Each function
// returns None, or (code, row, column, value) of the first bad entry of an input.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/training.h"

namespace py = pybind11;
using namespace fastguide;

namespace {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

py::object fault_or_none(const Fault& fault) {
  if (fault.code == kNoFault) return py::none();
  return py::make_tuple(fault.code, fault.row, fault.column, fault.value);
}

py::object bind_philox_uniform(u64 seed, Address chains, Address first_candidate, u32 c3,
                               i64 num_chains, i64 num_candidates, i64 num_elements, Address out,
                               int num_threads) {
  const PhiloxArgs args = {seed,       pointer<const i64>(chains), pointer<const i64>(first_candidate),
                           c3,         num_chains,                 num_candidates,
                           num_elements};
  Fault fault;
  {
    py::gil_scoped_release release;
    fault = philox_uniform(args, pointer<double>(out), num_threads);
  }
  return fault_or_none(fault);
}

py::object bind_philox_normal(u64 seed, Address chains, Address first_candidate, u32 c3,
                              i64 num_chains, i64 num_candidates, i64 num_elements, bool is_double,
                              Address out, int num_threads) {
  const PhiloxArgs args = {seed,       pointer<const i64>(chains), pointer<const i64>(first_candidate),
                           c3,         num_chains,                 num_candidates,
                           num_elements};
  Fault fault;
  {
    py::gil_scoped_release release;
    fault = is_double ? philox_normal(args, pointer<double>(out), num_threads)
                      : philox_normal(args, pointer<float>(out), num_threads);
  }
  return fault_or_none(fault);
}

using Strides3 = std::tuple<i64, i64, i64>;
using Strides2 = std::tuple<i64, i64>;

template <class T>
Logits<T> make_logits(Address data, Strides3 strides, i64 num_rows, i64 vocab_size, Address index,
                      bool per_site, double temperature) {
  const auto [row, site, token] = strides;
  return {pointer<const T>(data),    row,        site, token, num_rows, vocab_size,
          pointer<const i64>(index), temperature, per_site};
}

States make_states(Address x, Strides2 strides, i64 num_rows, i64 length, i64 mask_token) {
  const auto [row, site] = strides;
  return {pointer<const i64>(x), row, site, num_rows, length, mask_token};
}

py::object bind_masked_propose(Address logits, bool is_double, Strides3 logits_strides, i64 num_logits,
                               i64 vocab_size, Address index, bool per_site, double temperature,
                               Address x, Strides2 x_strides, i64 num_rows, i64 length,
                               i64 mask_token, Address keys, double rho, u64 seed, Address chains,
                               Address first_candidate, u32 step, i64 num_candidates,
                               Address out_tokens, Address out_keys, Address out_changed,
                               int num_threads) {
  const States states = make_states(x, x_strides, num_rows, length, mask_token);
  const ProposeArgs args = {pointer<const i64>(keys),
                            rho,
                            seed,
                            pointer<const i64>(chains),
                            pointer<const i64>(first_candidate),
                            step,
                            num_candidates,
                            pointer<i64>(out_tokens),
                            pointer<i64>(out_keys),
                            pointer<i32>(out_changed)};
  Fault fault;
  {
    py::gil_scoped_release release;
    fault = is_double ? masked_propose(make_logits<double>(logits, logits_strides, num_logits,
                                                           vocab_size, index, per_site, temperature),
                                       states, args, num_threads)
                      : masked_propose(make_logits<float>(logits, logits_strides, num_logits,
                                                          vocab_size, index, per_site, temperature),
                                       states, args, num_threads);
  }
  return fault_or_none(fault);
}

py::object bind_masked_posterior(Address logits, bool is_double, Strides3 logits_strides,
                                 i64 num_logits, i64 vocab_size, Address index, bool per_site,
                                 double temperature, Address x, Strides2 x_strides, i64 num_rows,
                                 i64 length, i64 mask_token, i64 num_samples, Address keys, u64 seed,
                                 u32 purpose, Address out, int num_threads) {
  const States states = make_states(x, x_strides, num_rows, length, mask_token);
  const PosteriorArgs args = {num_samples, pointer<const i64>(keys), seed, purpose,
                              pointer<i64>(out)};
  Fault fault;
  {
    py::gil_scoped_release release;
    fault = is_double ? masked_posterior(make_logits<double>(logits, logits_strides, num_logits,
                                                             vocab_size, index, per_site, temperature),
                                         states, args, num_threads)
                      : masked_posterior(make_logits<float>(logits, logits_strides, num_logits,
                                                            vocab_size, index, per_site, temperature),
                                         states, args, num_threads);
  }
  return fault_or_none(fault);
}

void bind_masked_keys(Address x, Strides2 strides, i64 num_rows, i64 length, Address out,
                      int num_threads) {
  const auto [row, site] = strides;
  py::gil_scoped_release release;
  masked_keys(pointer<const i64>(x), row, site, num_rows, length, pointer<i64>(out), num_threads);
}

void bind_unique_rows(Address rows, i64 row_stride_bytes, i64 row_bytes, i64 num_rows, Address keys,
                      Address first, Address inverse, Address count) {
  py::gil_scoped_release release;
  unique_rows(pointer<const void>(rows), row_stride_bytes, row_bytes, num_rows,
              pointer<const i64>(keys), pointer<i64>(first), pointer<i64>(inverse),
              pointer<i64>(count));
}

// (data, row stride); data 0: absent.
using RowsTuple = std::tuple<Address, i64>;

template <class T>
Fault propose_gaussian(const GaussianArgs& args, Address x, Address output, Address shift, Address out,
                       int num_threads) {
  return gaussian_propose(args, pointer<const T>(x), pointer<const T>(output),
                          pointer<const T>(shift), pointer<T>(out), num_threads);
}

py::object bind_gaussian_propose(bool is_double, RowsTuple x, RowsTuple output, i64 num_outputs,
                                 RowsTuple shift, double a, double b, double s, u64 seed,
                                 Address chains, Address first_candidate, u32 c3, Address index,
                                 i64 num_chains, i64 num_candidates, i64 num_elements, Address out,
                                 Address out_log_ratio, int num_threads) {
  const auto [x_data, x_stride] = x;
  const auto [output_data, output_stride] = output;
  const auto [shift_data, shift_stride] = shift;
  const GaussianArgs args = {
      {seed, pointer<const i64>(chains), pointer<const i64>(first_candidate), c3, num_chains,
       num_candidates, num_elements},
      a,
      b,
      s,
      x_stride,
      output_stride,
      shift_stride,
      num_outputs,
      pointer<const i64>(index),
      pointer<double>(out_log_ratio)};
  const auto run = is_double ? &propose_gaussian<double> : &propose_gaussian<float>;
  Fault fault;
  {
    py::gil_scoped_release release;
    fault = run(args, x_data, output_data, shift_data, out, num_threads);
  }
  return fault_or_none(fault);
}

// (data, row stride, column stride, is_double); data 0: absent.
using MatrixTuple = std::tuple<Address, i64, i64, bool>;
// (source, row stride, candidate stride, inner, all in bytes, index, U, target)
using GatherTuple = std::tuple<Address, i64, i64, i64, Address, i64, Address>;

Matrix make_matrix(const MatrixTuple& matrix) {
  const auto [data, row, column, is_double] = matrix;
  return {pointer<const void>(data), row, column, is_double};
}

std::vector<GatherItem> make_items(const std::vector<GatherTuple>& gather, i64 num_targets) {
  std::vector<GatherItem> items;
  for (const auto& [source, row, candidate, inner, index, num_source_rows, target] : gather)
    items.push_back({pointer<const char>(source), row, candidate, inner, pointer<const i64>(index),
                     num_source_rows, pointer<char>(target), num_targets});
  return items;
}

py::object bind_select(const MatrixTuple& values, const MatrixTuple& log_ratio, i64 num_rows,
                       i64 num_candidates, double alpha, u64 seed, Address chains,
                       Address particles, u32 c3, const std::vector<GatherTuple>& gather,
                       Address out_index, Address out_lme, Address out_ess, int num_threads) {
  const std::vector<GatherItem> items = make_items(gather, num_rows);
  const SelectArgs args = {make_matrix(values),
                           make_matrix(log_ratio),
                           num_rows,
                           num_candidates,
                           alpha,
                           seed,
                           pointer<const i64>(chains),
                           pointer<const i64>(particles),
                           c3,
                           items.data(),
                           static_cast<i64>(items.size()),
                           pointer<i64>(out_index),
                           pointer<double>(out_lme),
                           pointer<double>(out_ess)};
  Fault fault;
  {
    py::gil_scoped_release release;
    fault = select(args, num_threads);
  }
  return fault_or_none(fault);
}

py::object bind_resample(const MatrixTuple& log_w, i64 num_groups, i64 num_particles, int scheme,
                         double ess_threshold, u64 seed, Address chains, u32 c3,
                         const std::vector<GatherTuple>& gather, Address out_ancestors,
                         Address out_log_z, Address out_resampled, Address out_ess,
                         int num_threads) {
  const std::vector<GatherItem> items = make_items(gather, num_groups * num_particles);
  const ResampleArgs args = {make_matrix(log_w),
                             num_groups,
                             num_particles,
                             static_cast<ResampleScheme>(scheme),
                             ess_threshold,
                             seed,
                             pointer<const i64>(chains),
                             c3,
                             items.data(),
                             static_cast<i64>(items.size()),
                             pointer<i64>(out_ancestors),
                             pointer<double>(out_log_z),
                             pointer<unsigned char>(out_resampled),
                             pointer<double>(out_ess)};
  Fault fault;
  {
    py::gil_scoped_release release;
    fault = resample(args, num_threads);
  }
  return fault_or_none(fault);
}

void bind_soft_value(Address values, bool is_double, Strides2 strides, i64 num_rows,
                     i64 num_samples, int kind, double alpha, double tau, Address out,
                     int num_threads) {
  const auto [row, sample] = strides;
  const auto which = static_cast<SoftValueKind>(kind);
  py::gil_scoped_release release;
  if (is_double)
    soft_value(pointer<const double>(values), row, sample, num_rows, num_samples, which, alpha, tau,
               pointer<double>(out), num_threads);
  else
    soft_value(pointer<const float>(values), row, sample, num_rows, num_samples, which, alpha, tau,
               pointer<float>(out), num_threads);
}

#include "bind_training.h"

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of fastguide on raw addresses; use fastguide.ops instead.";
  m.def("cpu_level", [] { return level_name(cpu_level()); });
  m.def("environment", [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  });
  m.def("supported_levels", [] {
    std::vector<std::string> names;
    for (Level level : {Level::baseline, Level::avx2, Level::avx512})
      if (cpu_supports(level)) names.emplace_back(level_name(level));
    return names;
  });
  m.def("philox_uniform", &bind_philox_uniform);
  m.def("philox_normal", &bind_philox_normal);
  m.def("masked_propose", &bind_masked_propose);
  m.def("masked_posterior", &bind_masked_posterior);
  m.def("masked_keys", &bind_masked_keys);
  m.def("unique_rows", &bind_unique_rows);
  m.def("gaussian_propose", &bind_gaussian_propose);
  m.def("select", &bind_select);
  m.def("resample", &bind_resample);
  m.def("soft_value", &bind_soft_value);
  define_training<float>(m, "float32");
  define_training<double>(m, "float64");
  define_logit_ops<Bfloat16>(m, "bfloat16");
  define_logit_ops<Half>(m, "float16");
}
