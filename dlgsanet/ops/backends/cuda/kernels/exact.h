// Factors of products of float32 on tensor cores.
//
//   EXACT  whether products are as exact as in float32
//
// With EXACT, a factor is split into its head, the nearest TF32 value, and the rest, of which tensor cores read 11 of
// at most 12 bits. Three products then add up to what float32 gives: all but rest times rest. Without, factors are
// rounded to TF32.
#pragma once
#include "mma.h"

__device__ __forceinline__ unsigned as_factor(float number) {
  return EXACT ? __float_as_uint(number) : to_tf32(number);
}

struct alignas(16) Factors {
  unsigned v[4];
};

// The nearest TF32 value in as few instructions as possible, on sm_120 with fewer spilled registers. That of a NaN may
// be a number: its rest is NaN.
__device__ __forceinline__ unsigned head_of(float number) {
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
  return to_tf32(number);
#else
  return (__float_as_uint(number) + 0x1000) & 0xffffe000;
#endif
}

template <int kCount>
__device__ __forceinline__ void split(unsigned (&heads)[kCount], unsigned (&rests)[kCount],
                                      const unsigned (&factors)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i++) {
    heads[i] = head_of(__uint_as_float(factors[i]));
    rests[i] = __float_as_uint(__uint_as_float(factors[i]) - __uint_as_float(heads[i]));
  }
}

// sums[m][n] += a[m] b[n]. Successive products have different sums, since each waits for the last one of its own.
template <typename T, int kM, int kN>
__device__ __forceinline__ void multiply_each(float (&sums)[kM][kN][4], const Factors (&a)[kM],
                                              const unsigned (&b)[kN][2]) {
#pragma unroll
  for (int m = 0; m < kM; m++)
#pragma unroll
    for (int n = 0; n < kN; n++) multiply_add<T>(sums[m][n], a[m].v, b[n]);
}

// The same with factors as they are stored.
template <typename T, int kM, int kN>
__device__ __forceinline__ void multiply_loaded(float (&sums)[kM][kN][4], const Factors (&a)[kM],
                                                const unsigned (&b)[kN][2]) {
  if constexpr (EXACT) {
    Factors heads_of_a[kM], rests_of_a[kM];
    unsigned heads_of_b[kN][2], rests_of_b[kN][2];
#pragma unroll
    for (int m = 0; m < kM; m++) split(heads_of_a[m].v, rests_of_a[m].v, a[m].v);
#pragma unroll
    for (int n = 0; n < kN; n++) split(heads_of_b[n], rests_of_b[n], b[n]);
    multiply_each<T>(sums, heads_of_a, rests_of_b);
    multiply_each<T>(sums, rests_of_a, heads_of_b);
    multiply_each<T>(sums, heads_of_a, heads_of_b);
  } else {
    multiply_each<T>(sums, a, b);
  }
}
