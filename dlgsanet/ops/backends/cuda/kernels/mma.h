// Products of small matrices on tensor cores, and approximate functions.
#pragma once
#include "scalar.h"

#ifndef DLGSANET_EMULATED  // the tests' emulator defines its own
// Round to the nearest TF32 value (10 bits after the point). Older GPUs need three instructions for it.
__device__ __forceinline__ unsigned to_tf32(float value) {
  unsigned bits;
#if __CUDA_ARCH__ >= 900
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#endif
  return bits;
}

// sum[16 x 8] += a[16 x 8] b[8 x 8], distributed over a warp. Lane 4 g + t holds (PTX ISA, mma.m16n8k8):
// a at (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b at (t, g), (t + 4, g);
// sum at (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
__device__ __forceinline__ void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two numbers of 16 bits in a register, the first one in its lower half.
template <typename T>
__device__ __forceinline__ unsigned pack(float first, float second);
template <>
__device__ __forceinline__ unsigned pack<Half>(float first, float second) {
  unsigned bits;
  asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(bits) : "f"(first), "f"(second));
  return bits;
}
template <>
__device__ __forceinline__ unsigned pack<BFloat16>(float first, float second) {
  unsigned bits;
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(bits) : "f"(first), "f"(second));
  return bits;
}

// sum[16 x 8] += a[16 x 16] b[16 x 8] of numbers of 16 bits, distributed over a warp. Lane 4 g + t holds (PTX ISA,
// mma.m16n8k16) pairs: of a those from (g, 2 t), (g + 8, 2 t), (g, 2 t + 8), (g + 8, 2 t + 8) on, in a row; of b those
// from (2 t, g), (2 t + 8, g) on, in a column; of the sum the same as above.
#define DLGSANET_MULTIPLY_ADD(type, name)                                                                          \
  template <>                                                                                                      \
  __device__ __forceinline__ void multiply_add<type>(float (&sum)[4], const unsigned (&a)[4],                      \
                                                     const unsigned (&b)[2]) {                                     \
    const float c[4] = {sum[0], sum[1], sum[2], sum[3]};                                                           \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                            \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                                  \
                 : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),         \
                   "f"(c[2]), "f"(c[3]));                                                                          \
  }
template <typename T>
__device__ void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
template <>
__device__ __forceinline__ void multiply_add<float>(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  multiply_add(sum, a, b);
}
DLGSANET_MULTIPLY_ADD(Half, "f16")
DLGSANET_MULTIPLY_ADD(BFloat16, "bf16")

// Matrices of 8 rows of 4 words from shared memory: four or two. Lane 8 i + r has the address of row r of the ith
// matrix; other lanes' addresses are ignored. Lane 4 g + t gets the word (g, t) of each.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], const unsigned* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"((unsigned)__cvta_generic_to_shared(row))
               : "memory");
}

__device__ __forceinline__ void load_matrices(unsigned (&to)[2], const unsigned* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"((unsigned)__cvta_generic_to_shared(row))
               : "memory");
}

// Four matrices of 8 rows of 8 numbers of 16 bits; lane 4 g + t gets the numbers (2 t, g) and (2 t + 1, g) of each.
__device__ __forceinline__ void load_transposed(unsigned (&to)[4], const unsigned* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"((unsigned)__cvta_generic_to_shared(row))
               : "memory");
}

// 1 / value and 2^value, to one or two units in the last place; tanh(value) to 11 bits.
__device__ __forceinline__ float approximate_reciprocal(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

__device__ __forceinline__ float approximate_exp2(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

__device__ __forceinline__ float approximate_tanh(float value) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}
#endif
