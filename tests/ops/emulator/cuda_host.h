// CUDA C++ on a CPU, for tests: the part of the language that the source of the kernels needs to compile with g++.
//
// It includes next to nothing: headers took most of the time of a compilation. fibers.cpp runs the threads.
#pragma once
#include <stdint.h>
#include <string.h>

#include <utility>

#include "fibers.h"

#define DLGSANET_EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

extern "C" float exp2f(float), fabsf(float), fmaxf(float, float), sqrtf(float), tanhf(float);

struct dim3 {
  unsigned x = 1;
};

template <typename T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
template <typename T>
inline T min(T a, T b) {
  return b < a ? b : a;
}

namespace emulator {
inline char exchanged[2][kMostThreads / 32][32][8];  // [parity][warp][lane]: what a shuffle sends
inline int parity[kMostThreads];

// `arguments` as for cuLaunchKernel: the addresses of their values.
template <typename... A, size_t... I>
inline void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*(A*)arguments[I]...);
}
template <typename... A>
inline void call(void (*kernel)(A...), void** arguments) {
  call(kernel, arguments, std::index_sequence_for<A...>());
}
}  // namespace emulator

#define threadIdx (dim3{emulator::thread})
#define blockIdx (dim3{emulator::block})
#define blockDim (dim3{emulator::block_size})
#define __syncthreads() emulator::barrier(__FILE__, __LINE__)
#define __syncwarp() emulator::wait_for_warp()
#define SHARED_MEMORY(name) Accumulator* name = (Accumulator*)emulator::shared

template <typename T>
inline T __shfl_sync(unsigned, T value, int source) {
  using namespace emulator;
  const unsigned warp = thread / 32, lane = thread % 32;
  auto& slots = exchanged[parity[thread] ^= 1][warp];  // used alternately, so that one wait per exchange is enough
  memcpy(slots[lane], &value, sizeof value);
  wait_for_warp();
  T other;
  memcpy(&other, slots[source % 32], sizeof other);
  return other;
}

template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, (emulator::thread % 32) ^ lanes);
}

// As described in mma.h: each lane publishes its factors, then computes its own four sums. `value(bits, term)` is the
// factor that a register with these bits holds for one of its `kNeighbours` terms.
template <int kNeighbours, typename Value>
inline void multiply_add_of(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], Value value) {
  using namespace emulator;
  static float factors[2][kMostThreads / 32][32][6][kNeighbours];
  const unsigned lane = thread % 32, g = lane / 4, t = lane % 4;
  auto& warp = factors[parity[thread] ^= 1][thread / 32];
  for (unsigned i = 0; i < 6; i++)
    for (unsigned k = 0; k < kNeighbours; k++) warp[lane][i][k] = value(i < 4 ? a[i] : b[i - 4], k);
  wait_for_warp();
  for (unsigned i = 0; i < 4; i++)
    for (unsigned k = 0; k < 8 * kNeighbours; k++) {
      const unsigned column = 2 * t + i % 2, of_lane = k / kNeighbours % 4, upper = k / kNeighbours / 4;
      const unsigned term = k % kNeighbours;
      sum[i] += warp[g * 4 + of_lane][i / 2 + upper * 2][term] * warp[column * 4 + of_lane][4 + upper][term];
    }
}

inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  multiply_add_of<1>(sum, a, b, [](unsigned bits, unsigned) {  // its bits below TF32 are ignored
    float f;
    bits &= 0xffffe000u;
    memcpy(&f, &bits, 4);
    return f;
  });
}

template <typename T>
inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  multiply_add_of<2>(sum, a, b, [](unsigned bits, unsigned term) {
    return widen(T{(unsigned short)(bits >> (term * 16))});
  });
}

template <>
inline void multiply_add<float>(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  multiply_add(sum, a, b);
}

template <typename T>
inline unsigned pack(float first, float second) {
  T pair[2];
  narrow(first, pair[0]);
  narrow(second, pair[1]);
  unsigned bits;
  memcpy(&bits, pair, 4);
  return bits;
}

// A row of a matrix that a lane reads; ends the program if it is misaligned.
inline const unsigned* aligned(const unsigned* row) {
  if ((uintptr_t)row % 16) __builtin_trap();
  return row;
}

// The rows that the lanes of a warp publish.
inline const unsigned** exchanged_rows(const unsigned* row) {
  using namespace emulator;
  static const unsigned* rows[2][kMostThreads / 32][32];
  auto& warp = rows[parity[thread] ^= 1][thread / 32];
  warp[thread % 32] = row;
  wait_for_warp();
  return warp;
}

template <size_t kCount>
inline void load_matrices(unsigned (&to)[kCount], const unsigned* row) {
  const unsigned lane = emulator::thread % 32, *const* rows = exchanged_rows(row);
  for (unsigned i = 0; i < kCount; i++) to[i] = aligned(rows[i * 8 + lane / 4])[lane % 4];
}

inline void load_transposed(unsigned (&to)[4], const unsigned* row) {
  const unsigned lane = emulator::thread % 32, *const* rows = exchanged_rows(row);
  for (unsigned i = 0; i < 4; i++) {
    unsigned short pair[2];
    for (unsigned j = 0; j < 2; j++)
      memcpy(pair + j, (const char*)aligned(rows[i * 8 + lane % 4 * 2 + j]) + lane / 4 * 2, 2);
    memcpy(to + i, pair, 4);
  }
}

inline unsigned to_tf32(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return value == value ? (bits + 0x1000u) & 0xffffe000u : 0x7fffffffu;
}

template <typename T>
inline void keep(T&) {}

inline float rsqrtf(float value) { return 1 / sqrtf(value); }
inline float approximate_reciprocal(float value) { return 1 / value; }
inline float approximate_exp2(float value) { return exp2f(value); }
inline float approximate_tanh(float value) { return tanhf(value); }

inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float half_to_float(unsigned short bits) {
  _Float16 value;
  memcpy(&value, &bits, 2);
  return (float)value;
}
inline unsigned short float_to_half(float value) {
  const _Float16 rounded = (_Float16)value;
  unsigned short bits;
  memcpy(&bits, &rounded, 2);
  return bits;
}

#define EMULATE(kernel)                                                                                            \
  extern "C" const char* emulate_##kernel(long long first, long long count, unsigned threads, size_t shared_bytes, \
                                          int order, void** arguments) {                                           \
    const auto run = [](void** arguments) { emulator::call(kernel, arguments); };                                  \
    return emulator::launch(first, count, threads, shared_bytes, order, run, arguments);                           \
  }
