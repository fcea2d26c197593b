// Hidden channels of a halo tile, for x of float32. A thread filters four rows of two neighbouring columns of a
// channel.
#pragma once
#include "projection.h"

constexpr int kFilter = 12;                                  // nine taps and padding
constexpr int kPlane = kProjected * kWarps * kColumns + 8;   // of a hidden channel: the pixels of the halo tile
// Features: rows of channels, with the left half of the tile's columns first.
constexpr int kFeatureHalf = kPixels / 2 + 16, kFeatureStride = kFeatureHalf + kPixels / 2 + 4;
static_assert(kPlane % 32 == 8 && kFeatureStride % 16 == 4, "rows that lanes access at once are in different banks");

// A word of a packed filter; taps: of the filter, which is multiplied by `factor`.
__device__ __forceinline__ unsigned taps_of(const Scalar* __restrict__ taps, int word, float factor) {
  return word < 9 ? __float_as_uint(widen(taps[word]) * factor) : 0;
}

// The pixels of a tile's row that a filter for some neighbouring outputs needs: for two in a Window.
template <int kCount>
struct Pixels {
  float v[kCount];

  __device__ __forceinline__ void read(const float* from) {
#pragma unroll
    for (int i = 0; i < kCount / 2; i++) {
      const Pair<float> pair = reinterpret_cast<const Pair<float>*>(from)[i];
      v[i * 2] = pair.v[0];
      v[i * 2 + 1] = pair.v[1];
    }
  }

  // Those from the next pixel on.
  __device__ __forceinline__ void read_after(const float* from) {
    v[0] = from[1];
    v[kCount - 1] = from[kCount];
#pragma unroll
    for (int i = 1; i < kCount / 2; i++) {
      const Pair<float> pair = reinterpret_cast<const Pair<float>*>(from)[i];
      v[i * 2 - 1] = pair.v[0];
      v[i * 2] = pair.v[1];
    }
  }
};
typedef Pixels<4> Window;

// What this thread filters: its channel of 16, and the first of its rows and columns.
struct Own {
  int channel, row, column;

  __device__ __forceinline__ Own() {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    channel = warp % 4 * 4 + lane / 8 % 2 * 2 + lane / 16;
    row = warp / 4 * 4;
    column = lane % 8 * 2;
  }
};

template <int kParts, int kMore>
struct Hidden : Projection<kParts, kMore, kFilter> {
  static constexpr int kWords = kParts * kRows * kPlane;  // in shared memory

  float* planes;  // [kParts][kRows][kPlane]

  __device__ __forceinline__ Hidden(unsigned* shared, const Tile& tile, const Scalar* __restrict__ x,
                                    unsigned channel_stride, int height, int width)
      : Projection<kParts, kMore, kFilter>(tile, x, channel_stride, height, width),
        planes(reinterpret_cast<float*>(shared)) {}

  // weights: of the chunk. All threads have to wait before the chunk is filtered, and before the next one is projected.
  __device__ __forceinline__ void project(const unsigned* __restrict__ weights) const {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    float projected[kParts][kProjected][4];
    this->sums(projected, weights);
    if (this->outside) {
#pragma unroll
      for (int n = 0; n < kProjected; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
          if (this->outside >> (n * 2 + i) & 1)
#pragma unroll
            for (int part = 0; part < kParts; part++) projected[part][n][i] = projected[part][n][i + 2] = 0;
    }
#pragma unroll
    for (int part = 0; part < kParts; part++)
#pragma unroll
      for (int n = 0; n < kProjected; n++)
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
          float* to = planes + (part * kRows + g + lower * 8) * kPlane;
          const Pair<float> pair = {projected[part][n][lower * 2], projected[part][n][lower * 2 + 1]};
          reinterpret_cast<Pair<float>*>(to)[(warp * kProjected + n) * 4 + t] = pair;
        }
  }

  // Of each part this thread's rows, two columns of each.
  __device__ __forceinline__ void filter(float (&filtered)[kParts][2][4], const unsigned* __restrict__ weights) const {
    const Own own;
#pragma unroll
    for (int part = 0; part < kParts; part++) {
      float taps[kFilter];
#pragma unroll
      for (int i = 0; i < kFilter / 4; i++) {
        const unsigned* from = weights + this->kFilters + (part * kRows + own.channel) * kFilter;
        const Factors quad = reinterpret_cast<const Factors*>(from)[i];
#pragma unroll
        for (int j = 0; j < 4; j++) taps[i * 4 + j] = __uint_as_float(quad.v[j]);
      }
      const float* from = planes + (part * kRows + own.channel) * kPlane + own.row * kHaloWidth + own.column;
      Window rows[3];
#pragma unroll
      for (int row = 0; row < 6; row++) {
        rows[row % 3].read(from + row * kHaloWidth);
        if (row < 2) continue;
#pragma unroll
        for (int column = 0; column < 2; column++) {
          float sum = 0;
#pragma unroll
          for (int i = 0; i < 3; i++)
#pragma unroll
            for (int j = 0; j < 3; j++) sum += taps[i * 3 + j] * rows[(row - 2 + i) % 3].v[column + j];
          filtered[part][(row - 2) / 2][row % 2 * 2 + column] = sum;
        }
      }
    }
  }
};

// to: of this thread's first row, as factors of products.
__device__ __forceinline__ void store_rows(unsigned* to, const float (&of)[2][4]) {
#pragma unroll
  for (int row = 0; row < 4; row++) {
    const float* pair = of[row / 2] + row % 2 * 2;
    reinterpret_cast<Pair<unsigned>*>(to)[row * kColumns / 2] = {as_factor<float>(pair), as_factor<float>(pair + 1)};
  }
}

__device__ __forceinline__ int place_of_values() {
  const Own own;
  return own.channel * kValueStride + own.column / kColumns * kValueHalf + own.row * kColumns + own.column % kColumns;
}

__device__ __forceinline__ void store_values(unsigned* values, const float (&of)[2][4]) { store_rows(values, of); }

__device__ __forceinline__ void store_features(unsigned* features, const float (&of)[2][4]) {
  const Own own;
  store_rows(features + own.channel * kFeatureStride + own.column / kColumns * kFeatureHalf + own.row * kColumns +
                 own.column % kColumns, of);
}
