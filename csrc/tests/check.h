// What the C++ tests share.
#pragma once

#include <cstdio>
#include <limits>

#include "../cpu/kernels.h"

inline int passed = 0, failed = 0;

inline void check(bool ok, const char* what, int line) {
  if (ok) {
    ++passed;
    return;
  }
  ++failed;
  std::printf("line %d: %s\n", line, what);
}

#define CHECK(...) check((__VA_ARGS__), #__VA_ARGS__, __LINE__)

constexpr double INF = std::numeric_limits<double>::infinity();
constexpr double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN();

inline bool fault_is(const fastguide::Fault& fault, fastguide::FaultCode code, long long row,
                     long long column, long long value) {
  return fault.code == code && fault.row == row && fault.column == column && fault.value == value;
}

// Of test_particles.cpp and test_training.cpp.
void test_particles();
void test_training();
