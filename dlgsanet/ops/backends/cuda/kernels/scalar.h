// The element types of tensors, and conversions to and from the type in which sums are formed.
//
// CUDA's own headers (cuda_fp16.h, cuda_bf16.h) are not used, because CuPy does not contain them.
#pragma once

struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

template <typename T>
struct AccumulatorOf {
  typedef float type;
};
template <>
struct AccumulatorOf<double> {
  typedef double type;
};

#ifndef DLGSANET_EMULATED  // the tests' emulator defines its own conversions
__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ __forceinline__ unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// Keeps the compiler from computing a value again and again to save its register, or from adding up an address anew for
// each of several accesses to global memory.
__device__ __forceinline__ void keep(int& value) { asm volatile("" : "+r"(value)); }

template <typename T>
__device__ __forceinline__ void keep(T*& pointer) {
  asm volatile("" : "+l"(pointer));
  __builtin_assume(__isGlobal(pointer));
}
#endif

__device__ __forceinline__ float bfloat16_to_float(unsigned short bits) {
  return __uint_as_float((unsigned)bits << 16);
}

__device__ __forceinline__ unsigned short float_to_bfloat16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  unsigned bits = __float_as_uint(value);
  if (value != value) return 0x7fff;
  return (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
#endif
}

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(Half value) { return half_to_float(value.bits); }
__device__ __forceinline__ float widen(BFloat16 value) { return bfloat16_to_float(value.bits); }

__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(double value, double& to) { to = value; }
__device__ __forceinline__ void narrow(float value, Half& to) { to.bits = float_to_half(value); }
__device__ __forceinline__ void narrow(float value, BFloat16& to) { to.bits = float_to_bfloat16(value); }

// The shared memory of a block, as numbers of the type Accumulator.
#ifndef SHARED_MEMORY  // the tests' emulator defines its own
#define SHARED_MEMORY(name)                                     \
  extern __shared__ __align__(16) unsigned char shared_bytes[]; \
  Accumulator* name = reinterpret_cast<Accumulator*>(shared_bytes)
#endif
