// A tile of pixels of one image, as the kernels of layers compute it: normalised with a border of one or two pixels,
// the halo tile, and added to x. The lanes of a warp have pixels and channels as in products on tensor cores.
#pragma once
#include "mma.h"
#include "scalar.h"

// The compiler's command line gives the constants of an instantiation; the layers' modules in `cuda/` are their only
// source:
//   SCALAR       type of x and out: float, Half or BFloat16
//   CHANNELS     of x
//   CHUNKS       of hidden channels
//   TERMS        of a product
//   EXACT        whether products are as exact as in float32
//   TILE_WIDTH, TILE_HEIGHT  size of a tile in pixels
//   BORDER       of a halo tile in pixels
//   THREADS, BLOCKS  threads of a block, and the fewest blocks per multiprocessor (it limits a thread's registers)
//   EPS          added to the variance
//   SHARED_ELEMENTS  numbers in the shared memory of a block
typedef SCALAR Scalar;
typedef float Accumulator;

constexpr int kWarp = 32, kWarps = THREADS / kWarp;
constexpr int kRows = 16, kColumns = 8, kTerms = TERMS;  // of a product
constexpr int kHaloWidth = TILE_WIDTH + 2 * BORDER;
constexpr int kHaloPixels = kHaloWidth * (TILE_HEIGHT + 2 * BORDER);
constexpr int kPixels = TILE_WIDTH * TILE_HEIGHT;
constexpr int kProjected = (kHaloPixels + kWarps * kColumns - 1) / (kWarps * kColumns);  // groups of 8 pixels of a warp
constexpr int kAdded = kPixels / (kWarps * kColumns);  // the same of the second projection
constexpr int kSteps = (CHANNELS + kTerms - 1) / kTerms;
constexpr int kOutputs = (CHANNELS + kRows - 1) / kRows;
constexpr int kHalves = 2;

// Of the terms of a product a lane has kTerms / 4: neighbours, as many as a register holds, then those kTerms / 2 on.
constexpr int kNeighbours = kTerms / 8, kValues = kSteps * kTerms / 4;

static_assert(TILE_WIDTH == 2 * kColumns && kAdded * kWarps * kColumns == kPixels, "lanes have pixels as below");

struct alignas(16) Factors {
  unsigned v[4];
};

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T v[2];
};

// Of a pixel's channels, which four lanes share, lane t has kValues.
__device__ __forceinline__ int channel_of(int i, int t) {
  return i / kNeighbours * 4 * kNeighbours + t * kNeighbours + i % kNeighbours;
}

// at: a pixel, in the first channel of this lane.
__device__ __forceinline__ void read_channels(float (&values)[kValues], const Scalar* __restrict__ at,
                                              unsigned channel_stride, bool inside) {
#pragma unroll
  for (int i = 0; i < kValues; i++) {
    Scalar value = {};
    if (inside && channel_of(i, threadIdx.x % 4) < CHANNELS) value = at[(long long)channel_of(i, 0) * channel_stride];
    values[i] = widen(value);
  }
}

// Pixels less their mean, over their standard deviation.
template <int kCount>
__device__ __forceinline__ void standardise(float (&values)[kCount][kValues]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < kCount; n++) {
    float mean = 0, variance = 0;  // over the channels, which four lanes share
#pragma unroll
    for (int i = 0; i < kValues; i++) mean += values[n][i];
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) mean += __shfl_xor_sync(0xffffffffu, mean, mask);
    mean *= 1.0f / CHANNELS;
#pragma unroll
    for (int i = 0; i < kValues; i++) {
      values[n][i] = channel_of(i, t) < CHANNELS ? values[n][i] - mean : 0;
      variance += values[n][i] * values[n][i];
    }
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) variance += __shfl_xor_sync(0xffffffffu, variance, mask);
    const float scale = rsqrtf(variance * (1.0f / CHANNELS) + EPS);
#pragma unroll
    for (int i = 0; i < kValues; i++) values[n][i] *= scale;
  }
}

// Strides between channels have 32 bits, so that an address takes one instruction.
struct Tile {
  int left, top, batch;

  __device__ Tile(int number, int height, int width) {
    const int across = (width + TILE_WIDTH - 1) / TILE_WIDTH, down = (height + TILE_HEIGHT - 1) / TILE_HEIGHT;
    left = number % across * TILE_WIDTH;
    top = number / across % down * TILE_HEIGHT;
    batch = number / (across * down);
  }

  // The normalised pixels of a lane of the halo tile, for groups of 8 pixels; x: of this image. Returns the bits of the
  // pixels outside the image of which the lane has sums of the first projection.
  __device__ __forceinline__ unsigned normalise(float (&values)[kProjected][kValues], const Scalar* __restrict__ x,
                                                unsigned channel_stride, int height, int width) const {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    unsigned outside = 0;
#pragma unroll
    for (int n = 0; n < kProjected; n++) {
      const int first = (warp * kProjected + n) * kColumns, pixel = first + g;
      const int row = top - BORDER + pixel / kHaloWidth, column = left - BORDER + pixel % kHaloWidth;
      const bool inside = pixel < kHaloPixels && (unsigned)row < (unsigned)height && (unsigned)column < (unsigned)width;
      const Scalar* at = x + (long long)row * width + column + (long long)t * kNeighbours * channel_stride;
      keep(at);
      read_channels(values[n], at, channel_stride, inside);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int of_sum = first + t * 2 + i;
        const bool has_row = (unsigned)(top - BORDER + of_sum / kHaloWidth) < (unsigned)height;
        const bool has_column = (unsigned)(left - BORDER + of_sum % kHaloWidth) < (unsigned)width;
        if (of_sum < kHaloPixels && !(has_row && has_column)) outside |= 1u << (n * 2 + i);
      }
    }
    standardise(values);
    return outside;
  }

  // out = x + sums of the second projection; both of this image. paired: two pixels can be moved at once.
  __device__ __forceinline__ void add(const float (&sums)[kOutputs][kAdded][4], const Scalar* __restrict__ x,
                                      Scalar* __restrict__ out, unsigned channel_stride, int height, int width,
                                      bool paired) const {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    const unsigned plane = (unsigned)height * width;
#pragma unroll
    for (int n = 0; n < kAdded; n++) {
      const int first = warp * kAdded + n, row = top + first / 2, column = left + first % 2 * kColumns + t * 2;
      if (row >= height || column >= width) continue;
      const long long pixel = (long long)row * width + column;
      const Scalar* first_from = x + (long long)g * channel_stride + pixel;
      Scalar* first_to = out + (long long)g * plane + pixel;
      keep(first_from);
      keep(first_to);
      const bool second = column + 1 < width;
#pragma unroll
      for (int i = 0; i < kOutputs * 2; i++) {
        if (i * 8 + g < CHANNELS) {
          const Scalar* from = first_from + (long long)(i * 8) * channel_stride;
          Scalar* to = first_to + (long long)(i * 8) * plane;
          Pair<Scalar> pair = {};
          if (paired) {
            pair = *reinterpret_cast<const Pair<Scalar>*>(from);
          } else {
            pair.v[0] = from[0];
            if (second) pair.v[1] = from[1];
          }
#pragma unroll
          for (int j = 0; j < 2; j++) narrow(widen(pair.v[j]) + sums[i / 2][n][i % 2 * 2 + j], pair.v[j]);
          if (paired) {
            *reinterpret_cast<Pair<Scalar>*>(to) = pair;
          } else {
            to[0] = pair.v[0];
            if (second) to[1] = pair.v[1];
          }
        }
      }
    }
  }
};
