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

// sums[n] += a b[n]. Successive products have different sums, since each waits for the last one of its own.
template <int kN>
__device__ __forceinline__ void multiply_factors(float (&sums)[kN][4], const unsigned (&a)[4],
                                                 const unsigned (&b)[kN][2]) {
  if constexpr (EXACT) {
    const unsigned rest[4] = {rest_of(a[0]), rest_of(a[1]), rest_of(a[2]), rest_of(a[3])};
#pragma unroll
    for (int n = 0; n < kN; n++) {
      const unsigned rest_of_b[2] = {rest_of(b[n][0]), rest_of(b[n][1])};
      multiply_add(sums[n], a, rest_of_b);
    }
#pragma unroll
    for (int n = 0; n < kN; n++) multiply_add(sums[n], rest, b[n]);
  }
#pragma unroll
  for (int n = 0; n < kN; n++) multiply_add(sums[n], a, b[n]);
}
