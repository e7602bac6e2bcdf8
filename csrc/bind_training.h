// The training ops of fastguide._C: the part of bind.cpp that has a type for each dtype. It stands in
// bind.cpp's own namespace, after the helpers that it uses.

// (data, stride, is_double); data 0: absent.
using NumbersTuple = std::tuple<Address, i64, bool>;

Numbers make_numbers(const NumbersTuple& numbers) {
  const auto [data, stride, is_double] = numbers;
  return {pointer<const void>(data), stride, is_double};
}

// (output, x, x_next, output_ref or absent)
using PpoRowsTuple = std::tuple<RowsTuple, RowsTuple, RowsTuple, RowsTuple>;
// (a, b, s)
using LawTuple = std::tuple<NumbersTuple, NumbersTuple, NumbersTuple>;
// (old_log_prob, advantage, low, high) and (surrogate, kl, log_prob, ratio, clipped, slope)
using PpoInputsTuple = std::tuple<NumbersTuple, NumbersTuple, double, double>;
using PpoOutputsTuple = std::tuple<Address, Address, Address, Address, Address, Address>;
// (gradients in surrogate, kl, log_prob and ratio, ratio, slope)
using PpoPullsTuple =
    std::tuple<NumbersTuple, NumbersTuple, NumbersTuple, NumbersTuple, Address, Address>;

PpoInputs make_ppo_inputs(const PpoInputsTuple& inputs) {
  const auto [old_log_prob, advantage, low, high] = inputs;
  return {make_numbers(old_log_prob), make_numbers(advantage), low, high};
}

PpoOutputs make_ppo_outputs(const PpoOutputsTuple& outputs) {
  const auto [surrogate, kl, log_prob, ratio, clipped, slope] = outputs;
  return {pointer<double>(surrogate), pointer<double>(kl), pointer<double>(log_prob),
          pointer<double>(ratio), pointer<bool>(clipped), pointer<double>(slope)};
}

PpoPulls make_ppo_pulls(const PpoPullsTuple& pulls) {
  const auto& [surrogate, kl, log_prob, ratio, ratios, slopes] = pulls;
  return {make_numbers(surrogate), make_numbers(kl),        make_numbers(log_prob),
          make_numbers(ratio),     pointer<double>(ratios), pointer<double>(slopes)};
}

template <class T>
Rows<T> make_rows(const RowsTuple& rows) {
  return {pointer<const T>(std::get<0>(rows)), std::get<1>(rows)};
}

template <class T>
struct GaussianPpo {
  static py::object run(const PpoRowsTuple& rows, const LawTuple& law, i64 num_rows,
                        i64 num_elements, const PpoInputsTuple& inputs,
                        const PpoOutputsTuple& outputs, int num_threads) {
    Fault fault;
    {
      py::gil_scoped_release release;
      fault = gaussian_ppo(args(rows, law, num_rows, num_elements), make_ppo_inputs(inputs),
                           make_ppo_outputs(outputs), num_threads);
    }
    return fault_or_none(fault);
  }
  static void pull(const PpoRowsTuple& rows, const LawTuple& law, i64 num_rows, i64 num_elements,
                   const PpoPullsTuple& pulls, Address d_output, int num_threads) {
    py::gil_scoped_release release;
    gaussian_ppo_backward(args(rows, law, num_rows, num_elements), make_ppo_pulls(pulls),
                          pointer<T>(d_output), num_threads);
  }
  static GaussianPpoArgs<T> args(const PpoRowsTuple& rows, const LawTuple& law, i64 num_rows,
                                 i64 num_elements) {
    const auto& [output, x, x_next, output_ref] = rows;
    const auto& [a, b, s] = law;
    return {make_rows<T>(output),     make_rows<T>(x), make_rows<T>(x_next),
            make_rows<T>(output_ref), make_numbers(a), make_numbers(b),
            make_numbers(s),          num_rows,        num_elements};
  }
};

// (data, strides); data 0: absent.
using SitesTuple = std::tuple<Address, Strides3>;

template <class T>
SiteLogits<T> make_sites(const SitesTuple& sites) {
  const auto [row, site, token] = std::get<1>(sites);
  return {pointer<const T>(std::get<0>(sites)), row, site, token};
}

// (x, x_next or targets, N, L, V, mask)
using StepTuple = std::tuple<Address, Address, i64, i64, i64, i64>;

template <class T>
struct MaskedPpo {
  static py::object run(const SitesTuple& logits, const SitesTuple& ref, const StepTuple& step,
                        const NumbersTuple& rho, double temperature, const PpoInputsTuple& inputs,
                        const PpoOutputsTuple& outputs, Address sites, int num_threads) {
    Fault fault;
    {
      py::gil_scoped_release release;
      fault = masked_ppo(args(logits, ref, step, rho, temperature), make_ppo_inputs(inputs),
                         make_ppo_outputs(outputs), pointer<double>(sites), num_threads);
    }
    return fault_or_none(fault);
  }
  static void pull(const SitesTuple& logits, const SitesTuple& ref, const StepTuple& step,
                   const NumbersTuple& rho, double temperature, Address sites,
                   const PpoPullsTuple& pulls, Address d_logits, int num_threads) {
    py::gil_scoped_release release;
    masked_ppo_backward(args(logits, ref, step, rho, temperature), pointer<const double>(sites),
                        make_ppo_pulls(pulls), pointer<T>(d_logits), num_threads);
  }
  static MaskedPpoArgs<T> args(const SitesTuple& logits, const SitesTuple& ref,
                               const StepTuple& step, const NumbersTuple& rho,
                               double temperature) {
    const auto [x, x_next, num_rows, length, vocab_size, mask] = step;
    return {make_sites<T>(logits),
            make_sites<T>(ref),
            pointer<const i64>(x),
            pointer<const i64>(x_next),
            num_rows,
            length,
            vocab_size,
            mask,
            make_numbers(rho),
            temperature};
  }
};

template <class T>
struct SubsCrossEntropy {
  static py::object run(const SitesTuple& logits, const StepTuple& step, Address loss,
                        Address normalisers, int num_threads) {
    Fault fault;
    {
      py::gil_scoped_release release;
      fault = subs_cross_entropy(args(logits, step), pointer<double>(loss),
                                 pointer<double>(normalisers), num_threads);
    }
    return fault_or_none(fault);
  }
  static void pull(const SitesTuple& logits, const StepTuple& step, Address normalisers,
                   const NumbersTuple& d_loss, Address d_logits, int num_threads) {
    py::gil_scoped_release release;
    subs_cross_entropy_backward(args(logits, step), pointer<const double>(normalisers),
                                make_numbers(d_loss), pointer<T>(d_logits), num_threads);
  }
  static void slice_sums(Address logits, i64 num_rows, i64 num_tokens, i64 first, Address targets,
                         Address top, Address total, Address chosen, int num_threads) {
    py::gil_scoped_release release;
    const LogitsSlice<T> slice = {pointer<T>(logits), num_rows, num_tokens, first,
                                  pointer<const i64>(targets)};
    subs_slice_sums(slice, pointer<double>(top), pointer<double>(total), pointer<double>(chosen),
                    num_threads);
  }
  static void slice_pull(Address logits, i64 num_rows, i64 num_tokens, i64 first, Address targets,
                         Address normalisers, Address scale, int num_threads) {
    py::gil_scoped_release release;
    const LogitsSlice<T> slice = {pointer<T>(logits), num_rows, num_tokens, first,
                                  pointer<const i64>(targets)};
    subs_slice_pull(slice, pointer<const double>(normalisers), pointer<const double>(scale),
                    num_threads);
  }
  static SubsArgs<T> args(const SitesTuple& logits, const StepTuple& step) {
    const auto [x, targets, num_rows, length, vocab_size, mask] = step;
    return {make_sites<T>(logits),
            pointer<const i64>(x),
            pointer<const i64>(targets),
            num_rows,
            length,
            vocab_size,
            mask};
  }
};

// (x, N, L, V)
using RelaxedTuple = std::tuple<Address, i64, i64, i64>;
// (seed, chains, c3)
using StreamTuple = std::tuple<u64, Address, u32>;

template <class T>
struct GumbelSoftmaxStep {
  static py::object run(const SitesTuple& logits, const SitesTuple& ref, const RelaxedTuple& state,
                        const NumbersTuple& rho, double tau, double temperature,
                        const StreamTuple& stream, bool straight_through, Address out, Address kl,
                        int num_threads) {
    Fault fault;
    {
      py::gil_scoped_release release;
      fault = gumbel_softmax_step(args(logits, ref, state, rho, tau, temperature, stream),
                                  straight_through, pointer<T>(out), pointer<double>(kl),
                                  num_threads);
    }
    return fault_or_none(fault);
  }
  static void pull(const SitesTuple& logits, const SitesTuple& ref, const RelaxedTuple& state,
                   const NumbersTuple& rho, double tau, double temperature,
                   const StreamTuple& stream, Address d_next, const NumbersTuple& d_kl,
                   Address d_logits, Address d_x, Address d_ref, int num_threads) {
    py::gil_scoped_release release;
    gumbel_softmax_step_backward(args(logits, ref, state, rho, tau, temperature, stream),
                                 pointer<const T>(d_next), make_numbers(d_kl),
                                 pointer<T>(d_logits), pointer<T>(d_x), pointer<T>(d_ref),
                                 num_threads);
  }
  static RelaxedStepArgs<T> args(const SitesTuple& logits, const SitesTuple& ref,
                                 const RelaxedTuple& state, const NumbersTuple& rho, double tau,
                                 double temperature, const StreamTuple& stream) {
    const auto [x, num_rows, length, vocab_size] = state;
    const auto [seed, chains, c3] = stream;
    return {make_sites<T>(logits),
            make_sites<T>(ref),
            pointer<const T>(x),
            num_rows,
            length,
            vocab_size,
            make_numbers(rho),
            tau,
            temperature,
            seed,
            pointer<const i64>(chains),
            c3};
  }
};

// Functions of logits, once for each dtype that these may have: "..._float32", "..._bfloat16".
template <class T>
void define_logit_ops(py::module_& m, const std::string& dtype) {
  const auto define = [&](const char* name, auto function) {
    m.def((name + dtype).c_str(), function);
  };
  define("masked_ppo_", &MaskedPpo<T>::run);
  define("masked_ppo_backward_", &MaskedPpo<T>::pull);
  define("subs_cross_entropy_", &SubsCrossEntropy<T>::run);
  define("subs_cross_entropy_backward_", &SubsCrossEntropy<T>::pull);
  define("subs_slice_sums_", &SubsCrossEntropy<T>::slice_sums);
  define("subs_slice_pull_", &SubsCrossEntropy<T>::slice_pull);
}

// Every function, for a dtype that kernels compute with.
template <class T>
void define_training(py::module_& m, const std::string& dtype) {
  define_logit_ops<T>(m, dtype);
  m.def(("gaussian_ppo_" + dtype).c_str(), &GaussianPpo<T>::run);
  m.def(("gaussian_ppo_backward_" + dtype).c_str(), &GaussianPpo<T>::pull);
  m.def(("gumbel_softmax_step_" + dtype).c_str(), &GumbelSoftmaxStep<T>::run);
  m.def(("gumbel_softmax_step_backward_" + dtype).c_str(), &GumbelSoftmaxStep<T>::pull);
}
