// The 1x1 convolution that forms filters from z. Its weights are in shared memory, the rows of filters in registers.
#pragma once
#include "tile.h"

//   FEATURES  D, channels of z
//   PASS      features that a kernel processes at a time
constexpr int kFeatures = FEATURES;
constexpr int kPass = PASS;

// The weights of a group for features first ... first + kPass - 1: [WINDOW][kPass + 1][kTaps]. Entry kPass is the bias
// in the first pass, and zero in later passes.
struct Expansion {
  static constexpr int kRow = (kPass + 1) * kTaps;

  // Copy rows first_row ... first_row + kRows - 1 of the filters; rows outside the window are zero.
  template <int kRows>
  static __device__ __forceinline__ void stage(Accumulator* to, const Accumulator* __restrict__ weight,
                                               const Accumulator* __restrict__ bias, int group, int first,
                                               int first_row) {
    constexpr int kAll = kRows * kRow, kEach = (kAll + kThreads - 1) / kThreads, kAtOnce = kEach < 16 ? kEach : 16;
#pragma unroll 1
    for (int start = threadIdx.x; start < kAll; start += kThreads * kAtOnce) {
      Accumulator values[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; n++) {
        const int i = start + n * kThreads, tap = i % kTaps, k = i / kTaps % (kPass + 1), row = first_row + i / kRow;
        const int output = (group * kWindow + row) * kWindow + tap;
        values[n] = 0;
        if (i < kAll && tap < kWindow && 0 <= row && row < kWindow) {
          if (k < kPass && first + k < kFeatures) values[n] = weight[output * kFeatures + first + k];
          if (k == kPass && first == 0 && bias) values[n] = bias[output];
        }
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; n++)
        if (start + n * kThreads < kAll) to[start + n * kThreads] = values[n];
    }
  }

  // The weights of feature k for the taps of a row.
  static __device__ __forceinline__ void read(Accumulator (&to)[kTaps], const Accumulator* row, int k) {
    read_run(to, row + k * kTaps);
  }
};
