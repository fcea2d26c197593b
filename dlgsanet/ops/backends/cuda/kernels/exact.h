// Factors of products of float32 on tensor cores.
//
//   EXACT  whether products are as exact as in float32
//
// With EXACT, a factor of 22 bits is the sum of its first 11 bits, the head, and a rest of as many. Three products then
// add up to what float32 gives: all but rest times rest. Without, factors are rounded to TF32.
#pragma once
#include "mma.h"

// Tensor cores ignore all bits below TF32, so with EXACT a factor, rounded to 22 bits, is its own head. The NaN that
// GPUs form has all bits but the sign, so it must not be rounded up.
__device__ __forceinline__ unsigned as_factor(float number) {
  return EXACT ? (min((int)__float_as_uint(number), 0x7ffffffc) + 2) & ~3 : to_tf32(number);
}

__device__ __forceinline__ unsigned rest_of(unsigned factor) {
  return __float_as_uint(__uint_as_float(factor) - __uint_as_float(factor & 0xffffe000u));
}

struct alignas(16) Factors {
  unsigned v[4];
};

// sums[m][n] += a[m] b[n]. Successive products have different sums, since each waits for the last one of its own.
template <typename T, int kM, int kN>
__device__ __forceinline__ void multiply_loaded(float (&sums)[kM][kN][4], const Factors (&a)[kM],
                                                const unsigned (&b)[kN][2]) {
  if constexpr (EXACT) {
    unsigned rests[kN][2];
#pragma unroll
    for (int n = 0; n < kN; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) rests[n][i] = rest_of(b[n][i]);
#pragma unroll
    for (int m = 0; m < kM; m++)
#pragma unroll
      for (int n = 0; n < kN; n++) multiply_add<T>(sums[m][n], a[m].v, rests[n]);
#pragma unroll
    for (int m = 0; m < kM; m++) {
      const unsigned rest[4] = {rest_of(a[m].v[0]), rest_of(a[m].v[1]), rest_of(a[m].v[2]), rest_of(a[m].v[3])};
#pragma unroll
      for (int n = 0; n < kN; n++) multiply_add<T>(sums[m][n], rest, b[n]);
    }
  }
#pragma unroll
  for (int m = 0; m < kM; m++)
#pragma unroll
    for (int n = 0; n < kN; n++) multiply_add<T>(sums[m][n], a[m].v, b[n]);
}
