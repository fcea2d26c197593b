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

static_assert(TILE_WIDTH == 2 * kColumns && TILE_HEIGHT == kWarps && kAdded == 2, "a warp adds a row of the tile");
static_assert(kHaloWidth % 2 == 0, "two pixels of a lane are in a row");

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T v[2];
};

// Of a pixel's channels, which four lanes share, lane t has kValues.
__device__ __forceinline__ int channel_of(int i, int t) {
  return i / kNeighbours * 4 * kNeighbours + t * kNeighbours + i % kNeighbours;
}

// Reads a lane's channels of a pixel, or of the nearest one in the image; x: of this image.
__device__ __forceinline__ void read_channels(float (&values)[kValues], const Scalar* __restrict__ x, int row,
                                              int column, unsigned channel_stride, int height, int width) {
  const int t = threadIdx.x % 4;
  const Scalar* at = x + (unsigned)(t * kNeighbours) * (long long)channel_stride +
                     (long long)min(max(row, 0), height - 1) * width + min(max(column, 0), width - 1);
  keep(at);
#pragma unroll
  for (int i = 0; i < kValues; i++) {
    Scalar value = {};
    if (channel_of(i, t) < CHANNELS) value = *at;
    values[i] = widen(value);
    // Each address follows from the last one, so that it takes one instruction.
    at += (long long)(channel_of(i + 1, 0) - channel_of(i, 0)) * channel_stride;
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

  __device__ Tile(unsigned number, int height, int width) {
    const unsigned across = (width + TILE_WIDTH - 1u) / TILE_WIDTH, down = (height + TILE_HEIGHT - 1u) / TILE_HEIGHT;
    const unsigned row = number / across;
    left = (number - row * across) * TILE_WIDTH;
    batch = row / down;
    top = (row - batch * down) * TILE_HEIGHT;
  }

  // The normalised pixels of a lane of the halo tile, for groups of 8 pixels; outside the image, those of its border.
  // x: of this image. Returns the bits of the pixels outside of which the lane has sums of the first projection.
  __device__ __forceinline__ unsigned normalise(float (&values)[kProjected][kValues], const Scalar* __restrict__ x,
                                                unsigned channel_stride, int height, int width) const {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    unsigned outside = 0;
#pragma unroll
    for (int n = 0; n < kProjected; n++) {
      const int first = (warp * kProjected + n) * kColumns, pixel = first + g;
      const int row = top - BORDER + pixel / kHaloWidth, column = left - BORDER + pixel % kHaloWidth;
      read_channels(values[n], x, row, column, channel_stride, height, width);
      const int of_sums = first + t * 2;  // and the next pixel, in the same row
      const bool has_row = (unsigned)(top - BORDER + of_sums / kHaloWidth) < (unsigned)height;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const bool has_column = (unsigned)(left - BORDER + of_sums % kHaloWidth + i) < (unsigned)width;
        if (of_sums < kHaloPixels && !(has_row && has_column)) outside |= 1u << (n * 2 + i);
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
    const int row = top + warp, column = left + t * 2;
    if (row >= height || column >= width) return;
    const unsigned plane = (unsigned)height * width;
    const long long pixel = (long long)row * width + column;
    const Scalar* from = x + (long long)g * channel_stride + pixel;
    Scalar* to = out + (long long)g * plane + pixel;
    keep(from);
    keep(to);
    if (paired) {
      const bool inside[kAdded] = {true, column + kColumns < width};
      Pair<Scalar> pairs[kOutputs * 2][kAdded];  // all loads start before one result is used
#pragma unroll
      for (int i = 0; i < kOutputs * 2; i++, from += 8ll * channel_stride)
#pragma unroll
        for (int n = 0; n < kAdded; n++)
          if (inside[n] && i * 8 + g < CHANNELS)
            pairs[i][n] = *reinterpret_cast<const Pair<Scalar>*>(from + n * kColumns);
#pragma unroll
      for (int i = 0; i < kOutputs * 2; i++, to += 8ll * plane)
#pragma unroll
        for (int n = 0; n < kAdded; n++)
          if (inside[n] && i * 8 + g < CHANNELS) {
            Pair<Scalar>& pair = pairs[i][n];
#pragma unroll
            for (int j = 0; j < 2; j++) narrow(widen(pair.v[j]) + sums[i / 2][n][i % 2 * 2 + j], pair.v[j]);
            *reinterpret_cast<Pair<Scalar>*>(to + n * kColumns) = pair;
          }
      return;
    }
    float of_lane[kOutputs * 2 * kAdded * 2];  // in local memory: this is rare, and so it is short
#pragma unroll
    for (int i = 0; i < kOutputs * 2; i++)
#pragma unroll
      for (int n = 0; n < kAdded * 2; n++) of_lane[i * kAdded * 2 + n] = sums[i / 2][n / 2][i % 2 * 2 + n % 2];
#pragma unroll 1
    for (int i = 0; i < kOutputs * 2 * kAdded * 2; i++) {
      const int channel = i / (kAdded * 2) * 8, offset = i / 2 % kAdded * kColumns + i % 2;
      if (channel + g < CHANNELS && column + offset < width)
        narrow(widen(from[(long long)channel * channel_stride + offset]) + of_lane[i],
               to[(long long)channel * plane + offset]);
    }
  }
};
