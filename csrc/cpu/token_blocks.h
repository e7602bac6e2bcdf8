// Blocks of the tokens of a large vocabulary: read from what they are stored as, exponentials, and
// rounded to what is written; included once per instruction set. S is what numbers are stored as, T
// what they are computed with (halves.h).
#include <type_traits>

#include "exp_lanes.h"

namespace fastguide {
namespace FG_NAMESPACE {

// Tokens of a block.
constexpr i64 TOKEN_BLOCK = 512;

FG_LANE i64 block_count(i64 first, i64 vocab_size) {
  return vocab_size - first < TOKEN_BLOCK ? vocab_size - first : TOKEN_BLOCK;
}

template <class T>
FG_LANE T minus_infinity() {
  return static_cast<T>(bits_double(0xFFF0000000000000ull));
}

// z [TOKEN_BLOCK] = scale from.
template <class S, class T>
FG_LANE void scale_block(const S* from, T scale, T* z) {
#if FG_LEVEL > 0
  if constexpr (!std::is_same_v<S, T>) {
    for (i64 i = 0; i < TOKEN_BLOCK; i += SINGLES)
      stored(times(repeated(scale), loaded(from + i)), z + i);
    return;
  }
#endif
  for (i64 i = 0; i < TOKEN_BLOCK; ++i) z[i] = scale * widened(from[i]);
}

// Numbers [count] as what they are computed with: where they are, or converted into room.
template <class S>
FG_LANE const Wide<S>* widened_block(const S* from, i64 count, Wide<S>* room) {
  if constexpr (std::is_same_v<S, Wide<S>>) {
    return from;
  } else {
    for (i64 i = 0; i < count; ++i) room[i] = widened(from[i]);
    return room;
  }
}

// Where to compute numbers that become part of an output, which `round_block` then writes.
template <class S>
FG_LANE Wide<S>* place_of_block(S* out, Wide<S>* room) {
  if constexpr (std::is_same_v<S, Wide<S>>)
    return out;
  else
    return room;
}
template <class S>
FG_LANE void round_block(const Wide<S>* from, i64 count, S* out) {
  if constexpr (!std::is_same_v<S, Wide<S>>) {
    i64 i = 0;
#if FG_LEVEL > 0
    for (; i + SINGLES <= count; i += SINGLES) stored(loaded(from + i), out + i);
#endif
    for (; i < count; ++i) out[i] = rounded<S>(from[i]);
  }
}

// z [TOKEN_BLOCK]: scale times the logits of tokens [first, first + count), then -inf.
template <class S, class T>
FG_LANE void load_block(const S* site, i64 stride, i64 first, i64 count, T scale, T* z) {
  const S* from = site + first * stride;
  if (stride == 1 && count == TOKEN_BLOCK) {
    scale_block(from, scale, z);
    return;
  }
  for (i64 i = 0; i < count; ++i) z[i] = scale * widened(from[i * stride]);
  for (i64 i = count; i < TOKEN_BLOCK; ++i) z[i] = minus_infinity<T>();
}

// e [count] = exp(z - shift).
FG_LANE void exp_shifted(const double* z, i64 count, double shift, double* e) {
  for (i64 i = 0; i < count; ++i) e[i] = exp_double(z[i] - shift);
}

#if FG_LEVEL > 0

FG_LANE void exp_shifted(const float* z, i64 count, float shift, float* e) {
  const i64 whole = count / SINGLES * SINGLES;
  for (i64 i = 0; i < whole; i += SINGLES)
    stored(exp_lanes(minus(loaded(z + i), repeated(shift))), e + i);
  for (i64 i = whole; i < count; ++i) e[i] = exp_single(z[i] - shift);
}

#else

// The table is read in a loop of its own: those before and after it are vectorised.
FG_LANE void exp_shifted(const float* z, i64 count, float shift, float* e) {
  float rest[TOKEN_BLOCK], scale[TOKEN_BLOCK], x[TOKEN_BLOCK];
  for (i64 first = 0; first < count; first += TOKEN_BLOCK) {
    const i64 some = block_count(first, count);
    for (i64 i = 0; i < some; ++i) {
      x[i] = z[first + i] - shift;
      const ExpParts parts = split_exp(x[i]);
      rest[i] = parts.rest;
      scale[i] = parts.shifted;
    }
    for (i64 i = 0; i < some; ++i) scale[i] = power_of_eighths(scale[i]);
    for (i64 i = 0; i < some; ++i) e[first + i] = joined_exp(x[i], rest[i], scale[i]);
  }
}

#endif

// target [count] = factor exp(z - shift), which may take the place of z.
template <class From, class To>
FG_LANE void scaled_exp_shifted(const From* z, i64 count, Wide<To> shift, Wide<To> factor,
                                To* target) {
#if FG_LEVEL > 0
  if constexpr (std::is_same_v<Wide<To>, float>) {
    const i64 whole = count / SINGLES * SINGLES;
    for (i64 i = 0; i < whole; i += SINGLES)
      stored(times(repeated(factor), exp_lanes(minus(loaded(z + i), repeated(shift)))), target + i);
    for (i64 i = whole; i < count; ++i)
      target[i] = rounded<To>(factor * exp_single(widened(z[i]) - shift));
    return;
  }
#endif
  Wide<To> room[TOKEN_BLOCK], place[TOKEN_BLOCK];
  for (i64 first = 0; first < count; first += TOKEN_BLOCK) {
    const i64 some = block_count(first, count);
    Wide<To>* e = place_of_block(target + first, place);
    exp_shifted(widened_block(z + first, some, room), some, shift, e);
    for (i64 i = 0; i < some; ++i) e[i] *= factor;
    round_block(e, some, target + first);
  }
}

}  // namespace FG_NAMESPACE
}  // namespace fastguide
