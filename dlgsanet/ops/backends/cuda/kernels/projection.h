// The projection of a normalised halo tile to hidden channels, and the products that kernels of layers consist of, on
// tensor cores.
//
// With EXACT, for float32, see exact.h. Without, factors are rounded to TF32, or to x's 16 bits.
#pragma once
#include "exact.h"
#include "halo_tile.h"

#if TERMS == 16
typedef Scalar Factor;
#else
typedef float Factor;
#endif

// A factor of kNeighbours numbers, of the dtype of x.
template <typename T>
__device__ __forceinline__ unsigned as_factor(const float* numbers) {
  return pack<T>(numbers[0], numbers[1]);
}

template <>
__device__ __forceinline__ unsigned as_factor<float>(const float* numbers) {
  return as_factor(numbers[0]);
}

// Factors b of products, for groups of 8 pixels.
template <int kCount>
__device__ __forceinline__ void as_factors(unsigned (&factors)[kSteps][kCount][2],
                                           const float (&values)[kCount][kValues]) {
#pragma unroll
  for (int n = 0; n < kCount; n++)
#pragma unroll
    for (int i = 0; i < kValues / kNeighbours; i++)
      factors[i / 2][n][i % 2] = as_factor<Factor>(values[n] + i * kNeighbours);
}

// Of matrices that are factors a of products, [matrices][kWarp][4]: which one, row and first term a word has.
struct Element {
  int matrix, row, term;

  __device__ __forceinline__ explicit Element(int word) {
    const int lane = word / 4 % kWarp, i = word % 4;
    matrix = word / (4 * kWarp);
    row = lane / 4 + i % 2 * 8;
    term = (lane % 4 + i / 2 * 4) * kNeighbours;
  }
};

template <int kM, int kN>
__device__ __forceinline__ void multiply(float (&sums)[kM][kN][4], const Factors* __restrict__ matrices,
                                         const unsigned (&b)[kN][2]) {
  Factors a[kM];
#pragma unroll
  for (int m = 0; m < kM; m++) a[m] = matrices[m * kWarp];
  multiply_loaded<Factor>(sums, a, b);
}

// Values in shared memory, in words: rows of the tile's pixels, of one channel each, or of two with 16 bits. The left
// half of the tile's columns comes first.
constexpr int kTermRows = kTerms / kNeighbours, kValueRows = kRows / kNeighbours;  // of a product, of 16 channels
constexpr int kValueStride = kPixels + 8, kValueHalf = kPixels / 2 + 8;
static_assert(kValueStride % 32 == 8, "rows that neighbouring lanes access are in different banks");
static_assert(TILE_HEIGHT == 8 && kWarps * 2 == kRows && kAdded == 2, "a warp multiplies a row of the tile");

// Where a lane finds values of its warp's row of the tile.
__device__ __forceinline__ int place_in_row() {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  return lane % 4 * kValueStride + warp * kColumns + lane / 4;
}

// Factors b of kTerms channels; values: from the place above on.
__device__ __forceinline__ void load_values(unsigned (&b)[kAdded][2], const unsigned* values) {
#pragma unroll
  for (int n = 0; n < kAdded; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) b[n][i] = values[i * 4 * kValueStride + n * kValueHalf];
}

// A chunk has 16 channels of each of kParts. Its weights, in words: matrices of the projection, then kMore of the
// kernel's own, as factors a of products, [kMatrices][kWarp][4]; the bias of the projection as float,
// [kParts][kRows]; the filters, [kParts][kRows][kFilter].
template <int kParts, int kMore, int kFilter>
struct Projection {
  static constexpr int kMatrices = kSteps * kParts + kMore;
  static constexpr int kBias = kMatrices * kWarp * 4, kFilters = kBias + kParts * kRows;
  static constexpr int kChunk = kFilters + kParts * kRows * kFilter;

  unsigned normalised[kSteps][kProjected][2];
  unsigned outside;  // bits of the sums of this lane that are of pixels outside the image

  __device__ __forceinline__ Projection(const Tile& tile, const Scalar* __restrict__ x, unsigned channel_stride,
                                        int height, int width) {
    float values[kProjected][kValues];
    outside = tile.normalise(values, x, channel_stride, height, width);
    as_factors(normalised, values);
  }

  // Of the projection; weights: of the chunk.
  __device__ __forceinline__ void sums(float (&projected)[kParts][kProjected][4],
                                          const unsigned* __restrict__ weights) const {
    const int lane = threadIdx.x % kWarp, g = lane / 4;
#pragma unroll
    for (int part = 0; part < kParts; part++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float bias = __uint_as_float(weights[kBias + part * kRows + i / 2 * 8 + g]);
#pragma unroll
        for (int n = 0; n < kProjected; n++) projected[part][n][i] = bias;
      }
#pragma unroll
    for (int step = 0; step < kSteps; step++)
      multiply(projected, reinterpret_cast<const Factors*>(weights) + lane + step * kParts * kWarp, normalised[step]);
  }
};
